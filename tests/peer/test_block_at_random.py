"""Random scripts of block commands to QEMU's storage daemon and ours: see :mod:`qobra.testing.fuzz`."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from qobra.testing.fuzz import play
from qobra.testing.fuzz.trial import Trial

pytestmark = [pytest.mark.soak, pytest.mark.peer("qemu-storage-daemon", "qemu-img", "qemu-io")]

SEEDS = (3, 5, 13, 15, 19, 20, 25, 28, 36, 44, 53, 75)
LENGTH = 12


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    play.make_images(tmp_path / "images")
    return Trial(tmp_path, tmp_path / "images", *play.SERVERS["storage"])


@pytest.mark.parametrize("seed", SEEDS)
def test_scripts(trial: Trial, seed: int) -> None:
    check(trial, seed)


@pytest.mark.timeout(3600)
def test_new_scripts(trial: Trial, soak_scale: int) -> None:
    """Other ones on each long run; the seed is told."""
    if soak_scale == 1:
        pytest.skip("part of `make soak`")
    for _ in range(4 * soak_scale):
        check(trial, secrets.randbelow(1 << 32))


def check(trial: Trial, seed: int) -> None:
    steps, found = trial.draw(seed, LENGTH)
    if found is not None:
        steps, found = trial.shrink(steps, found)
        script = "\n".join(json.dumps(step) for step in steps)
        pytest.fail(f"seed {seed}, ours | theirs\n{script}\n{found.text}")

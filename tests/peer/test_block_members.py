"""Each member of block commands in turn, on QEMU's storage daemon and ours: see :mod:`qobra.testing.fuzz.members`."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import pytest

from qobra.testing.fuzz import pair, play
from qobra.testing.fuzz.cases import CASES, Case
from qobra.testing.fuzz.members import tries
from qobra.testing.fuzz.trial import Trial

pytestmark = [pytest.mark.soak, pytest.mark.peer("qemu-storage-daemon", "qemu-img", "qemu-io")]
FEW = 3
"""Forms of a command that are tried each time."""
SOME = CASES if os.environ.get("QOBRA_SOAK") else CASES[::10]
"""A tenth of the cases; on long runs all."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("members") / "images"
    play.make_images(place)
    return place


def test_every_case_has_what_it_needs() -> None:
    """All its forms are other ones, and can be sent."""
    for _setup, command, arguments in CASES:
        texts = [json.dumps(form, sort_keys=True) for form in tries(command, arguments)]
        assert len(set(texts)) == len(texts)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", SOME, ids=lambda case: f"{case[1]} {case[2].get('driver', '')}".strip())
def test_members(tmp_path: Path, images: Path, case: Case, soak_scale: int) -> None:
    trial = Trial(tmp_path, images, *play.SERVERS["storage"])
    count = len(tries(case[1], case[2]))
    stride = max(1, count // (FEW * soak_scale))
    found = pair.differences(trial, case, first=secrets.randbelow(stride) if soak_scale > 1 else 0, stride=stride)
    assert not found, "ours | theirs\n" + "\n".join(found)

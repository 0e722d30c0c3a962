"""Random command lines for QEMU's tools and for ours; see :mod:`qobra.testing.tools.script`.

A sequence that parts the two is made as short as can be and printed with its seed. What was mended because of one is in
``golden/found.txt``.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest

from qobra.testing.tools.differential import Pair
from qobra.testing.tools.script import script

pytestmark = pytest.mark.peer("qemu-img", "qemu-io", "qemu-nbd")

SEEDS = 10
"""So many sequences of some eight commands each; under ``make soak`` SCALE times as many."""
SECONDS = 8.0
"""On a busy machine fewer, as many as begin within this time."""


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_same_as_qemu(tmp_path: Path, soak_scale: int) -> None:
    with Pair(tmp_path) as pair:
        end = time.monotonic() + SECONDS * soak_scale
        for seed in range(SEEDS * soak_scale):
            if time.monotonic() > end:
                break
            commands = script(seed)
            if pair.difference(commands):
                shortest = pair.shrink(commands)
                shown = "\n".join(f"  {shlex.join(command)}" for command in shortest)
                pytest.fail(f"seed {seed}:\n{shown}\n{pair.difference(shortest)}", pytrace=False)

"""Whoever looks at memory while it still comes finds what it was: monitors, dumps, devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Ram
from qobra.machine.tpm import ppi
from qobra.migration.arrivals import Arrivals
from qobra.migration.ram import RUN, RamBlock
from qobra.migration.stream import ZEROES

START, LENGTH = 2 << 20, 100_000


def saved(both: Any, path: Path, command: str) -> bytes:
    both.call(both.destination, command, val=START + 5, size=LENGTH, filename=str(path))
    return path.read_bytes()


def dumped(both: Any, path: Path) -> bytes:
    both.call(
        both.destination, "dump-guest-memory", paging=False, protocol=f"file:{path}", begin=START, length=LENGTH + 5
    )
    return path.read_bytes()[-LENGTH:]


def shown(both: Any, _path: Path) -> bytes:
    text = both.call(both.destination, "human-monitor-command", command_line=f"xp /{LENGTH // 100}xb {START + 5:#x}")
    values = [value for line in text.splitlines() for value in line.partition(":")[2].split()]
    return bytes(int(value, 16) for value in values)


def by_a_device(both: Any, _path: Path) -> bytes:
    with both.destination.control:
        return bytes(GuestMemory(both.destination.board.memory).read(START + 5, LENGTH))


WAYS = {
    "memsave": lambda both, path: saved(both, path, "memsave"),
    "pmemsave": lambda both, path: saved(both, path, "pmemsave"),
    "dump": dumped,
    "xp": shown,
    "dma": by_a_device,
}


@pytest.mark.parametrize("way", WAYS)
def test_memory_that_is_looked_at_comes_first(sides: Any, tmp_path: Path, way: str) -> None:
    both = sides("postcopy-ram")
    both.start_late()
    found = WAYS[way](both, tmp_path / "found")
    expected = both.content[START + 5 - (1 << 20) :][: len(found)]
    assert len(found) >= LENGTH // 100 and found == expected
    assert both.source.migration.describe()["ram"]["remaining"] > 0
    both.let_go()
    both.wait()


def test_memory_that_is_overwritten_is_not_brought_back() -> None:
    ram = Ram("m", 3 * 4096)
    asked: list[tuple[int, ...]] = []

    def ask(*run: int) -> None:
        asked.append(run)
        arrivals.place(ZEROES, RUN.pack(*run))

    arrivals = Arrivals([RamBlock("m", ram, shared=False, late=True)], ask)
    arrivals.expect(0, 0, 3)
    arrivals.watch()
    ppi._overwrite(ram, 100, 2 * 4096)
    assert asked == [(0, 0, 3)] and not arrivals.missing

"""What of the guest's memory is dumped: the RAM and ROM that it sees, as ranges of physical addresses."""

from __future__ import annotations

from typing import NamedTuple

from qobra.machine.memory import AddressSpace, Ram, RomDevice


class Run(NamedTuple):
    """``view`` is what lies at physical ``address``."""

    address: int
    view: memoryview


def ram_runs(memory: AddressSpace) -> list[Run]:
    """Every range of memory, adjacent ones of one piece joined."""
    runs: list[tuple[int, Ram, int, int]] = []
    for start, end, region, offset in memory.flat():
        if not isinstance(region, Ram) or isinstance(region, RomDevice):
            continue
        if runs:
            last_start, last_region, last_offset, length = runs[-1]
            if last_start + length == start and last_region is region and last_offset + length == offset:
                runs[-1] = (last_start, region, last_offset, length + end - start)
                continue
        runs.append((start, region, offset, end - start))
    return [Run(start, region.piece(offset, length)) for start, region, offset, length in runs]


def clip(runs: list[Run], begin: int, length: int) -> list[Run]:
    """The parts of ``runs`` between ``begin`` and ``begin + length``."""
    clipped = []
    for run in runs:
        low, high = max(run.address, begin), min(run.address + len(run.view), begin + length)
        if low < high:
            clipped.append(Run(low, run.view[low - run.address : high - run.address]))
    return clipped

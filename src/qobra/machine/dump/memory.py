"""What of the guest's memory is dumped: the RAM and ROM that it sees, as ranges of physical addresses."""

from __future__ import annotations

from typing import NamedTuple

from qobra.machine.memory import AddressSpace, Ram, RomDevice


class Run(NamedTuple):
    """``view`` is what lies at physical ``address``."""

    address: int
    view: memoryview


def ram_runs(memory: AddressSpace, begin: int = 0, end: int | None = None) -> list[Run]:
    """Every range of memory between ``begin`` and ``end``, adjacent ones of one piece joined."""
    runs: list[tuple[int, Ram, int, int]] = []
    for start, stop, region, offset in memory.flat():
        low, high = max(start, begin), stop if end is None else min(stop, end)
        if low >= high or not isinstance(region, Ram) or isinstance(region, RomDevice):
            continue
        offset += low - start
        if runs:
            last_start, last_region, last_offset, length = runs[-1]
            if last_start + length == low and last_region is region and last_offset + length == offset:
                runs[-1] = (last_start, region, last_offset, length + high - low)
                continue
        runs.append((low, region, offset, high - low))
    return [Run(start, region.piece(offset, length)) for start, region, offset, length in runs]

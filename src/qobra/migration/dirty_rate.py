"""How fast a guest changes its memory, estimated from a sample of pages (``calc-dirty-rate``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.migration.page_coding import PAGE
from qobra.migration.ram import ram_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.machine.board import Board
    from qobra.machine.machine import Machine
    from qobra.machine.memory import Ram

SECONDS = (1, 60)
PAGES_PER_GIB = (128, 16384)
DEFAULT_PAGES_PER_GIB = 512
_SECOND = 1_000_000_000
_MIB, _GIB = 1 << 20, 1 << 30


class DirtyRate:
    """The measurement of one machine, of which there is one at a time. Everything is called in the strand.

    It takes a checksum of each page of the sample twice, and for that the time of the sample, whatever memory there is.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._status = "unstarted"
        self._start_ns = 0
        self._seconds = 0
        self._pages_per_gib = 0
        self._mib_per_second = 0

    def start(self, board: Board, seconds: int, pages_per_gib: int | None, mode: str) -> None:
        """Measure for that many seconds. Raises QobraError."""
        if self._status == "measuring":
            raise QobraError("the dirty rate is already being measured.")
        _check("calc-time", seconds, SECONDS)
        if pages_per_gib is not None:
            if mode == "dirty-ring":
                raise QobraError("either sample-pages or dirty-ring can be specified.")
            _check("sample-pages", pages_per_gib, PAGES_PER_GIB)
        if mode != "page-sampling":
            raise QobraError(f"mode {mode} is not enabled, use other method instead.")
        self._status, self._seconds = "measuring", seconds
        self._pages_per_gib = DEFAULT_PAGES_PER_GIB if pages_per_gib is None else pages_per_gib
        self._start_ns = self._machine.clock.monotonic_ns()
        sample = [(ram, offset, _sum(ram, offset)) for ram, offset in self._sample(board)]
        total = sum(block.ram.size for block in ram_blocks(board))
        self._machine.control.call_later(seconds * _SECOND, lambda: self._finish(sample, total))

    def _sample(self, board: Board) -> Iterator[tuple[Ram, int]]:
        draw = self._machine.random.randrange
        for block in ram_blocks(board):
            pages = block.ram.size // PAGE
            for _ in range(min(pages, -(-block.ram.size * self._pages_per_gib // _GIB))):
                yield block.ram, draw(pages) * PAGE

    def _finish(self, sample: list[tuple[Ram, int, int]], total: int) -> None:
        changed = sum(_sum(ram, offset) != before for ram, offset, before in sample)
        elapsed_ns = max(self._machine.clock.monotonic_ns() - self._start_ns, 1)
        dirty = total * changed // max(len(sample), 1)
        self._mib_per_second = dirty * _SECOND // elapsed_ns // _MIB
        self._status = "measured"

    def query(self) -> dict[str, Any]:
        """DirtyRateInfo."""
        info: dict[str, Any] = {
            "status": self._status,
            "start-time": self._start_ns // _SECOND,
            "calc-time": self._seconds,
            "sample-pages": self._pages_per_gib,
            "mode": "page-sampling",
        }
        if self._status == "measured":
            info["dirty-rate"] = self._mib_per_second
        return info


def _check(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise QobraError(f"{name} is out of range[{bounds[0]}, {bounds[1]}].")


def _sum(ram: Ram, offset: int) -> int:
    from zlib import crc32

    return crc32(ram.piece(offset, PAGE))

"""Runs in L2 tables as they are on disk: entries that go up cluster by cluster, found without looking at each.

Zero entries are skipped by a search for the next byte that is not 0, and big integers tell whether what follows goes up
in steps: a table that maps one stretch of the file costs a few operations, whatever its size.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_ENTRY = bytes(8)

_lanes: dict[int, tuple[int, int]] = {}


def lanes(count: int) -> tuple[int, int]:
    """Two integers of ``count`` words of 64 bits, the first word the highest: 1, 1, 1, ... and 0, 1, 2, ..."""
    known = _lanes.get(count)
    if known is None:
        ones = int.from_bytes(b"\0\0\0\0\0\0\0\1" * count, "big")
        ramp = int.from_bytes(b"".join(at.to_bytes(8, "big") for at in range(count)), "big")
        known = ones, ramp
        if len(_lanes) < 256 or count.bit_count() == 1:
            _lanes[count] = known
    return known


def table_runs(table: bytes | bytearray, step: int) -> Iterator[tuple[int, int, int]]:
    """(byte position, number of entries, first entry) of each run of plain L2 entries, in order.

    The entries of a run are not 0, and each is the one before plus ``step``.
    """
    end = len(table)
    found = _something(table, 0)
    while found < end:
        at = found & ~7
        stop = table.find(_NO_ENTRY, found)
        stop = end if stop < 0 else (stop + 7) & ~7
        value = int.from_bytes(table[at:stop], "big")
        count = (stop - at) >> 3
        word = value >> ((count - 1) << 6)
        if count == 1:
            yield at, 1, word
        else:
            ones, ramp = lanes(count)
            if value == word * ones + ramp * step:
                yield at, count, word
            else:
                yield from _short_runs(table, at, stop, step)
        found = _something(table, stop)


def _something(table: bytes | bytearray, at: int) -> int:
    """The first byte at or after ``at`` that is not 0; the table's length if there is none."""
    size = 64
    while at < len(table):
        piece = table[at : at + size].lstrip(b"\0")
        if piece:
            return min(at + size, len(table)) - len(piece)
        at += size
        size *= 4
    return len(table)


def _short_runs(table: bytes | bytearray, at: int, stop: int, step: int) -> Iterator[tuple[int, int, int]]:
    """The runs in a stretch of entries of which none is 0."""
    first = int.from_bytes(table[at : at + 8], "big")
    start, expected = at, first + step
    for position in range(at + 8, stop, 8):
        word = int.from_bytes(table[position : position + 8], "big")
        if word != expected:
            yield start, (position - start) >> 3, first
            start, first = position, word
            expected = word
        expected += step
    yield start, (stop - start) >> 3, first

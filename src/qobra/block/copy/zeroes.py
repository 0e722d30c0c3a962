"""Find the zeroes in a buffer, a piece at a time: the hot loop of every copy that makes holes."""

from __future__ import annotations

import os

from qobra.block.buffers import fill_zero
from qobra.native import compiled

Piece = tuple[int, int, bool]
"""(start in the buffer, size in bytes, whether it is all zeroes)."""

_ZEROES: dict[int, bytes] = {}


def pure_zero_pieces(buffer: bytearray, size: int, unit: int, phase: int = 0) -> list[Piece]:
    """Split the first ``size`` bytes of ``buffer`` along units of ``unit`` bytes into runs of zeroes and of data.

    ``phase`` is how far into a unit the buffer begins. A unit that is only partly in the buffer counts with what is.
    """
    zeroes = _ZEROES.get(unit)
    if zeroes is None:
        zeroes = _ZEROES[unit] = bytes(unit)
    # bytearray.startswith at an offset is a memcmp without a copy.
    starts_with = buffer.startswith
    head = min(size, (unit - phase) % unit)
    whole_end = head + (size - head) // unit * unit
    # Only a unit whose first byte is zero can be all zeroes; one slice fetches all first bytes.
    firsts = buffer[head:whole_end:unit]
    flags = bytearray(len(firsts))
    number = firsts.find(0)
    while number >= 0:
        flags[number] = starts_with(zeroes, head + number * unit)
        number = firsts.find(0, number + 1)
    if head == 0 and whole_end == size:
        if 1 not in flags:
            return [(0, size, False)]
        if 0 not in flags:
            return [(0, size, True)]
    pieces: list[Piece] = []
    if head:
        pieces.append((0, head, starts_with(zeroes[:head], 0)))
    start, number, count = head, 0, len(flags)
    while number < count:
        flag = flags[number]
        stop = flags.find(not flag, number)
        if stop < 0:
            stop = count
        _append(pieces, start, (stop - number) * unit, bool(flag))
        start += (stop - number) * unit
        number = stop
    if whole_end < size:
        _append(pieces, whole_end, size - whole_end, starts_with(zeroes[: size - whole_end], whole_end))
    return pieces


def _append(pieces: list[Piece], start: int, size: int, zero: bool) -> None:
    if pieces and pieces[-1][2] == zero:
        first, before, _zero = pieces[-1]
        pieces[-1] = (first, before + size, zero)
    else:
        pieces.append((start, size, zero))


def pure_read_pieces(fd: int, buffer: bytearray, size: int, offset: int, unit: int, phase: int = 0) -> list[Piece]:
    """Read ``size`` bytes at ``offset`` of a file, zeroes past its end, and split them (all is data if ``unit`` is 0).

    Raises OSError.
    """
    view = memoryview(buffer)[:size]
    done = 0
    while done < size:
        moved = os.preadv(fd, (view[done:],), offset + done)
        if not moved:
            fill_zero(view[done:])
            break
        done += moved
    return pure_zero_pieces(buffer, size, unit, phase) if unit else [(0, size, False)]


_compiled = compiled("zeroes")
zero_pieces = pure_zero_pieces if _compiled is None else _compiled.zero_pieces
read_pieces = pure_read_pieces if _compiled is None else _compiled.read_pieces

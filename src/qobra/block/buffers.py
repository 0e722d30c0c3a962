"""Buffers: the size in which data is moved where a whole request cannot be, and zeroes, made and found by memcmp."""

from __future__ import annotations

import os

Buffer = bytes | bytearray | memoryview

BOUNCE_SIZE = 1 << 20
"""Bytes that are moved at a time where a whole request cannot be (zero fallback, copies)."""

ZEROES = bytes(BOUNCE_SIZE)
_zero_array = bytearray()  # made when it is first needed: this one takes up memory


_PAST_HEAD = 48
"""What malloc() gives for large sizes begins 16 bytes after the boundary of a page."""


def new_buffer(size: int) -> bytearray:
    """A buffer to read files into.

    Some processors (AMD's EPYC) copy a page to where it begins less than 32 bytes after a boundary at a quarter of the
    speed. So a large buffer begins 64 bytes after one: what is cut off in front stays where it is.
    """
    buffer = bytearray(size + _PAST_HEAD)
    del buffer[:_PAST_HEAD]
    return buffer


def is_zero(data: Buffer) -> bool:
    """Whether ``data`` is all zeroes, by memcmp and without copying more than 1 MiB."""
    global _zero_array
    if not _zero_array:
        _zero_array = bytearray(BOUNCE_SIZE)
    view = memoryview(data)
    for start in range(0, len(view), BOUNCE_SIZE):
        part = view[start : start + BOUNCE_SIZE]
        # A bytearray on the left compares with memcmp; a memoryview would go byte by byte.
        if (_zero_array if len(part) == BOUNCE_SIZE else _zero_array[: len(part)]) != part:
            return False
    return True


def fill_zero(view: memoryview) -> None:
    """Set ``view`` to zeroes."""
    for start in range(0, len(view), BOUNCE_SIZE):
        size = min(BOUNCE_SIZE, len(view) - start)
        view[start : start + size] = ZEROES[:size] if size < BOUNCE_SIZE else ZEROES


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """pwrite(2) until all of ``view`` is written. Raises OSError."""
    done = os.pwrite(fd, view, offset)
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)

"""Buffers: the size in which data is moved where a whole request cannot be, and zeroes, made and found by memcmp."""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview

BOUNCE_SIZE = 1 << 20
"""Bytes that are moved at a time where a whole request cannot be (zero fallback, copies)."""

ZEROES = bytes(BOUNCE_SIZE)
_ZERO_ARRAY = bytearray(BOUNCE_SIZE)


def is_zero(data: Buffer) -> bool:
    """Whether ``data`` is all zeroes, by memcmp and without copying more than 1 MiB."""
    view = memoryview(data)
    for start in range(0, len(view), BOUNCE_SIZE):
        part = view[start : start + BOUNCE_SIZE]
        # A bytearray on the left compares with memcmp; a memoryview would go byte by byte.
        if (_ZERO_ARRAY if len(part) == BOUNCE_SIZE else _ZERO_ARRAY[: len(part)]) != part:
            return False
    return True


def fill_zero(view: memoryview) -> None:
    """Set ``view`` to zeroes."""
    for start in range(0, len(view), BOUNCE_SIZE):
        size = min(BOUNCE_SIZE, len(view) - start)
        view[start : start + size] = ZEROES[:size] if size < BOUNCE_SIZE else ZEROES

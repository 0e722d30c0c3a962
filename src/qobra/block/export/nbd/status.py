"""Block status: the extents of a range in each metadata context that a client selected."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qobra.block.export.nbd import CONTEXT_ID_ALLOCATION, CONTEXT_ID_BITMAPS, CONTEXT_ID_DEPTH
from qobra.block.extents import ABSENT, ALLOCATED, UNALLOCATED, ZERO, resolve
from qobra.nbd import protocol as p

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qobra.block.bitmap import DirtyBitmap
    from qobra.block.export.nbd import NbdExport
    from qobra.block.node import BlockNode
    from qobra.block.slots import Slot

    Status = Iterator[tuple[int, int]]

FIRST_STEP = 16 << 20
LAST_STEP = 1 << 30
"""Bytes that are resolved in one stay in a slot: twice as many each time, between these."""
PATIENCE_NS = 50_000_000
"""After so long a reply ends with what is known by then; clients ask on from there."""


def block_status(
    export: NbdExport, contexts: dict[int, str], cookie: int, offset: int, length: int, one: bool, slot: Slot
) -> Sequence[bytes]:
    """The reply to a block status request: a chunk for each context, (length, flags) extents from ``offset``."""
    reply = []
    numbers = sorted(contexts)
    inside = max(0, min(length, export.backend.length - offset))
    # Of a node that does whole sectors only, a sector is as a whole what is said of its last byte.
    aligned = export.backend.inserted().request_alignment > 1
    for number in numbers:
        extents = _Extents(one)
        behind = 0
        if number == CONTEXT_ID_ALLOCATION:
            whole = _walk(export, offset, inside, slot, extents, _allocation)
            behind = p.STATE_HOLE | p.STATE_ZERO
        elif number == CONTEXT_ID_DEPTH:
            whole = _walk(export, offset, inside, slot, extents, _depth)
        else:
            with slot:
                whole = _bitmap(export.bitmaps, number - CONTEXT_ID_BITMAPS, offset, inside, extents)
        if whole and inside < length and not (aligned and extents.extend(length - inside)):
            extents.add(length - inside, behind)  # the rest of the last sector
        body = extents.pack()
        done = p.REPLY_FLAG_DONE if number == numbers[-1] else 0
        header = p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, done, p.CHUNK_BLOCK_STATUS, cookie, p.U32.size + len(body))
        reply.append(header + p.U32.pack(number) + body)
    return reply


class _Extents:
    """Extents as they are found: neighbours merged, their number bounded."""

    def __init__(self, one: bool) -> None:
        self._limit = 1 if one else p.MAX_EXTENTS
        self._lengths: list[int] = []
        self._flags: list[int] = []

    def add(self, length: int, flags: int) -> bool:
        """Append; False if there is no room for it, which ends the reply."""
        if self._flags and self._flags[-1] == flags:
            self._lengths[-1] += length
            return True
        if len(self._flags) >= self._limit:
            return False
        self._lengths.append(length)
        self._flags.append(flags)
        return True

    def extend(self, length: int) -> bool:
        """What follows is like what is there; False if there is nothing."""
        if not self._lengths:
            return False
        self._lengths[-1] += length
        return True

    def pack(self) -> bytes:
        return b"".join(map(p.EXTENT.pack, self._lengths, self._flags))


def _walk(
    export: NbdExport,
    offset: int,
    length: int,
    slot: Slot,
    extents: _Extents,
    status: Callable[[BlockNode, int, int], Status],
) -> bool:
    """Add the extents of a range, and say whether it was all of it."""
    end = offset + length
    step = FIRST_STEP
    begin_ns = time.monotonic_ns()
    while offset < end:
        size = min(step, end - offset)
        with slot:
            for run_length, flags in status(export.backend.inserted(), offset, size):
                if not extents.add(run_length, flags):
                    return False
        offset += size
        step = min(2 * step, LAST_STEP)
        if time.monotonic_ns() - begin_ns > PATIENCE_NS:
            break
    return offset >= end


def _allocation(node: BlockNode, offset: int, length: int) -> Status:
    for run in resolve(node, offset, length, want_zero=True):
        flags = p.STATE_HOLE | p.STATE_ZERO if run.kind in (ZERO, ABSENT) else 0
        if run.flags & (ALLOCATED | UNALLOCATED):  # as the server says that it is an export of
            flags ^= p.STATE_HOLE
        yield run.length, flags


def _depth(node: BlockNode, offset: int, length: int) -> Status:
    """How many layers lie between the top and the one that has the data: 1 is the top itself, 0 is nowhere."""
    for run in resolve(node, offset, length):
        yield run.length, run.depth + 1


def _bitmap(bitmaps: list[DirtyBitmap], index: int, offset: int, length: int, extents: _Extents) -> bool:
    """Like :func:`_walk`, for a bitmap."""
    if index >= len(bitmaps):  # the export is going
        return extents.add(length, p.STATE_DIRTY)
    bitmap = bitmaps[index]
    end = offset + length
    while offset < end:
        dirty = bitmap.next_dirty(offset, end)
        if dirty > offset and not extents.add(dirty - offset, 0):
            return False
        clean = bitmap.next_clean(dirty, end) if dirty < end else end
        if clean > dirty and not extents.add(clean - dirty, p.STATE_DIRTY):
            return False
        offset = clean
    return True

"""The general path: whatever is no plain hit of the batch loop, done by the node's own methods.

A request comes in as :class:`Work` and leaves as the list of buffers to send. It takes the slot it is given only
while it works on the node, in bounded steps, so that draining never waits for a client or for a long zeroing.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from qobra.block.buffers import new_buffer
from qobra.block.export.nbd.status import block_status
from qobra.block.extents import ABSENT, COMPUTED, DATA, ZERO, resolve
from qobra.block.node import read_or_zero
from qobra.errors import QobraError, errno_of
from qobra.nbd import protocol as p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qobra.block.export.nbd import NbdExport
    from qobra.block.node import BlockNode
    from qobra.block.slots import Slot

    Buffer = bytes | bytearray | memoryview

STEP = 64 << 20
"""Bytes that are zeroed, trimmed or cached in one stay in a slot."""
_SCRATCH = 1 << 20

_FLAGS = {
    p.CMD_READ: p.CMD_FLAG_DF,
    p.CMD_WRITE: 0,
    p.CMD_FLUSH: 0,
    p.CMD_TRIM: 0,
    p.CMD_CACHE: 0,
    p.CMD_WRITE_ZEROES: p.CMD_FLAG_NO_HOLE | p.CMD_FLAG_FAST_ZERO,
    p.CMD_BLOCK_STATUS: p.CMD_FLAG_REQ_ONE,
}
"""The flags that each command knows beside FUA, which is valid with all of them."""
_FAILURES = {
    p.CMD_READ: "reading from file failed",
    p.CMD_WRITE: "writing to file failed",
    p.CMD_FLUSH: "flush failed",
    p.CMD_TRIM: "discard failed",
    p.CMD_CACHE: "caching data failed",
    p.CMD_WRITE_ZEROES: "writing to file failed",
    p.CMD_BLOCK_STATUS: "unable to get block status",
}


class Work(NamedTuple):
    """One request as it came in; ``payload`` is a write's data."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: Buffer = b""

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes."""
        return self.length if self.command in (p.CMD_READ, p.CMD_WRITE) else 0


class Requests:
    """What one connection negotiated, applied to requests. Thread-safe: each call works in the slot that it gets."""

    def __init__(self, export: NbdExport, *, structured: bool, contexts: dict[int, str]) -> None:
        self._export = export
        self._backend = export.backend
        self._structured = structured
        self._contexts = contexts

    def perform(self, work: Work, slot: Slot) -> Sequence[Buffer]:
        """Do ``work`` and return the reply. ``slot`` is idle; it is entered as needed and left."""
        try:
            problem = self._problem(work)
            if problem is not None:
                return self.error(work, *problem)
            return self._do(work, slot)
        except (OSError, QobraError) as error:
            return self.error(work, errno_of(error), _FAILURES.get(work.command, "request failed"))
        except MemoryError:
            return self.error(work, errno.ENOMEM, "out of memory")

    def error(self, work: Work, number: int, text: str) -> Sequence[Buffer]:
        """The reply that ``work`` failed."""
        number = p.wire_error(number)
        if not self._structured:
            return (p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, number, work.cookie),)
        message = text.encode()[: p.MAX_STRING]
        header = p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, p.REPLY_FLAG_DONE, p.CHUNK_ERROR, work.cookie, 6 + len(message))
        return (header + p.ERROR_BODY.pack(number, len(message)) + message,)

    def _problem(self, work: Work) -> tuple[int, str] | None:
        """Why ``work`` cannot be done, or None."""
        command, length = work.command, work.length
        known = _FLAGS.get(command)
        if known is None:
            return errno.EINVAL, f"invalid request type ({command}) received"
        name = p.COMMAND_NAMES[command]
        if not self._structured:
            known &= ~p.CMD_FLAG_DF
        if work.flags & ~(known | p.CMD_FLAG_FUA):
            return errno.EINVAL, f"unsupported flags for command {name} (got 0x{work.flags:x})"
        if command == p.CMD_FLUSH:
            return None
        if command in (p.CMD_READ, p.CMD_WRITE, p.CMD_CACHE) and length > p.MAX_PAYLOAD:
            return errno.EINVAL, f"len ({length} ) is larger than max len ({p.MAX_PAYLOAD})"
        writes = command in (p.CMD_WRITE, p.CMD_WRITE_ZEROES, p.CMD_TRIM)
        if writes and not self._export.writable:
            return errno.EPERM, "Export is read-only"
        size = self._export.size
        if work.offset + length > size:
            number = errno.ENOSPC if command in (p.CMD_WRITE, p.CMD_WRITE_ZEROES) else errno.EINVAL
            return number, f"operation past EOF; From: {work.offset}, Len: {length}, Size: {size}"
        if command == p.CMD_BLOCK_STATUS:
            if not length:
                return errno.EINVAL, "need non-zero length"
            if not self._contexts:
                return errno.EINVAL, "CMD_BLOCK_STATUS not negotiated"
        return None

    def _do(self, work: Work, slot: Slot) -> Sequence[Buffer]:
        command, offset, length = work.command, work.offset, work.length
        if command == p.CMD_READ:
            return self._read(work, slot)
        if command == p.CMD_BLOCK_STATUS:
            one = bool(work.flags & p.CMD_FLAG_REQ_ONE)
            return block_status(self._export, self._contexts, work.cookie, offset, length, one, slot)
        fua = bool(work.flags & p.CMD_FLAG_FUA) or (self._export.writethrough and command != p.CMD_FLUSH)
        if command == p.CMD_WRITE:
            with slot:
                node = self._backend.inserted()
                node.write(offset, _inside(node, offset, work.payload), fua=fua)
        elif command == p.CMD_FLUSH:
            with slot:
                self._backend.inserted().flush()
        else:
            self._do_long(work, fua, slot)
        return (p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, work.cookie),)

    def _do_long(self, work: Work, fua: bool, slot: Slot) -> None:
        """A request without payload may be gigabytes long: step by step, so that others can have the node."""
        offset, end = work.offset, work.offset + work.length
        while offset < end:
            size = min(STEP - offset % STEP, end - offset)
            with slot:
                node = self._backend.inserted()
                step, size = size, max(0, min(size, node.length - offset))  # there are zeroes behind the end
                if work.command == p.CMD_WRITE_ZEROES:
                    node.write_zeroes(
                        offset,
                        size,
                        may_unmap=not work.flags & p.CMD_FLAG_NO_HOLE,
                        no_fallback=bool(work.flags & p.CMD_FLAG_FAST_ZERO),
                    )
                elif work.command == p.CMD_TRIM:
                    node.discard(offset, size)
                else:
                    _cache(node, offset, size)
            offset += step
        if fua and work.command != p.CMD_CACHE:
            with slot:
                self._backend.inserted().flush()

    def _read(self, work: Work, slot: Slot) -> Sequence[Buffer]:
        cookie, offset, length = work.cookie, work.offset, work.length
        if not self._structured:
            data = new_buffer(length)
            with slot:
                read_or_zero(self._backend.inserted(), offset, memoryview(data))
            return (p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, cookie), data)
        if not length:
            return (p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, p.REPLY_FLAG_DONE, p.CHUNK_NONE, cookie, 0),)
        with slot:
            node = self._backend.inserted()
            pieces = [(offset, length, False)] if work.flags & p.CMD_FLAG_DF else _pieces(node, offset, length)
            data = new_buffer(sum(size for _start, size, hole in pieces if not hole))
            view = memoryview(data)
            position = 0
            for start, size, hole in pieces:
                if not hole:
                    read_or_zero(node, start, view[position : position + size])
                    position += size
        reply: list[Buffer] = []
        position = 0
        for start, size, hole in pieces:
            done = p.REPLY_FLAG_DONE if start + size == offset + length else 0
            if hole:
                header = p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, done, p.CHUNK_OFFSET_HOLE, cookie, p.HOLE_BODY.size)
                reply.append(header + p.HOLE_BODY.pack(start, size))
            else:
                reply.append(
                    p.CHUNK_DATA.pack(p.STRUCTURED_REPLY_MAGIC, done, p.CHUNK_OFFSET_DATA, cookie, size + 8, start)
                )
                reply.append(view[position : position + size])
                position += size
        return reply


def _pieces(node: BlockNode, offset: int, length: int) -> list[tuple[int, int, bool]]:
    """The range as (offset, length, whether it is a hole), neighbours merged."""
    pieces: list[tuple[int, int, bool]] = []
    inside = max(0, min(length, node.length - offset))
    for run in resolve(node, offset, inside) if inside else ():
        hole = run.kind in (ZERO, ABSENT)
        if pieces and pieces[-1][2] == hole:
            start, size, _hole = pieces[-1]
            pieces[-1] = (start, size + run.length, hole)
        else:
            pieces.append((run.start, run.length, hole))
    if inside < length:
        pieces.append((offset + inside, length - inside, False))
    return pieces


def _inside(node: BlockNode, offset: int, data: Buffer) -> Buffer:
    """``data`` without what lies in the last sector behind the end of the node, which has to be zeroes."""
    inside = max(0, node.length - offset)
    if inside >= len(data):
        return data
    if any(data[inside:]):
        raise OSError(errno.ENOSPC, "Write behind the end of the node")
    return data[:inside]


def _cache(node: BlockNode, offset: int, length: int) -> None:
    """Have ``length`` bytes read ahead; where the node computes them, reading is what caches (copy-on-read)."""
    scratch: memoryview | None = None
    for run in resolve(node, offset, length) if length else ():
        if run.kind == DATA and run.leaf is not None and run.leaf.is_leaf:
            os.posix_fadvise(run.leaf.fd, run.offset, run.length, os.POSIX_FADV_WILLNEED)
        elif run.kind == COMPUTED:
            scratch = scratch or memoryview(new_buffer(_SCRATCH))
            for start in range(run.start, run.start + run.length, _SCRATCH):
                node.read_into(start, scratch[: min(_SCRATCH, run.start + run.length - start)])

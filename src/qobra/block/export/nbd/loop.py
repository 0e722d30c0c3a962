"""The batch loop of a connection: everything between two system calls on the socket, done at once.

A batch is every complete request in the receive buffer. Plain hits (the bytes lie raw in a file's page cache, or the
write goes to space that is there already) are served where they are found: resolved through the root's flat table, read
straight into the reply arena, and the whole arena is sent with one call. Everything else is put aside and done
after the batch's slot was left: reads that would wait for the disk in order, with all of them read ahead at once; other
requests by their node's own methods, in this thread while they are quick and by a helper when they have been slow.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from qobra.block.copy.chunk import CopyFailed
from qobra.block.export.nbd.inbox import LONGEST_INLINE, Inbox
from qobra.block.export.nbd.places import PAGE_MASK, never_waits, resolved
from qobra.block.export.nbd.requests import Work
from qobra.block.table import PAGE_BITS, note_writes
from qobra.errors import QobraError
from qobra.nbd import protocol as p

if TYPE_CHECKING:
    from qobra.block.export.nbd.connection import Connection
    from qobra.block.export.nbd.places import Pieces
    from qobra.block.slots import Slot
    from qobra.block.table import ResolvedTable

ARENA_SIZE = 4 << 20
_ARENA_START = 48
LONGEST_HIT = 2 << 20
"""Longer reads take the general path, in memory of their own."""
PROMPT_BYTES = 256 << 10
PROMPT_NS = 200_000
"""After so much, or so long, replies that are ready are sent before the next request is begun."""

_REQUEST = p.REQUEST.size
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_ZEROES = memoryview(bytes(64 << 10))


class Loop:
    """The pure form, and what the compiled one leaves to Python."""

    def __init__(self, connection: Connection, slot: Slot) -> None:
        self.connection = connection
        self.slot = slot
        self.backend = connection.export.backend
        self.inbox = Inbox(connection.transport)
        # Anonymous memory, unlike a bytearray, takes up room only where it has been used. The first reply's data are to
        # begin no less than 32 bytes after the boundary of a page: see :func:`new_buffer`.
        self.arena = memoryview(mmap.mmap(-1, ARENA_SIZE + _ARENA_START))[_ARENA_START:]
        self._again = False
        """Whether there is something to do before more is received."""
        self._cold: deque[Work] = deque()
        self._aside: list[Work] = []
        self._long_write: Work | None = None
        self._nowait: dict[int, int] = {}
        """Flags for preadv by file descriptor, where they were found not to be RWF_NOWAIT."""
        self._generation = -1

    def batch(self) -> bool:
        """Receive and serve one batch; False when the client has left."""
        if not self._again and not self._receive():
            return False
        self._again = False
        long_write, self._long_write = self._long_write, None
        if long_write is not None:
            long_write = long_write._replace(payload=self._receive_payload(long_write))
        self.slot.enter()
        try:
            table = self.backend.table()
            if table.generation != self._generation:
                self._generation = table.generation
                self._nowait.clear()  # the same number may be another file now
            position = 0 if long_write is None else self._write_long(table, long_write)
            position, going_on = self._serve_hits(table, position)
        finally:
            self.slot.leave()
        self._finish(position)
        return going_on

    def _finish(self, position: int) -> None:
        """Send the replies that are in the arena, and do what was put aside."""
        if position:
            self._send(position)
        if self._aside:
            self._serve_aside()

    # The hot part -----------------------------------------------------------------------------------------------------

    def _serve_hits(self, table: ResolvedTable, position: int) -> tuple[int, bool]:
        """Serve the batch's plain hits into the arena from ``position`` on; (its end, whether the client stays)."""
        connection = self.connection
        export = connection.export
        structured = connection.structured
        unknown_flags = ~p.CMD_FLAG_DF if structured else -1
        size = self.backend.length
        bits = table.unit_bits
        unit = 1 << bits
        mask = unit - 1
        pages = table.pages
        fds = table.fds
        linear = table.linear
        folios = table.folios
        fd, base, small = linear if linear is not None else (-1, 0, None)
        writable = export.writable and table.writable and not export.writethrough
        inbox, arena = self.inbox, self.arena
        buffer, view, start, end = inbox.buffer, inbox.view, inbox.start, inbox.end
        nowait = self._nowait
        unpack, pack_reply, pack_chunk = p.REQUEST.unpack_from, p.SIMPLE_REPLY.pack_into, p.CHUNK_DATA.pack_into
        preadv, pwrite = os.preadv, os.pwrite
        marked, keeps = bool(table.marks), bool(table.keepers)
        aside = self._aside
        going_on = True
        written = 0  # the end of the highest write
        while end - start >= _REQUEST:
            magic, flags, command, cookie, offset, length = unpack(buffer, start)
            if magic != p.REQUEST_MAGIC:
                raise QobraError(f"invalid magic (got 0x{magic:x})")
            if command == 0:
                if not 0 < length <= LONGEST_HIT or offset + length > size or flags & unknown_flags:
                    start += _REQUEST
                    aside.append(Work(command, flags, cookie, offset, length))
                    continue
                if position + length > ARENA_SIZE - 64:
                    self._again = True
                    break
                start += _REQUEST
                if structured:
                    pack_chunk(arena, position, p.STRUCTURED_REPLY_MAGIC, 1, 1, cookie, length + 8, offset)
                    data = position + 28
                else:
                    pack_reply(arena, position, p.SIMPLE_REPLY_MAGIC, 0, cookie)
                    data = position + 16
                after = data + length
                if linear is None:
                    number = offset >> bits
                    page = pages.get(number >> PAGE_BITS)
                    entry = page[number & PAGE_MASK] if page is not None else 0
                    inside = offset & mask
                    if entry > 1 and inside + length <= unit:
                        fd = fds[entry >> 1 & 255]
                        host = (entry & -512) + inside
                    elif entry == 1 and structured and not flags and inside + length <= unit:
                        pack_chunk(
                            arena, position, p.STRUCTURED_REPLY_MAGIC, 1, p.CHUNK_OFFSET_HOLE, cookie, 12, offset
                        )
                        p.U32.pack_into(arena, data, length)
                        position = data + 4
                        continue
                    else:
                        if self._read_pieces(table, Work(command, flags, cookie, offset, length), data):
                            position = after
                        continue
                else:
                    host = offset + base
                try:
                    if preadv(fd, (arena[data:after],), host, nowait.get(fd, _NOWAIT)) == length:
                        position = after
                        continue
                except BlockingIOError:
                    pass
                except OSError:
                    self._note_failure(fd)
                    aside.append(Work(command, flags, cookie, offset, length))
                    continue
                self._read_ahead(Work(command, flags, cookie, offset, length), [(fd, host, length)])
            elif command == 1:
                need = _REQUEST + length
                if end - start < need:
                    if need > LONGEST_INLINE:
                        self._long_write = Work(command, flags, cookie, offset, length)
                        self._again = True
                    break
                payload = view[start + _REQUEST : start + need]
                start += need
                if writable and not flags and length and offset + length <= size:
                    if linear is None:
                        number = offset >> bits
                        page = pages.get(number >> PAGE_BITS)
                        entry = page[number & PAGE_MASK] if page is not None else 0
                        inside = offset & mask
                        if entry & 1 and entry > 1 and inside + length <= unit and not keeps:
                            fd, small = fds[entry >> 1 & 255], folios[entry >> 1 & 255]
                            host = (entry & -512) + inside
                        elif self._write_pieces(table, offset, payload):
                            written = max(written, offset + length)
                            pack_reply(arena, position, p.SIMPLE_REPLY_MAGIC, 0, cookie)
                            position += 16
                            continue
                        else:
                            fd = -1
                    else:
                        host = offset + base
                    if fd >= 0:
                        try:
                            count = small.write(payload, host) if small is not None else pwrite(fd, payload, host)
                            if marked:
                                table.mark(offset, length)
                            if count == length:
                                written = max(written, offset + length)
                                pack_reply(arena, position, p.SIMPLE_REPLY_MAGIC, 0, cookie)
                                position += 16
                                continue
                        except OSError:
                            pass  # the general path finds out what is wrong, and says so
                aside.append(Work(command, flags, cookie, offset, length, payload))
            elif command == p.CMD_DISC:
                going_on = False
                break
            else:
                start += _REQUEST
                aside.append(Work(command, flags, cookie, offset, length))
            if position > ARENA_SIZE - 64:
                self._again = True
                break
        inbox.start = start
        if written:
            note_writes(self.backend.inserted(), written)
        return position, going_on

    def _read_pieces(self, table: ResolvedTable, work: Work, data: int) -> bool:
        """Read a range of several units, or one not seen before, into the arena at ``data``.

        False if it could not be done at once; it is then put where it is done later.
        """
        pieces = resolved(table, work.offset, work.length, to_write=False)
        if pieces is None:
            self._aside.append(work)
            return False
        view = self.arena[data : data + work.length]
        may_send_holes = self.connection.structured and not work.flags
        done = 0
        fd = -1
        try:
            for fd, host, size in pieces:
                if fd < 0:
                    if may_send_holes:
                        self._aside.append(work)  # the reply has holes
                        return False
                    _fill_zero(view[done : done + size])
                elif os.preadv(fd, (view[done : done + size],), host, self._nowait.get(fd, _NOWAIT)) != size:
                    self._read_ahead(work, pieces)
                    return False
                done += size
        except BlockingIOError:
            self._read_ahead(work, pieces)
            return False
        except OSError:
            self._note_failure(fd)
            self._aside.append(work)
            return False
        return True

    def _write_pieces(self, table: ResolvedTable, offset: int, payload: memoryview) -> bool:
        """Write where there is space already; False if that could not be done for all of it."""
        pieces = resolved(table, offset, len(payload), to_write=True)
        if pieces is None or not _keeps(table, offset, len(payload)):
            return False
        done = 0
        try:
            for fd, host, size in pieces:
                if os.pwrite(fd, payload[done : done + size], host) != size:
                    return False
                done += size
        except OSError:
            return False
        finally:
            table.mark(offset, len(payload))
        return True

    def _write_long(self, table: ResolvedTable, work: Work) -> int:
        """Do a write that had to be received apart; the end of the reply in the arena, 0 if there is none yet."""
        if self._write_plain(table, work):
            p.SIMPLE_REPLY.pack_into(self.arena, 0, p.SIMPLE_REPLY_MAGIC, 0, work.cookie)
            return p.SIMPLE_REPLY.size
        self._aside.append(work)
        return 0

    def _write_plain(self, table: ResolvedTable, work: Work) -> bool:
        """Do a write past the nodes' methods; False if that cannot be."""
        export = self.connection.export
        end = work.offset + work.length
        if not (export.writable and table.writable and not export.writethrough and not work.flags and work.length):
            return False
        if end > self.backend.length or not self._write_pieces(table, work.offset, memoryview(work.payload)):
            return False
        note_writes(self.backend.inserted(), end)
        return True

    def _note_failure(self, fd: int) -> None:
        """A read said that it cannot be done without waiting because the file system does not know waiting."""
        if fd not in self._nowait:
            self._nowait[fd] = 0 if never_waits(fd) else _NOWAIT

    # Off the hot part -------------------------------------------------------------------------------------------------

    def _read_ahead(self, work: Work, pieces: Pieces) -> None:
        """The data are not in memory: begin to read them, and serve the request once nothing else is waiting."""
        for fd, host, size in pieces:
            if fd >= 0:
                os.posix_fadvise(fd, host, size, os.POSIX_FADV_WILLNEED)
        self._cold.append(work)

    def _serve_cold(self) -> None:
        """Serve the oldest cold read, waiting for the disk, and those behind it that are in memory by then."""
        position = 0
        self.slot.enter()
        try:
            table = self.backend.table()
            while self._cold and position + self._cold[0].length < ARENA_SIZE - 64:
                end = self._read_cold(table, position, may_wait=not position)
                if not end:
                    break
                position = end
        finally:
            self.slot.leave()
        self._finish(position)

    def _read_cold(self, table: ResolvedTable, position: int, *, may_wait: bool) -> int:
        """Read the oldest cold request into the arena at ``position``; the end of its reply, 0 if there is none yet."""
        work = self._cold[0]
        pieces = resolved(table, work.offset, work.length, to_write=False)
        data = self._begin_read_reply(position, work)
        done = 0
        try:
            for fd, host, size in pieces or ():
                view = self.arena[data + done : data + done + size]
                if fd < 0:
                    _fill_zero(view)
                elif os.preadv(fd, (view,), host, 0 if may_wait else self._nowait.get(fd, _NOWAIT)) != size:
                    break
                done += size
        except BlockingIOError:
            return 0
        except OSError:
            done = -1
        if done != work.length and not may_wait:
            return 0
        self._cold.popleft()
        if done == work.length:
            return data + done
        self._aside.append(work)  # moved meanwhile, or an error: the general path finds out
        return 0

    def _begin_read_reply(self, position: int, work: Work) -> int:
        """Write the header of a read's reply into the arena; where its data begin."""
        if self.connection.structured:
            magic, length = p.STRUCTURED_REPLY_MAGIC, work.length + 8
            p.CHUNK_DATA.pack_into(self.arena, position, magic, 1, 1, work.cookie, length, work.offset)
            return position + p.CHUNK_DATA.size
        p.SIMPLE_REPLY.pack_into(self.arena, position, p.SIMPLE_REPLY_MAGIC, 0, work.cookie)
        return position + p.SIMPLE_REPLY.size

    def _serve_aside(self) -> None:
        """Do what was put aside: here, or by a helper where that has taken long."""
        connection = self.connection
        ready: list[bytes | bytearray | memoryview] = []
        held = 0
        begin_ns = time.monotonic_ns()
        alone = len(self._aside) == 1
        for work in self._aside:
            if connection.is_slow(work.command, alone):
                connection.hand_over(work)
                continue
            for part in connection.perform(work, self.slot):
                ready.append(part)
                held += len(part)
            now_ns = time.monotonic_ns()
            if held > PROMPT_BYTES or now_ns - begin_ns > PROMPT_NS:
                connection.send(ready)
                ready, held, begin_ns = [], 0, now_ns
        self._aside.clear()
        if ready:
            connection.send(ready)

    def _receive(self) -> bool:
        """Get more bytes, serving cold reads until there are some; False at the end of the stream."""
        while self._cold:
            count = self.inbox.receive_now()
            if count >= 0:
                return count > 0
            self._serve_cold()
        return self.inbox.receive() > 0

    def _receive_payload(self, work: Work) -> memoryview:
        if work.length > p.MAX_PAYLOAD:
            self.connection.send(self.connection.requests.perform(work, self.slot))
            raise QobraError(f"len ({work.length} ) is larger than max len ({p.MAX_PAYLOAD})")
        return self.inbox.take_payload(work.length)

    def _send(self, length: int) -> None:
        self.connection.send((self.arena[:length],))


def _keeps(table: ResolvedTable, offset: int, length: int) -> bool:
    """Whether a range may be written past the nodes, after what is there was kept for whoever copies it."""
    try:
        return not table.keepers or table.keep(offset, length)
    except CopyFailed:
        return False  # the general path says what is wrong


def _fill_zero(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROES)):
        part = min(len(_ZEROES), len(view) - start)
        view[start : start + part] = _ZEROES[:part]

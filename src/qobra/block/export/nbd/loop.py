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
from qobra.block.export.nbd.places import never_waits, resolved, unit_place
from qobra.block.export.nbd.requests import Work
from qobra.block.export.placement import Placement
from qobra.errors import QobraError
from qobra.nbd import protocol as p

if TYPE_CHECKING:
    from qobra.block.export.nbd.connection import Connection
    from qobra.block.export.nbd.places import Pieces
    from qobra.block.slots import Slot
    from qobra.block.table import ResolvedTable

ARENA_SIZE = 4 << 20
"""Bytes of replies that are sent at a time."""
_ARENA_START = 48
_FULL = ARENA_SIZE - 64
"""Where the last reply's header begins at most; there is room behind it for the longest one."""
LONGEST_HIT = 2 << 20
"""Longer reads take the general path, in memory of their own."""
PROMPT_BYTES = 256 << 10
PROMPT_NS = 200_000
"""After so much, or so long, replies that are ready are sent before the next request is begun."""

_REQUEST = p.REQUEST.size
_READ, _WRITE = p.CMD_READ, p.CMD_WRITE
_unpack_request = p.REQUEST.unpack_from
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
        self._placement = Placement()
        self._generation = -1
        self._size = 0
        """The length of the disk, while a batch is served."""
        self._read_flags = p.CMD_FLAG_DF if connection.structured else 0
        """The flags of a read that is no reason to put it aside."""
        self._may_write = connection.export.writable and not connection.export.writethrough

    def close(self) -> None:
        """Let go of what the loop holds outside Python."""

    def batch(self) -> bool:
        """Receive and serve one batch; False when the client has left."""
        self._placement.look()
        if not self._again and not self._receive():
            return False
        self._again = False
        long_write, self._long_write = self._long_write, None
        payload = self._receive_payload(long_write) if long_write is not None else None
        position = 0
        self.slot.enter()
        try:
            table = self._begin_batch()
            if long_write is not None and payload is not None:
                position = self._write(table, long_write.flags, long_write.cookie, long_write.offset, payload, 0)
            position, stays = self._serve_received(table, position)
        finally:
            self.slot.leave()
        self._finish(position)
        return stays

    def _begin_batch(self) -> ResolvedTable:
        """The table, once the slot was entered."""
        table = self.backend.table()
        self._size = self.backend.length
        if table.generation != self._generation:
            self._generation = table.generation
            self._nowait.clear()  # the same number may be another file now
        return table

    def _finish(self, position: int) -> None:
        """Send the replies that are in the arena, and do what was put aside."""
        if position:
            self._send(position)
        if self._aside:
            self._serve_aside()

    # Plain hits -------------------------------------------------------------------------------------------------------

    def _serve_received(self, table: ResolvedTable, position: int) -> tuple[int, bool]:
        """Serve the requests that were received, with replies in the arena from ``position`` on.

        Stops at one that was not received in full, and where the arena is full. Returns where the replies end, and
        whether the client stays. Raises QobraError when the client breaks the protocol.
        """
        inbox = self.inbox
        buffer, start, end = inbox.buffer, inbox.start, inbox.end
        stays = True
        while end - start >= _REQUEST:
            magic, flags, command, cookie, offset, length = _unpack_request(buffer, start)
            if magic != p.REQUEST_MAGIC:
                raise QobraError(f"invalid magic (got 0x{magic:x})")
            if position + (length if command == _READ and length <= LONGEST_HIT else 0) > _FULL:
                self._again = True
                break
            after = start + _REQUEST
            if command == _READ:
                position = self._read(table, flags, cookie, offset, length, position)
            elif command == _WRITE:
                after += length
                if after > end:
                    if _REQUEST + length > LONGEST_INLINE:
                        self._long_write = Work(command, flags, cookie, offset, length)
                        self._again = True
                    break
                position = self._write(table, flags, cookie, offset, inbox.view[after - length : after], position)
            elif command == p.CMD_DISC:
                stays = False
                break
            else:
                self._aside.append(Work(command, flags, cookie, offset, length))
            start = after
        inbox.start = start
        return position, stays

    def _read(self, table: ResolvedTable, flags: int, cookie: int, offset: int, length: int, position: int) -> int:
        """Read into the arena, with the reply's header at ``position``, or put the request where it is done later.

        Returns where the replies in the arena end then.
        """
        if (
            not 0 < length <= LONGEST_HIT
            or offset + length > self._size
            or flags & ~self._read_flags
            or position + length > _FULL
        ):
            self._aside.append(Work(_READ, flags, cookie, offset, length))
            return position
        fd, host = unit_place(table, offset, length, to_write=False)
        if fd < 0:
            return self._read_pieces(table, Work(_READ, flags, cookie, offset, length), position)
        data = self._begin_read_reply(position, cookie, offset, length)
        try:
            if os.preadv(fd, (self.arena[data : data + length],), host, self._nowait.get(fd, _NOWAIT)) == length:
                return data + length
        except BlockingIOError:
            pass
        except OSError:
            self._note_failure(fd)
            self._aside.append(Work(_READ, flags, cookie, offset, length))
            return position
        self._read_ahead(Work(_READ, flags, cookie, offset, length), [(fd, host, length)])
        return position

    def _read_pieces(self, table: ResolvedTable, work: Work, position: int) -> int:
        """:meth:`_read` for a range of several units, for zeroes, and for what the table does not know yet."""
        pieces = resolved(table, work.offset, work.length, to_write=False)
        if pieces is None:
            self._aside.append(work)
            return position
        if self.connection.structured and not work.flags and any(fd < 0 for fd, _host, _size in pieces):
            if len(pieces) == 1:
                return self._put_hole(position, work)
            self._aside.append(work)  # the reply has several parts
            return position
        done = self._begin_read_reply(position, work.cookie, work.offset, work.length)
        fd = -1
        try:
            for fd, host, size in pieces:
                view = self.arena[done : done + size]
                if fd < 0:
                    _fill_zero(view)
                elif os.preadv(fd, (view,), host, self._nowait.get(fd, _NOWAIT)) != size:
                    self._read_ahead(work, pieces)
                    return position
                done += size
        except BlockingIOError:
            self._read_ahead(work, pieces)
            return position
        except OSError:
            self._note_failure(fd)
            self._aside.append(work)
            return position
        return done

    def _begin_read_reply(self, position: int, cookie: int, offset: int, length: int) -> int:
        """Write the header of a read's reply into the arena; where its data begin."""
        if self.connection.structured:
            magic, done, kind = p.STRUCTURED_REPLY_MAGIC, p.REPLY_FLAG_DONE, p.CHUNK_OFFSET_DATA
            p.CHUNK_DATA.pack_into(self.arena, position, magic, done, kind, cookie, length + 8, offset)
            return position + p.CHUNK_DATA.size
        p.SIMPLE_REPLY.pack_into(self.arena, position, p.SIMPLE_REPLY_MAGIC, 0, cookie)
        return position + p.SIMPLE_REPLY.size

    def _put_hole(self, position: int, work: Work) -> int:
        """Reply that all of a range reads as zeroes; where the reply ends."""
        header = p.STRUCTURED_REPLY_MAGIC, p.REPLY_FLAG_DONE, p.CHUNK_OFFSET_HOLE, work.cookie, p.HOLE_BODY.size
        p.CHUNK.pack_into(self.arena, position, *header)
        p.HOLE_BODY.pack_into(self.arena, position + p.CHUNK.size, work.offset, work.length)
        return position + p.CHUNK.size + p.HOLE_BODY.size

    def _note_failure(self, fd: int) -> None:
        """A read said that it cannot be done without waiting because the file system does not know waiting."""
        if fd not in self._nowait:
            self._nowait[fd] = 0 if never_waits(fd) else _NOWAIT

    def _write(
        self, table: ResolvedTable, flags: int, cookie: int, offset: int, payload: memoryview, position: int
    ) -> int:
        """Write past the nodes, with the reply at ``position``, or put the request aside; where the replies end."""
        length = len(payload)
        is_plain = self._may_write and table.writable and not flags and length and position <= _FULL
        if is_plain and offset + length <= self._size and self._write_past_nodes(table, offset, payload):
            p.SIMPLE_REPLY.pack_into(self.arena, position, p.SIMPLE_REPLY_MAGIC, 0, cookie)
            return position + p.SIMPLE_REPLY.size
        # The general path finds out what is wrong, and says so.
        self._aside.append(Work(_WRITE, flags, cookie, offset, length, payload))
        return position

    def _write_past_nodes(self, table: ResolvedTable, offset: int, payload: memoryview) -> bool:
        """Write where there is space already; False if that could not be done for all of it."""
        length = len(payload)
        fd, host = unit_place(table, offset, length, to_write=True)
        pieces = [(fd, host, length)] if fd >= 0 else resolved(table, offset, length, to_write=True)
        if pieces is None or not _keeps(table, offset, length):
            return False
        # Beside who keeps old data, writes are slow for other reasons than folios, which would be split in vain.
        small = table.folios if not table.keepers else {}
        done = 0
        try:
            for fd, host, size in pieces:
                part, folios = payload[done : done + size], small.get(fd)
                if (folios.write(part, host) if folios is not None else os.pwrite(fd, part, host)) != size:
                    return False
                done += size
        except OSError:
            return False
        finally:
            table.mark(offset, length)
        table.highest = max(table.highest, offset + length)
        return True

    # What has to wait -------------------------------------------------------------------------------------------------

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
            while self._cold and position + self._cold[0].length < _FULL:
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
        data = self._begin_read_reply(position, work.cookie, work.offset, work.length)
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

"""Parse what the server answers, and put it where the request wants it.

Nothing that the server says is believed before it is checked against the request that it answers: lengths against
what was asked for, so memory is bounded by the requests in flight, and every chunk has to bring the request nearer
to its end, so that a stream of chunks ends.

Reading waits, or it does not (:meth:`ReplyReader.take_in`): then a reply whose head is not all here yet is begun again
when more has arrived, and data go on where they stopped.
"""

from __future__ import annotations

import errno
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.request import StatusExtent
from qobra.nbd.transport import Disconnected

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.nbd.request import AnyRequest
    from qobra.nbd.transport import Transport

_BUFFER = 64 << 10
_MAGIC = Struct(">I")
_SIMPLE_REST = Struct(">IQ")
_CHUNK_REST = Struct(">HHQI")
_MAX_HEAD = 64 + p.MAX_STRING
"""More than the longest reply takes before data of any length: an error and its text."""
_MOST_EXTENTS = p.MAX_EXTENTS * 16
"""Extents of all contexts that one request may be answered with."""
_MAX_ERRORS = 256
"""Error chunks that one request may be answered with."""


class ReplyReader:
    """Reads replies from ``transport`` and completes the requests of ``pending``. One thread at a time."""

    def __init__(
        self,
        transport: Transport,
        pending: dict[int, AnyRequest],
        *,
        structured: bool,
        contexts: dict[int, str],
    ) -> None:
        self._transport = transport
        self._pending = pending
        self._structured = structured
        self._contexts = contexts
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0
        self._begin = 0
        """Where in the buffer the reply begins that is being read."""
        self._unfilled = memoryview(b"")
        """What is still to come of a reply's data."""
        self._then: Callable[[], None] = _nothing
        """What is to be done with them."""
        self._waits = True
        self._errors: dict[int, int] = {}

    def read_one(self) -> None:
        """Take in one reply or chunk, waiting for it. Raises QobraError when the connection is no longer usable."""
        if self._unfilled:
            self._go_on_filling()
            return
        self._begin = self._start
        (magic,) = _MAGIC.unpack(self._take(4))
        if magic == p.SIMPLE_REPLY_MAGIC:
            self._simple(*_SIMPLE_REST.unpack(self._take(12)))
        elif magic == p.STRUCTURED_REPLY_MAGIC and self._structured:
            self._chunk(*_CHUNK_REST.unpack(self._take(16)))
        else:
            raise _misbehaved(f"invalid reply magic 0x{magic:08x}")

    def take_in(self) -> bool:
        """Like :meth:`read_one`, but False where that would have to wait; what came of a reply by then is kept."""
        self._waits = False
        try:
            self.read_one()
            return True
        except BlockingIOError:
            if not self._unfilled:
                self._start = self._begin
            return False
        finally:
            self._waits = True

    def _simple(self, error: int, cookie: int) -> None:
        request = self._find(cookie)
        if error:
            request.fail(p.host_error(error), "")
        elif request.command == p.CMD_READ:
            if self._structured:
                raise _misbehaved("simple reply to a read although structured replies were negotiated")
            request.received = request.length
            self._fill(request.view or memoryview(b""), partial(self._finish, cookie, request))
            return
        elif request.command == p.CMD_BLOCK_STATUS:
            raise _misbehaved("simple reply to a block status request")
        self._finish(cookie, request)

    def _chunk(self, flags: int, kind: int, cookie: int, length: int) -> None:
        request = self._find(cookie)
        then: Callable[[], None] = _nothing
        if flags & p.REPLY_FLAG_DONE:
            then = partial(self._finish, cookie, request)
        if kind == p.CHUNK_OFFSET_DATA:
            self._data(request, length, then)
            return
        if kind == p.CHUNK_BLOCK_STATUS:
            self._status(request, length, then)
            return
        if kind == p.CHUNK_OFFSET_HOLE:
            self._hole(request, length)
        elif kind == p.CHUNK_NONE:
            if length or not flags & p.REPLY_FLAG_DONE:
                raise _misbehaved("a chunk of no type that has a payload or is not the last")
        elif kind & p.CHUNK_ERROR_BIT:
            self._error(request, kind, length)
        else:
            raise _misbehaved(f"unknown chunk type {kind}")
        then()

    def _data(self, request: AnyRequest, length: int, then: Callable[[], None]) -> None:
        view = request.view
        if view is None or not 8 < length <= request.length + 8:
            raise _misbehaved(f"{length} bytes of data in answer to a {p.COMMAND_NAMES[request.command]}")
        (offset,) = p.U64.unpack(self._take(8))
        length -= 8
        self._account(request, offset, length)
        begin = offset - request.offset
        self._fill(view[begin : begin + length], then)

    def _hole(self, request: AnyRequest, length: int) -> None:
        view = request.view
        if view is None or length != p.HOLE_BODY.size:
            raise _misbehaved(f"a hole of {length} bytes in answer to a {p.COMMAND_NAMES[request.command]}")
        offset, size = p.HOLE_BODY.unpack(self._take(length))
        self._account(request, offset, size)
        begin = offset - request.offset
        view[begin : begin + size] = bytes(size)
        request.holes.append((offset, size))

    def _account(self, request: AnyRequest, offset: int, length: int) -> None:
        """Refuse data outside the request, and more of them than were asked for."""
        if not length or offset < request.offset or offset + length > request.offset + request.length:
            raise _misbehaved(f"{length} bytes at {offset} in answer to a read of others")
        request.received += length
        if request.received > request.length:
            raise _misbehaved(f"data twice in answer to a read at {request.offset}")

    def _status(self, request: AnyRequest, length: int, then: Callable[[], None]) -> None:
        count, odd = divmod(length - 4, p.EXTENT.size)
        before = sum(map(len, request.extents.values()))
        many = count > _most_extents(request) or before + count > _MOST_EXTENTS
        if request.command != p.CMD_BLOCK_STATUS or odd or count < 1 or many:
            raise _misbehaved(f"{length} bytes of block status in answer to a {p.COMMAND_NAMES[request.command]}")
        (context,) = p.U32.unpack(self._take(4))
        name = self._contexts.get(context)
        if name is None or name in request.extents:
            raise _misbehaved(f"block status of context {context}, which was not selected or came before")
        body = bytearray(length - 4)

        def take() -> None:
            request.extents[name] = _extents(body, request.length)
            then()

        self._fill(memoryview(body), take)

    def _error(self, request: AnyRequest, kind: int, length: int) -> None:
        extra = 8 if kind == p.CHUNK_ERROR_OFFSET else 0
        if not 6 + extra <= length <= 6 + extra + p.MAX_STRING:
            raise _misbehaved(f"an error chunk of {length} bytes")
        body = self._take(length)
        number, said = p.ERROR_BODY.unpack_from(body)
        if not number or said > length - 6 - extra:
            raise _misbehaved("an error chunk without an error, or longer than it is")
        seen = self._errors[request.cookie] = self._errors.get(request.cookie, 0) + 1
        if seen > _MAX_ERRORS:
            raise _misbehaved(f"more than {_MAX_ERRORS} errors for one request")
        request.fail(p.host_error(number), p.visible(bytes(body[6 : 6 + said])))

    def _find(self, cookie: int) -> AnyRequest:
        request = self._pending.get(cookie)
        if request is None:
            raise _misbehaved(f"an answer to request {cookie}, which was not made")
        return request

    def _finish(self, cookie: int, request: AnyRequest) -> None:
        # Gone from `pending` already if the connection is being broken beside us.
        if self._pending.pop(cookie, None) is not None:
            self._errors.pop(cookie, None)
            request.finish()

    def _take(self, length: int) -> memoryview:
        """The next ``length`` bytes, at most the buffer's size; valid until the next call."""
        while self._end - self._start < length:
            if self._begin == self._end or self._begin + _MAX_HEAD > _BUFFER:
                rest = self._end - self._begin
                self._buffer[:rest] = self._buffer[self._begin : self._end]
                self._start, self._end, self._begin = self._start - self._begin, rest, 0
            self._end += self._receive(self._buffer[self._end :])
        self._start += length
        return self._buffer[self._start - length : self._start]

    def _fill(self, view: memoryview, then: Callable[[], None]) -> None:
        """Fill ``view``, then do ``then``; both later if reading does not wait."""
        ready = min(len(view), self._end - self._start)
        view[:ready] = self._buffer[self._start : self._start + ready]
        self._start += ready
        if ready == len(view):
            then()
            return
        self._unfilled, self._then = view[ready:], then
        self._go_on_filling()

    def _go_on_filling(self) -> None:
        while self._unfilled:
            count = self._receive(self._unfilled)
            self._unfilled = self._unfilled[count:]
        then, self._then = self._then, _nothing
        then()

    def _receive(self, view: memoryview) -> int:
        count = self._transport.recv_into(view) if self._waits else self._transport.try_recv_into(view)
        if count is None:
            raise BlockingIOError
        if not count:
            raise Disconnected("The NBD server closed the connection", errno=errno.ESHUTDOWN)
        return count


def _extents(body: bytearray, length: int) -> list[StatusExtent]:
    """The runs that the server told of, which may not be more than ``length`` but for the last."""
    extents = []
    left = length
    for size, flags in p.EXTENT.iter_unpack(body):
        if not size or not left:
            raise _misbehaved("block status with an empty extent, or beyond what was asked for")
        # Only the last extent may say more than was asked for: cut it, so that extents always add up.
        extents.append(StatusExtent(min(size, left), flags))
        left -= min(size, left)
    return extents


def _nothing() -> None:
    """There is more to come of this answer."""


def _most_extents(request: AnyRequest) -> int:
    return min(request.length, p.MAX_EXTENTS * 8)


def _misbehaved(what: str) -> QobraError:
    return QobraError(f"The NBD server broke the protocol: {what}", errno=errno.EPROTO)

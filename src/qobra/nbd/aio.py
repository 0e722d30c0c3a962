"""The client's asyncio face: ``connect``, and calls that are awaited.

::

    async with await qobra.nbd.aio.connect("nbd://server/disk") as disk:
        head, tail = await asyncio.gather(disk.pread(512, 0), disk.pread(512, disk.size - 512))

Everything is done in the event loop's thread but for connecting, which may wait for names to be looked up and for TLS.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
from typing import TYPE_CHECKING, Any, TypeVar

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.connection import negotiate
from qobra.nbd.replies import ReplyReader
from qobra.nbd.submission import LEAVE_SECONDS, MAX_STATUS, WINDOW, Export, Runs, pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from typing import Unpack

    from qobra.nbd.connection import ConnectOptions, Negotiated, Target
    from qobra.nbd.request import AnyRequest, Request
    from qobra.nbd.submission import Status
    from qobra.nbd.transport import Buffer, Transport

_BATCH = 64
"""Replies that are taken in before others in the loop have their turn."""

T = TypeVar("T")


async def connect(target: Target, export: str | None = None, **options: Unpack[ConnectOptions]) -> AsyncClient:
    """Connect to an NBD export; arguments as :func:`qobra.nbd.connect` takes them. Raises QobraError."""
    loop = asyncio.get_running_loop()
    negotiating = loop.run_in_executor(None, lambda: negotiate(target, export, **options))
    try:
        negotiated = await asyncio.shield(negotiating)
    except asyncio.CancelledError:
        negotiating.add_done_callback(_close_unwanted)
        raise
    return AsyncClient(negotiated)


def _close_unwanted(negotiating: asyncio.Future[Negotiated]) -> None:
    if not negotiating.cancelled() and negotiating.exception() is None:
        negotiating.result().transport.close()


async def answered(request: Request[Any]) -> None:
    """Return once ``request`` is answered, well or not."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not future.done():
            future.set_result(None)

    def tell(_request: Request[Any]) -> None:
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            finish()
        else:
            loop.call_soon_threadsafe(finish)

    request.add_done_callback(tell)
    await future


class AsyncLink:
    """The transmission phase of one connection in an event loop."""

    def __init__(self, transport: Transport, *, structured: bool, contexts: dict[int, str]) -> None:
        self.transport = transport
        self.broken: QobraError | None = None
        """Why the connection can no longer be used."""
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, AnyRequest] = {}
        self._cookies = itertools.count(1)
        self._unsent: list[memoryview] = []
        self._heard = 0.0
        """When the server last sent something, or began to owe an answer, in the loop's time."""
        self._watch: asyncio.TimerHandle | None = None
        self._replies = ReplyReader(transport, self._pending, structured=structured, contexts=contexts)
        self._loop.add_reader(transport.socket.fileno(), self._receive)

    @property
    def in_flight(self) -> int:
        """Requests that have not been answered."""
        return len(self._pending)

    def submit(self, request: AnyRequest, flags: int, payload: Sequence[Buffer] = ()) -> None:
        """Send ``request``, or what the socket takes of it now. Raises QobraError when the connection is broken."""
        cookie = request.cookie = next(self._cookies)
        if self.broken is not None:
            raise self.broken.again()
        if not self._pending:
            self._heard = self._loop.time()
        self._pending[cookie] = request
        self._watch_timeout()
        header = p.REQUEST.pack(p.REQUEST_MAGIC, flags, request.command, cookie, request.offset, request.length)
        self._send((header, *payload))

    def wait_for(self, request: AnyRequest, timeout: float | None) -> None:
        """Refuse: whoever waits in the event loop's thread waits for ever."""
        raise QobraError("The request has not been answered; await it", errno=errno.EAGAIN)

    async def disconnect(self) -> None:
        """Let what is in flight be answered, tell the server that no request follows, and close."""
        self.transport.timeout = self.transport.timeout or LEAVE_SECONDS
        self._watch_timeout()
        try:
            while self._pending:
                await answered(next(reversed(self._pending.values())))
            if self.broken is None:
                self._send((p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, 0, 0, 0),))
        except QobraError:
            pass
        self.fail(QobraError("The NBD connection was closed", errno=errno.ESHUTDOWN))
        # The end of a server that belongs to the connection is waited for.
        await self._loop.run_in_executor(None, self.transport.close)

    def fail(self, error: QobraError) -> None:
        """Break the connection: everything in flight fails with ``error``."""
        if self.broken is not None:
            return
        self.broken = error.again()
        self._unsent = []
        if self._watch is not None:
            self._watch.cancel()
        self._loop.remove_reader(self.transport.socket.fileno())
        self._loop.remove_writer(self.transport.socket.fileno())
        self.transport.shutdown()
        while self._pending:
            self._pending.popitem()[1].complete(error.again())

    def _watch_timeout(self) -> None:
        """Break the connection once an answer is due and nothing has come for the transport's timeout."""
        if self._watch is None and self.transport.timeout is not None and self._pending:
            self._watch = self._loop.call_at(self._heard + self.transport.timeout, self._look_at_time)

    def _look_at_time(self) -> None:
        self._watch = None
        timeout = self.transport.timeout
        if self._pending and timeout is not None and self._loop.time() >= self._heard + timeout:
            self.fail(QobraError("The NBD peer did not answer in time", errno=errno.ETIMEDOUT))
        self._watch_timeout()

    def _receive(self) -> None:
        self._heard = self._loop.time()
        try:
            for _ in range(_BATCH):
                if not self._replies.take_in():
                    return
        except QobraError as error:
            self.fail(error)
            return
        if self.broken is None:
            self._loop.call_soon(self._receive)  # what is buffered makes the socket no more readable

    def _send(self, parts: Sequence[Buffer]) -> None:
        waiting = bool(self._unsent)
        self._unsent.extend(self.transport.encode(parts))
        if not waiting:
            self._send_on()
            if self._unsent:
                self._loop.add_writer(self.transport.socket.fileno(), self._send_on)

    def _send_on(self) -> None:
        try:
            self._unsent = self.transport.try_send_raw(self._unsent)
        except QobraError as error:
            self.fail(error)
            return
        if not self._unsent:
            self._loop.remove_writer(self.transport.socket.fileno())


class AsyncClient(Export):
    """One connection to one export, in one event loop. Made by :func:`connect`.

    Calls take any length and split it as the server needs, and raise QobraError with the server's errno. Any number may
    be awaited at a time. A call that is cancelled leaves requests in flight: buffers that it was given are the
    connection's until :attr:`in_flight` says that there are none. The requests of ``aio_`` methods are awaited as well.
    """

    _link: AsyncLink

    def __init__(self, negotiated: Negotiated) -> None:
        structured, contexts = negotiated.structured, negotiated.contexts
        link = AsyncLink(negotiated.transport, structured=structured, contexts=contexts)
        super().__init__(link, negotiated.info, structured=structured, contexts=contexts)
        self._closed = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def pread(self, length: int, offset: int, *, df: bool = False) -> bytearray:
        """Read ``length`` bytes at ``offset``. ``df`` asks for the answer in one chunk."""
        data = bytearray(self._bounded(length, offset))
        await self.pread_into(data, offset, df=df)
        return data

    async def pread_into(self, buffer: bytearray | memoryview, offset: int, *, df: bool = False) -> None:
        """Fill ``buffer`` from ``offset``."""
        view = memoryview(buffer).cast("B")
        await self._gather(
            self.aio_pread_into(view[start : start + length], offset + start, df=df)
            for start, length in pieces(len(view), self._max_payload)
        )

    async def pwrite(self, data: Buffer, offset: int, *, fua: bool = False) -> None:
        """Write ``data`` at ``offset``; ``fua``: return when it is on stable storage."""
        view = memoryview(data).cast("B")
        await self._gather(
            self.aio_pwrite(view[start : start + length], offset + start, fua=fua)
            for start, length in pieces(len(view), self._max_payload)
        )

    async def zero(
        self, length: int, offset: int, *, fua: bool = False, no_hole: bool = False, fast: bool = False
    ) -> None:
        """Make ``length`` bytes read as zero. ``no_hole`` keeps them allocated; ``fast`` fails with ENOTSUP where this
        would be no faster than writing.
        """
        await self._gather(
            self.aio_zero(size, offset + start, fua=fua, no_hole=no_hole, fast=fast)
            for start, size in pieces(length, self._max_length)
        )

    async def trim(self, length: int, offset: int, *, fua: bool = False) -> None:
        """Tell the server that ``length`` bytes are not needed; what they read as afterwards is open."""
        await self._gather(
            self.aio_trim(size, offset + start, fua=fua) for start, size in pieces(length, self._max_length)
        )

    async def cache(self, length: int, offset: int) -> None:
        """Ask the server to read ``length`` bytes ahead."""
        await self._gather(self.aio_cache(size, offset + start) for start, size in pieces(length, self._max_payload))

    async def flush(self) -> None:
        """Return when all writes that were answered before are on stable storage."""
        await self.aio_flush()

    async def block_status(self, length: int, offset: int, *, one: bool = False) -> Status:
        """For each negotiated context, the runs from ``offset`` on: (length, flags), at least one."""
        return await self.aio_block_status(min(length, self._max_length), offset, one=one)

    async def extents(
        self, context: str = p.CONTEXT_BASE_ALLOCATION, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[tuple[int, int, int]]:
        """(offset, length, flags) of ``context`` over a range, all of it, neighbours with the same flags merged."""
        end = self.size if length is None else offset + length
        runs = Runs(context, offset)
        while runs.end < end:
            for run in runs.add(await self.block_status(min(end - runs.end, MAX_STATUS), runs.end)):
                yield run
        for run in runs.last():
            yield run

    async def close(self) -> None:
        """Let what is in flight be answered, then leave. Does nothing the second time.

        A server that owes answers and sends nothing for 30 seconds, or the connection's ``timeout``, is left.
        """
        if not self._closed:
            self._closed = True
            await self._link.disconnect()

    def abort(self) -> None:
        """Break the connection at once; everything in flight fails."""
        self._link.fail(QobraError("The NBD connection was aborted", errno=errno.ESHUTDOWN))

    async def _gather(self, requests: Iterator[Request[Any]]) -> None:
        """Wait for all of ``requests``, which sends them as they are drawn, some in flight; raise the first error."""
        window: list[Request[Any]] = []
        failure: QobraError | None = None
        try:
            for request in requests:
                window.append(request)
                if len(window) >= WINDOW:
                    await window.pop(0)
        except QobraError as error:
            failure = error
        for request in window:
            # Also after a failure: the caller's buffer must not be written to once we have returned.
            try:
                await request
            except QobraError as error:
                failure = failure or error
        if failure is not None:
            raise failure.again()

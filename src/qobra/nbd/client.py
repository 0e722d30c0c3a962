"""A connection to an NBD export: positioned reads and writes, one at a time or many in flight."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeVar

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.link import Link
from qobra.nbd.submission import LEAVE_SECONDS, MAX_STATUS, WINDOW, Export, Runs, pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qobra.nbd.export_info import ExportInfo
    from qobra.nbd.request import Request
    from qobra.nbd.submission import Status
    from qobra.nbd.transport import Buffer, Transport

T = TypeVar("T")


class Client(Export):
    """One connection to one export. Made by :func:`qobra.nbd.connect`; every method may be called from any thread.

    Blocking methods take any length and split it as the server needs, and raise QobraError with the server's errno.
    """

    _link: Link

    def __init__(self, transport: Transport, info: ExportInfo, *, structured: bool, contexts: dict[int, str]) -> None:
        link = Link(transport, structured=structured, contexts=contexts)
        super().__init__(link, info, structured=structured, contexts=contexts)
        self._closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # One call, one result ---------------------------------------------------------------------------------------------

    def pread(self, length: int, offset: int, *, df: bool = False) -> bytearray:
        """Read ``length`` bytes at ``offset``. ``df`` asks for the answer in one chunk."""
        data = bytearray(self._bounded(length, offset))
        self.pread_into(data, offset, df=df)
        return data

    def pread_into(self, buffer: bytearray | memoryview, offset: int, *, df: bool = False) -> None:
        """Fill ``buffer`` from ``offset``."""
        view = memoryview(buffer).cast("B")
        self._gather(
            self.aio_pread_into(view[start : start + length], offset + start, df=df)
            for start, length in pieces(len(view), self._max_payload)
        )

    def pread_sparse(self, length: int, offset: int) -> tuple[bytearray, list[tuple[int, int]]]:
        """Like :meth:`pread`, and the (offset, length) of what the server said to be holes, in order."""
        data = bytearray(self._bounded(length, offset))
        view = memoryview(data)
        requests = [
            self.aio_pread_into(view[start : start + size], offset + start)
            for start, size in pieces(length, self._max_payload)
        ]
        self._gather(iter(requests))
        return data, sorted(hole for request in requests for hole in request.holes)

    def pwrite(self, data: Buffer, offset: int, *, fua: bool = False) -> None:
        """Write ``data`` at ``offset``; ``fua``: return when it is on stable storage."""
        view = memoryview(data).cast("B")
        self._gather(
            self.aio_pwrite(view[start : start + length], offset + start, fua=fua)
            for start, length in pieces(len(view), self._max_payload)
        )

    def zero(self, length: int, offset: int, *, fua: bool = False, no_hole: bool = False, fast: bool = False) -> None:
        """Make ``length`` bytes read as zero. ``no_hole`` keeps them allocated; ``fast`` fails with ENOTSUP where this
        would be no faster than writing.
        """
        self._gather(
            self.aio_zero(size, offset + start, fua=fua, no_hole=no_hole, fast=fast)
            for start, size in pieces(length, self._max_length)
        )

    def trim(self, length: int, offset: int, *, fua: bool = False) -> None:
        """Tell the server that ``length`` bytes are not needed; what they read as afterwards is open."""
        self._gather(self.aio_trim(size, offset + start, fua=fua) for start, size in pieces(length, self._max_length))

    def cache(self, length: int, offset: int) -> None:
        """Ask the server to read ``length`` bytes ahead."""
        self._gather(self.aio_cache(size, offset + start) for start, size in pieces(length, self._max_payload))

    def flush(self) -> None:
        """Return when all writes that were answered before are on stable storage."""
        self.aio_flush().result()

    def block_status(self, length: int, offset: int, *, one: bool = False) -> Status:
        """For each negotiated context, the runs from ``offset`` on: (length, flags), at least one.

        Servers may answer for less than ``length``; ``one`` asks for a single run. Never says more than was asked.
        """
        return self.aio_block_status(min(length, self._max_length), offset, one=one).result()

    def extents(
        self, context: str = p.CONTEXT_BASE_ALLOCATION, offset: int = 0, length: int | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """(offset, length, flags) of ``context`` over a range, all of it, neighbours with the same flags merged."""
        end = self.size if length is None else offset + length
        runs = Runs(context, offset)
        while runs.end < end:
            yield from runs.add(self.block_status(min(end - runs.end, MAX_STATUS), runs.end))
        yield from runs.last()

    def poll(self, timeout: float | None = 0) -> bool:
        """Take in answers without waiting for a certain one; False if none came within ``timeout`` seconds."""
        return self._link.poll(timeout)

    def as_completed(self, requests: Iterable[Request[T]]) -> Iterator[Request[T]]:
        """Each of ``requests`` (of this client) once it is done, in the order in which they get done."""
        left = list(requests)
        while left:
            ready = [request for request in left if request.done]
            left = [request for request in left if not request.done]
            yield from ready
            if left and not ready and not self.poll(None):
                left[0].exception()

    # The end ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Disconnect: let what is in flight be answered, then leave. Does nothing the second time.

        A server that owes answers and sends nothing for 30 seconds, or the connection's ``timeout``, is left.
        """
        if self._closed:
            return
        self._closed = True
        transport = self._link.transport
        transport.timeout = transport.timeout or LEAVE_SECONDS
        try:
            self._link.disconnect()
            while self._link.in_flight:
                self._link.poll(None)
        except QobraError:
            pass
        self._link.fail(QobraError("The NBD connection was closed", errno=errno.ESHUTDOWN))
        self._link.transport.close()

    def abort(self) -> None:
        """Break the connection at once; everything in flight fails. May come from any thread."""
        self._link.fail(QobraError("The NBD connection was aborted", errno=errno.ESHUTDOWN))

    def _gather(self, requests: Iterator[Request[Any]]) -> None:
        """Wait for all of ``requests``, which sends them as they are drawn, some in flight; raise the first error."""
        window: list[Request[Any]] = []
        failure: QobraError | None = None
        try:
            for request in requests:
                window.append(request)
                if len(window) >= WINDOW:
                    window.pop(0).result()
        except QobraError as error:
            failure = error
        for request in window:
            # Also after a failure: the caller's buffer must not be written to once we have returned.
            failure = failure or request.exception()
            request.exception()
        if failure is not None:
            # Not kept by this call, which it knows.
            raise failure.again()

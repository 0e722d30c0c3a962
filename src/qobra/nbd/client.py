"""A connection to an NBD export: positioned reads and writes, one at a time or many in flight."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeVar

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.export_info import BlockSizes, ExportInfo
from qobra.nbd.link import Link
from qobra.nbd.request import Request, StatusExtent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from qobra.nbd.transport import Buffer, Transport

    Status = dict[str, list[StatusExtent]]

_DEFAULT_SIZES = BlockSizes(1, 4096, p.MAX_PAYLOAD)
_MAX_LENGTH = 1 << 32
_WINDOW = 16
"""Pieces of one long blocking call that are in flight at a time."""

T = TypeVar("T")


class Client:
    """One connection to one export. Made by :func:`qobra.nbd.connect`; every method may be called from any thread.

    Blocking methods take any length and split it as the server needs; ``aio_`` methods send one request, return a
    :class:`~qobra.nbd.request.Request` at once, and leave the limits (:attr:`block_sizes`) to the caller. All of them
    raise QobraError with the server's errno; what the export cannot do (:attr:`info` tells) fails with ENOTSUP or
    EPERM before it is sent. ``offset`` and ``length`` are bytes.
    """

    def __init__(self, transport: Transport, info: ExportInfo, *, structured: bool, contexts: dict[int, str]) -> None:
        self.info = info
        self.structured = structured
        """Whether structured replies were negotiated."""
        self.meta_contexts = tuple(contexts.values())
        """The metadata contexts that :meth:`block_status` answers."""
        self.block_sizes = info.block_sizes or _DEFAULT_SIZES
        self._link = Link(transport, structured=structured, contexts=contexts)
        # A whole number of minimum blocks, however odd the server's maximum is.
        minimum = self.block_sizes.minimum
        self._max_payload = min(self.block_sizes.maximum, p.MAX_PAYLOAD) // minimum * minimum
        self._max_length = _MAX_LENGTH - max(minimum, 64 << 10)
        self._closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<qobra.nbd.Client {self.info.name!r} size={self.size}{' tls' if self.tls else ''}>"

    # What it is -------------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The export's length in bytes."""
        return self.info.size

    @property
    def read_only(self) -> bool:
        """Whether the export refuses writes."""
        return self.info.read_only

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self._link.transport.tls

    @property
    def in_flight(self) -> int:
        """Requests that have not been answered."""
        return self._link.in_flight

    @property
    def broken(self) -> QobraError | None:
        """Why the connection can no longer be used, or None."""
        return self._link.broken

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
            for start, length in _pieces(len(view), self._max_payload)
        )

    def pread_sparse(self, length: int, offset: int) -> tuple[bytearray, list[tuple[int, int]]]:
        """Like :meth:`pread`, and the (offset, length) of what the server said to be holes, in order."""
        data = bytearray(self._bounded(length, offset))
        view = memoryview(data)
        requests = [
            self.aio_pread_into(view[start : start + size], offset + start)
            for start, size in _pieces(length, self._max_payload)
        ]
        self._gather(iter(requests))
        return data, sorted(hole for request in requests for hole in request.holes)

    def pwrite(self, data: Buffer, offset: int, *, fua: bool = False) -> None:
        """Write ``data`` at ``offset``; ``fua``: return when it is on stable storage."""
        view = memoryview(data).cast("B")
        self._gather(
            self.aio_pwrite(view[start : start + length], offset + start, fua=fua)
            for start, length in _pieces(len(view), self._max_payload)
        )

    def zero(self, length: int, offset: int, *, fua: bool = False, no_hole: bool = False, fast: bool = False) -> None:
        """Make ``length`` bytes read as zero. ``no_hole`` keeps them allocated; ``fast`` fails with ENOTSUP where this
        would be no faster than writing.
        """
        self._gather(
            self.aio_zero(size, offset + start, fua=fua, no_hole=no_hole, fast=fast)
            for start, size in _pieces(length, self._max_length)
        )

    def trim(self, length: int, offset: int, *, fua: bool = False) -> None:
        """Tell the server that ``length`` bytes are not needed; what they read as afterwards is open."""
        self._gather(self.aio_trim(size, offset + start, fua=fua) for start, size in _pieces(length, self._max_length))

    def cache(self, length: int, offset: int) -> None:
        """Ask the server to read ``length`` bytes ahead."""
        self._gather(self.aio_cache(size, offset + start) for start, size in _pieces(length, self._max_payload))

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
        begin, flags = offset, -1
        while offset < end:
            status = self.block_status(min(end - offset, 1 << 30), offset)
            if context not in status:
                raise QobraError(f"The NBD server did not grant the context '{context}'", errno=errno.ENOTSUP)
            for extent in status[context]:
                if extent.flags != flags:
                    if offset > begin:
                        yield begin, offset - begin, flags
                    begin, flags = offset, extent.flags
                offset += extent.length
        if offset > begin:
            yield begin, offset - begin, flags

    # Many in flight ---------------------------------------------------------------------------------------------------

    def aio_pread(self, length: int, offset: int, *, df: bool = False) -> Request[bytearray]:
        """Begin a read; the result is the data."""
        data = bytearray(self._bounded(length, offset))
        return self._read(data, memoryview(data), offset, df)

    def aio_pread_into(self, buffer: bytearray | memoryview, offset: int, *, df: bool = False) -> Request[None]:
        """Begin a read into ``buffer``, which must stay as it is until the request is done."""
        return self._read(None, memoryview(buffer).cast("B"), offset, df)

    def aio_pwrite(self, data: Buffer, offset: int, *, fua: bool = False) -> Request[None]:
        """Begin a write. ``data`` has been sent when this returns, and may be changed."""
        view = memoryview(data).cast("B")
        self._writable()
        return self._submit(p.CMD_WRITE, len(view), offset, None, flags=self._fua(fua), payload=(view,))

    def aio_zero(
        self, length: int, offset: int, *, fua: bool = False, no_hole: bool = False, fast: bool = False
    ) -> Request[None]:
        """Begin zeroing."""
        self._writable()
        self._need(self.info.can_zero, "zeroing")
        self._need(self.info.can_fast_zero or not fast, "fast zeroing")
        flags = self._fua(fua)
        flags |= (no_hole and p.CMD_FLAG_NO_HOLE) | (fast and p.CMD_FLAG_FAST_ZERO)
        return self._submit(p.CMD_WRITE_ZEROES, length, offset, None, flags=flags)

    def aio_trim(self, length: int, offset: int, *, fua: bool = False) -> Request[None]:
        """Begin a trim."""
        self._writable()
        self._need(self.info.can_trim, "trimming")
        return self._submit(p.CMD_TRIM, length, offset, None, flags=self._fua(fua))

    def aio_cache(self, length: int, offset: int) -> Request[None]:
        """Begin reading ahead on the server."""
        self._need(self.info.can_cache, "caching")
        return self._submit(p.CMD_CACHE, length, offset, None)

    def aio_flush(self) -> Request[None]:
        """Begin a flush of what has been answered by now."""
        self._need(self.info.can_flush, "flushing")
        return self._submit(p.CMD_FLUSH, 0, 0, None)

    def aio_block_status(self, length: int, offset: int, *, one: bool = False) -> Request[Status]:
        """Begin asking for the status; the result is as :meth:`block_status` has it."""
        self._need(bool(self.meta_contexts), "block status (no metadata context was negotiated)")
        request: Request[Status] = Request(self._link, p.CMD_BLOCK_STATUS, offset, length, {})
        request.value = request.extents
        return self._send(request, p.CMD_FLAG_REQ_ONE if one else 0)

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
        """Disconnect: let what is in flight be answered, then leave. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
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

    # Inside -----------------------------------------------------------------------------------------------------------

    def _read(self, value: T, view: memoryview, offset: int, df: bool) -> Request[T]:
        self._need(self.info.can_df or not df, "reads in one piece")
        request = Request(self._link, p.CMD_READ, offset, len(view), value)
        request.view = view
        return self._send(request, p.CMD_FLAG_DF if df else 0)

    def _submit(
        self, command: int, length: int, offset: int, value: T, *, flags: int = 0, payload: Sequence[Buffer] = ()
    ) -> Request[T]:
        return self._send(Request(self._link, command, offset, length, value), flags, payload)

    def _send(self, request: Request[T], flags: int, payload: Sequence[Buffer] = ()) -> Request[T]:
        self._bounded(request.length, request.offset)
        limit = self._max_payload if request.command in (p.CMD_READ, p.CMD_WRITE) else _MAX_LENGTH - 1
        if request.length > limit:
            raise QobraError(
                f"NBD {p.COMMAND_NAMES[request.command]} of {request.length} bytes, the limit is {limit}",
                errno=errno.EINVAL,
            )
        if request.length == 0 and request.command != p.CMD_FLUSH:
            request.complete(None)  # the protocol has no empty requests
            return request
        self._link.submit(request, flags, payload)
        return request

    def _gather(self, requests: Iterator[Request[Any]]) -> None:
        """Wait for all of ``requests``, which sends them as they are drawn, some in flight; raise the first error."""
        window: list[Request[Any]] = []
        failure: QobraError | None = None
        try:
            for request in requests:
                window.append(request)
                if len(window) >= _WINDOW:
                    window.pop(0).result()
        except QobraError as error:
            failure = error
        for request in window:
            # Also after a failure: the caller's buffer must not be written to once we have returned.
            failure = failure or request.exception()
            request.exception()
        if failure is not None:
            raise failure

    def _bounded(self, length: int, offset: int) -> int:
        if length < 0 or offset < 0 or offset + length > self.size:
            raise QobraError(
                f"{length} bytes at {offset} are outside the NBD export of {self.size} bytes", errno=errno.EINVAL
            )
        return length

    def _fua(self, fua: bool) -> int:
        self._need(self.info.can_fua or not fua, "FUA")
        return p.CMD_FLAG_FUA if fua else 0

    def _writable(self) -> None:
        if self.info.read_only:
            raise QobraError("The NBD export is read-only", errno=errno.EPERM)

    def _need(self, there: bool, what: str) -> None:
        if not there:
            raise QobraError(f"The NBD server does not support {what}", errno=errno.ENOTSUP)


def _pieces(length: int, limit: int) -> Iterator[tuple[int, int]]:
    """``length`` in runs of at most ``limit``: (start, length)."""
    for start in range(0, length, limit):
        yield start, min(limit, length - start)

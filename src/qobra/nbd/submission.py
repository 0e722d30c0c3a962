"""What both faces of the client share: what the export is, and requests as they are begun."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol, TypeVar

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.export_info import BlockSizes, ExportInfo
from qobra.nbd.request import Request, StatusExtent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qobra.nbd.request import AnyRequest
    from qobra.nbd.transport import Buffer, Transport

    Status = dict[str, list[StatusExtent]]

_DEFAULT_SIZES = BlockSizes(1, 4096, p.MAX_PAYLOAD)
_MAX_LENGTH = 1 << 32
WINDOW = 16
"""Pieces of one long call that are in flight at a time."""

MAX_STATUS = 1 << 30
"""Bytes that one block status request of a long walk asks for."""

LEAVE_SECONDS = 30.0
"""How long a connection that is being closed waits for a server that says nothing, unless it has a time-out."""

T = TypeVar("T")


class AnyLink(Protocol):
    """The transmission phase of a connection, blocking or in an event loop."""

    transport: Transport
    broken: QobraError | None

    @property
    def in_flight(self) -> int:
        """Requests that have not been answered."""
        ...

    def submit(self, request: AnyRequest, flags: int, payload: Sequence[Buffer] = ()) -> None:
        """Send a request, or begin to."""
        ...

    def wait_for(self, request: AnyRequest, timeout: float | None) -> None:
        """Return once the request is done."""
        ...


class Export:
    """An export that we are connected to. ``offset`` and ``length`` are bytes; all methods raise QobraError.

    ``aio_`` methods send one request, return a :class:`~qobra.nbd.request.Request` at once, and leave the limits
    (:attr:`block_sizes`) to the caller. What the export cannot do (:attr:`info` tells) fails with ENOTSUP or EPERM
    before it is sent.
    """

    def __init__(self, link: AnyLink, info: ExportInfo, *, structured: bool, contexts: dict[int, str]) -> None:
        self.info = info
        self.structured = structured
        """Whether structured replies were negotiated."""
        self.meta_contexts = tuple(contexts.values())
        """The metadata contexts that block status requests answer."""
        self.block_sizes = info.block_sizes or _DEFAULT_SIZES
        self._link = link
        # A whole number of minimum blocks, however odd the server's maximum is.
        minimum = self.block_sizes.minimum
        self._max_payload = min(self.block_sizes.maximum, p.MAX_PAYLOAD) // minimum * minimum
        self._max_length = _MAX_LENGTH - max(minimum, 64 << 10)

    def __repr__(self) -> str:
        return f"<qobra.nbd.{type(self).__name__} {self.info.name!r} size={self.size}{' tls' if self.tls else ''}>"

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

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop: when it is readable, answers can be taken in."""
        return self._link.transport.socket.fileno()

    @property
    def in_flight(self) -> int:
        """Requests that have not been answered."""
        return self._link.in_flight

    @property
    def broken(self) -> QobraError | None:
        """Why the connection can no longer be used, or None."""
        return self._link.broken

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


class Runs:
    """Block status of one context, answer after answer, as runs: neighbours with the same flags are one."""

    def __init__(self, context: str, offset: int) -> None:
        self.context = context
        self.end = offset
        """How far it is known."""
        self._begin, self._flags = offset, -1

    def add(self, status: Status) -> Iterator[tuple[int, int, int]]:
        """Take in the answer for :attr:`end` on; (offset, length, flags) of the runs that have ended by it."""
        if self.context not in status:
            raise QobraError(f"The NBD server did not grant the context '{self.context}'", errno=errno.ENOTSUP)
        for extent in status[self.context]:
            if extent.flags != self._flags:
                yield from self.last()
                self._begin, self._flags = self.end, extent.flags
            self.end += extent.length

    def last(self) -> Iterator[tuple[int, int, int]]:
        """The run that is going on, if there is one."""
        if self.end > self._begin:
            yield self._begin, self.end - self._begin, self._flags


def pieces(length: int, limit: int) -> Iterator[tuple[int, int]]:
    """``length`` in runs of at most ``limit``: (start, length)."""
    for start in range(0, length, limit):
        yield start, min(limit, length - start)

"""The ``nbd`` driver: an export of an NBD server as a node."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from qobra.block.buffers import Buffer
from qobra.block.extents import ALLOCATED, DATA, UNALLOCATED, ZERO, Extent
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening
from qobra.block.protocol import _nbd_options as nbd_options
from qobra.errors import QobraError
from qobra.nbd import protocol as p

if TYPE_CHECKING:
    import ssl

    from qobra.crypto.tls import TlsCreds
    from qobra.nbd.client import Client

T = TypeVar("T")

RETRY_FIRST = 0.1
RETRY_LONGEST = 16.0
"""Seconds between attempts to connect: twice as long each time, between these."""


@drivers.register("nbd")
class NbdNode(BlockNode):
    """An export at ``server`` (or by the older ``host``, ``port``, ``path``).

    A request that meets a broken connection makes a new one: at once and only once, and fails if that fails; with
    ``reconnect-delay`` it goes on trying for as many seconds, and only then fails. ``open-timeout`` is the same for
    opening. ``x-dirty-bitmap`` shows a metadata context of the server in place of ``base:allocation``: what is
    dirty counts as unallocated.
    """

    driver = "nbd"
    protocols = ("nbd", "nbd+tcp", "nbd+unix")
    takes_old_options = True
    reports_info = False
    strong_options = ("path", "host", "port", "export", "tls-creds", "tls-hostname", "server.")

    _client: Client | None = None
    _creds: TlsCreds | None = None

    @classmethod
    def parse_filename(cls, filename: str) -> Options | None:
        return {"driver": "nbd", **nbd_options.parse_filename(filename)}

    def open(self, opening: Opening) -> None:
        options = opening.options
        self._address = nbd_options.server_address(options)
        self._export: str = options.get("export", "")
        if len(p.octets(self._export)) > p.MAX_STRING:
            raise QobraError("export name too long to send to server")
        self._context: str = options.get("x-dirty-bitmap", p.CONTEXT_BASE_ALLOCATION)
        if len(p.octets(self._context)) > p.MAX_STRING:
            raise QobraError("x-dirty-bitmap query too long to send to server")
        self._reconnect_delay: int = options.get("reconnect-delay", 0)
        self._lock = threading.Lock()
        self._edges = threading.Lock()
        self._yanked = False
        self._cancelled = threading.Event()
        """Set while nobody is to wait for the server; the next connection clears it."""
        self._tls_hostname: str | None = options.get("tls-hostname")
        self._tls: ssl.SSLContext | None = None
        if "tls-creds" in options:
            from qobra.block.nbd_tls import check_hostname, find_tls_creds

            creds = find_tls_creds(self.layer.find_object, options["tls-creds"])
            self._tls = creds.client_context()
            check_hostname(self._tls, self._tls_hostname, self._address)
            creds.in_use += 1
            self._creds = creds
        client = self._client = self._connect_within(options.get("open-timeout", 0))
        if client.read_only and not self.read_only:
            if not self.auto_read_only:
                raise QobraError("Could not open image: Permission denied", errno=errno.EACCES)
            self.read_only = True
        self.length = client.size
        self.request_alignment = client.block_sizes.minimum

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
        if self._creds is not None:
            self._creds.in_use -= 1
            self._creds = None

    def plain_filename(self, options: Options) -> str:
        return nbd_options.uri(self._address, options.get("export"))

    def yank(self) -> None:
        """Cut the connection for good; whatever waits for the server fails. May come from any thread."""
        self._yanked = True
        self._cancelled.set()
        client = self._client
        if client is not None:
            client.abort()

    def cancel_in_flight(self) -> None:
        client = self._client
        if client is not None and client.broken is not None:
            self._cancelled.set()

    # The connection ---------------------------------------------------------------------------------------------------

    def _connect_within(self, seconds: float) -> Client:
        """Connect, trying again for ``seconds`` or until cancelled. Raises the QobraError of the last attempt."""
        deadline = time.monotonic() + seconds
        pause = RETRY_FIRST
        while True:
            if self._yanked:
                raise QobraError(f"Connection of node '{self.node_name}' was yanked", errno=errno.EIO)
            try:
                return self._connect()
            except QobraError:
                left = deadline - time.monotonic()
                if left <= 0 or self._cancelled.wait(min(pause, left)):
                    raise
                pause = min(2 * pause, RETRY_LONGEST)

    def _connect(self) -> Client:
        from qobra.nbd.connection import connect

        client = connect(
            self._address,
            self._export,
            tls=self._tls or False,
            tls_hostname=self._tls_hostname,
            meta_contexts=[self._context],
            find_fd=self.layer.find_fd,
        )
        if self._context != p.CONTEXT_BASE_ALLOCATION and self._context not in client.meta_contexts:
            client.close()
            raise QobraError(f"requested x-dirty-bitmap {self._context} not found", errno=errno.EINVAL)
        if self.length and client.size != self.length:
            client.close()
            raise QobraError(f"The NBD export has {client.size} bytes now, it had {self.length}", errno=errno.EIO)
        return client

    def _connected(self) -> Client:
        """The client, connected anew if the connection broke. Raises QobraError (EIO)."""
        with self._lock:
            client = self._client
            if client is None:
                raise QobraError(f"Node '{self.node_name}' is closed", errno=errno.EIO)
            if client.broken is None:
                return client
            client.close()
            try:
                fresh = self._client = self._connect_within(0 if self._cancelled.is_set() else self._reconnect_delay)
            except QobraError as error:
                raise QobraError(error.desc, errno=errno.EIO, node=self.node_name)
            if not self._yanked:
                self._cancelled.clear()
            return fresh

    def _call(self, request: Callable[[Client], T]) -> T:
        """Make a request; once more on a new connection, for ``reconnect-delay``, where this one breaks.

        Raises OSError for what the server answers, as a file would, and QobraError where it does not.
        """
        deadline: float | None = None
        while True:
            client = self._connected()
            try:
                return request(client)
            except QobraError as error:
                if client.broken is None and error.errno:
                    raise OSError(error.errno, error.desc)
                if client.broken is None:
                    raise
                now = time.monotonic()
                deadline = deadline or now + self._reconnect_delay
                if self._yanked or self._cancelled.is_set() or not self._reconnect_delay or now >= deadline:
                    raise QobraError(error.desc, errno=errno.EIO, node=self.node_name)

    # Data -------------------------------------------------------------------------------------------------------------

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        client = self._connected()
        if not want_zero or self._context not in client.meta_contexts:
            return (Extent(length, DATA, self, offset),)
        extents = []
        end = offset + length
        while offset < end:
            aligned, size = self._aligned(offset, end - offset)
            status = self._call(lambda each, start=aligned, size=size: each.block_status(size, start))  # type: ignore[misc]
            if self._context not in status:
                raise QobraError(f"The NBD server told no block status of '{self._context}'", errno=errno.EIO)
            for run, flags in status[self._context]:
                # As if the server kept to its own minimum: a block of which it knows a part is like that part.
                whole = run - run % self.request_alignment or self.request_alignment
                inside = min(aligned + whole, end) - offset
                extents.append(_extent(self, offset, inside, flags))
                offset += inside
                aligned = offset
                if whole != run or offset == end:
                    break
        return extents

    def _read(self, offset: int, view: memoryview) -> None:
        start, size = self._aligned(offset, len(view))
        if (start, size) == (offset, len(view)):
            self._call(lambda client: client.pread_into(view, offset))
        else:
            data = self._call(lambda client: client.pread(size, start))
            view[:] = data[offset - start : offset - start + len(view)]

    def _write(self, offset: int, data: Buffer) -> None:
        start, size = self._aligned(offset, len(data))
        if (start, size) == (offset, len(data)):
            self._call(lambda client: client.pwrite(data, offset))
            return
        # Two writers that share a block must not undo one another; that other clients do is the server's affair.
        with self._edges:
            whole = self._call(lambda client: client.pread(size, start))
            whole[offset - start : offset - start + len(data)] = data
            self._call(lambda client: client.pwrite(whole, start))

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        info = self._connected().info
        if not info.can_zero or (no_fallback and not info.can_fast_zero):
            return False
        if self._aligned(offset, length) != (offset, length):
            return False
        try:
            self._call(
                lambda client: client.zero(
                    length, offset, no_hole=not may_unmap, fast=no_fallback and client.info.can_fast_zero
                )
            )
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return False
            raise
        return True

    def _discard(self, offset: int, length: int) -> None:
        alignment = self.request_alignment
        start = -(-offset // alignment) * alignment
        end = (offset + length) // alignment * alignment
        if start < end and self._connected().info.can_trim:
            self._call(lambda client: client.trim(end - start, start))

    def _flush(self) -> None:
        if not self.cache_no_flush and not self.read_only and self._connected().info.can_flush:
            self._call(lambda client: client.flush())

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        if length != self.length and exact:
            raise QobraError("Cannot resize NBD nodes", errno=errno.ENOTSUP)
        if length > self.length:
            raise QobraError("Cannot grow NBD nodes", errno=errno.EINVAL)

    def allocated_size(self) -> int | None:
        return None

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        """The smallest range around this one that the server takes: (offset, length)."""
        alignment = self.request_alignment
        start = offset // alignment * alignment
        return start, -(-(offset + length) // alignment) * alignment - start


def _extent(node: NbdNode, offset: int, length: int, flags: int) -> Extent:
    if flags & p.STATE_ZERO:
        return Extent(length, ZERO, node, offset, 0 if flags & p.STATE_HOLE else ALLOCATED)
    return Extent(length, DATA, node, offset, UNALLOCATED if flags & p.STATE_HOLE else 0)

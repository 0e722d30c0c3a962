"""The NBD server: listens, and has a thread for each connection."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from qobra.block.export.nbd.connection import Connection
from qobra.errors import QobraError
from qobra.native import compiled
from qobra.nbd.sockets import listen

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from qobra.block.export.nbd import NbdExport
    from qobra.block.layer import BlockLayer
    from qobra.object.qom import Object

BACKLOG = 128
ACCEPT_RETRY = 0.05
"""Seconds to wait when the process has no descriptors left for a client."""
MANY = 32
"""Clients at once whose memory is worth giving back when all have left."""
QUIET = 0.5
"""Seconds after which they are taken to have left for good."""


class NbdServer:
    """Exports by name for clients that come to the addresses it listens on, or are handed to :meth:`serve`.

    With ``tls_creds`` (an object's id) clients must use TLS; ``tls_authz`` is the id of the authorization object
    that is asked, for each connection, about the distinguished name in the client's certificate. ``max_connections``
    0 means any number; 1 also tells clients that they are alone, so that they do not open a second connection.
    """

    def __init__(
        self,
        layer: BlockLayer,
        *,
        tls_creds: str | None = None,
        tls_authz: str | None = None,
        max_connections: int = 0,
    ) -> None:
        self.layer = layer
        self.max_connections = max_connections
        self.tls_authz = tls_authz
        self.tls: ssl.SSLContext | None = None
        self.connected: Callable[[], None] | None = None
        """Called when a connection has ended, with no argument; for programs that serve a number of clients."""
        self._creds: Object | None = None
        if tls_creds is not None:
            from qobra.block.nbd_tls import find_tls_creds

            creds = find_tls_creds(layer.find_object, tls_creds)
            self.tls = creds.server_context()
            creds.in_use += 1
            self._creds = creds
        self._exports: dict[str, NbdExport] = {}
        self._listeners: list[socket.socket] = []
        self._paths: list[tuple[str, int]] = []
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._acceptor: threading.Thread | None = None
        self._closed = False

    # Exports (qobra.nbd.negotiation.ExportDirectory) ------------------------------------------------------------------

    def add(self, export: NbdExport) -> None:
        """Let clients find ``export``."""
        self._exports[export.name] = export

    def forget(self, export: NbdExport) -> None:
        """Let no client find ``export`` any more."""
        self._exports.pop(export.name, None)

    def listed(self) -> Sequence[tuple[str, str]]:
        """(name, description) of each export, the oldest first."""
        return [(export.name, export.description) for export in tuple(self._exports.values())]

    def lookup(self, name: str) -> NbdExport | None:
        """The export of that name."""
        return self._exports.get(name)

    # Listening --------------------------------------------------------------------------------------------------------

    def listen(self, address: dict[str, Any], find_fd: Callable[[str], int] | None = None) -> None:
        """Accept clients at ``address``, a SocketAddress. Raises QobraError; the server is then closed."""
        self.bind(address, find_fd)
        self.accept()

    def bind(self, address: dict[str, Any], find_fd: Callable[[str], int] | None = None) -> None:
        """The first half of :meth:`listen`: clients may connect, and wait until they are accepted."""
        try:
            listeners = listen(address, backlog=BACKLOG, find_fd=find_fd)
        except BaseException:
            self.close()
            raise
        for each in listeners:
            each.setblocking(False)
            name = each.getsockname()
            if each.family == socket.AF_UNIX and address.get("type") == "unix" and isinstance(name, str) and name:
                self._paths.append((os.path.abspath(name), os.lstat(name).st_ino))  # a daemon leaves its directory
        self._listeners += listeners

    def accept(self) -> None:
        """Accept clients wherever it is bound to."""
        if not self._listeners:
            return
        if self._acceptor is None:
            self._acceptor = threading.Thread(target=self._accept_all, name="nbd-accept", daemon=True)
            self._acceptor.start()
        else:
            self._wake()

    @property
    def addresses(self) -> list[Any]:
        """Where it listens, as getsockname() says."""
        return [each.getsockname() for each in self._listeners]

    def serve(self, sock: socket.socket) -> Connection:
        """Serve one client on a connected socket, which the server owns from now on, in a thread of its own."""
        connection = Connection(self, sock)
        with self._lock:
            if self._closed:
                sock.close()
                raise QobraError("NBD server not running")
            self._connections.add(connection)
        connection.start()
        return connection

    @property
    def connections(self) -> int:
        """How many clients are connected, those that have not chosen an export included."""
        return len(self._connections)

    def authorized(self, certificate: bytes | None) -> bool:
        """Whether the owner of the DER ``certificate`` may come in."""
        if self.tls_authz is None:
            return True
        if certificate is None:
            return False
        from qobra.crypto.authz import is_allowed
        from qobra.crypto.identity import distinguished_name

        try:
            return is_allowed(self.layer.find_object, self.tls_authz, distinguished_name(certificate))
        except QobraError:
            return False

    def ended(self, connection: Connection) -> None:
        """A connection is over; called in its thread, last of all."""
        with self._lock:
            self._connections.discard(connection)
            self._wake()
            self._room.notify_all()  # close() may go on, so nothing of the server is touched below
        if self.connected is not None:
            self.connected()

    def close(self, *, keep_sockets: bool = False) -> None:
        """Stop listening, disconnect everybody, and wait until they are gone.

        ``keep_sockets``: UNIX sockets stay in the file system, where whoever started the program may remove them.
        """
        with self._lock:
            self._closed = True
            connections = tuple(self._connections)
        self._wake()
        if self._acceptor is not None:
            self._acceptor.join()
        for each in self._listeners:
            each.close()
        self._listeners = []
        if not keep_sockets:
            for path, inode in self._paths:
                _remove_socket(path, inode)
        self._paths = []
        for connection in connections:
            connection.disconnect()
        with self._lock:
            while self._connections:
                self._room.wait()
        os.close(self._wake_read)
        os.close(self._wake_write)
        if self._creds is not None:
            self._creds.in_use -= 1
            self._creds = None

    def _accept_all(self) -> None:
        most = 0
        while not self._closed:
            most = max(most, len(self._connections))
            is_over = most >= MANY and not self._connections
            poller = select.poll()
            poller.register(self._wake_read, select.POLLIN)
            listeners = {each.fileno(): each for each in tuple(self._listeners)}
            if not self.max_connections or len(self._connections) < self.max_connections:
                for number in listeners:
                    poller.register(number, select.POLLIN)
            ready = poller.poll(QUIET * 1000 if is_over else None)
            if not ready:
                give_back_memory()
                most = 0
            for number, _event in ready:
                if number == self._wake_read:
                    self._drain_wakes()
                else:
                    self._accept(listeners[number])

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _peer = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(ACCEPT_RETRY)  # the client stays in the backlog
            return
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.serve(sock)
        except (QobraError, RuntimeError):
            sock.close()  # being closed, or no more threads

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except OSError:
            pass  # full, which wakes as well, or closed

    def _drain_wakes(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass


def give_back_memory() -> None:
    """Let the host have what connections have freed: the C library would keep most of it for others like them."""
    native: Any = compiled("host")
    if native is not None:
        native.give_back_memory()


def _remove_socket(path: str, inode: int) -> None:
    """Remove the socket that we made, and not one that somebody has put in its place."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except OSError:
        pass

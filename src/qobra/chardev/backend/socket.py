"""Sockets: unix, TCP, vsock or an inherited descriptor, as server (one client at a time) or client."""

from __future__ import annotations

import _socket as socket  # the socket module makes enums of its constants, which is slow
import os
import sys

from qobra.chardev import address
from qobra.chardev.chardev import Chardev, registry
from qobra.chardev.connection import Connection, Layer
from qobra.errors import QobraError
from qobra.lean import Event, Lock, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from qobra.crypto.tls import TlsCreds
    from qobra.machine.machine import Machine


@registry.register("socket")
class SocketChardev(Chardev):
    """A socket. Its thread accepts or connects, reads until the peer leaves, and begins again."""

    kind = "socket"

    def __init__(self, machine: Machine, id: str, options: dict[str, Any]) -> None:
        super().__init__(machine, id, options)
        self._address: address.Address = options["addr"]
        self._server: bool = options.get("server", True)
        self._listener: socket.socket | None = None
        self._connection: Connection | None = None
        self._creds: TlsCreds | None = None
        self._wake = Event()
        self._lock = Lock()
        self._turn = Lock()  # who has it talks to its peer
        self._bound_path: tuple[str, int] | None = None
        self._early = b""  # came with the end of a handshake
        self._arrival = -1  # an eventfd, while the thread waits for a front end

    @classmethod
    def on_socket(cls, machine: Machine, id: str, sock: socket.socket) -> SocketChardev:
        """A started device on a connected socket, without an address to find it by."""
        name = {"type": "fd", "data": {"str": str(sock.fileno())}}
        device = cls(machine, id, {"addr": name, "server": False})
        device._begin(device._open(sock))
        return device

    # -- life

    def start(self) -> None:
        self._check_options()
        reconnect = self.options.get("reconnect", 0)
        first: Connection | None = None
        if self._server:
            self._listener = address.listen(self.machine, self._address)
            self._note_bound_path()
            if self.options.get("wait", False):
                asked_by = f"{self.asked_by}: " if self.asked_by else ""
                _say(f"{asked_by}info: QEMU waiting for connection on: {self.filename()}")
                first = self._accept()
        elif reconnect <= 0:
            first = self._open(address.connect(self.machine, self._address))
        self._begin(first)

    def _begin(self, first: Connection | None) -> None:
        start_thread(self._serve, first, name=f"chardev {self.id}")

    def _check_options(self) -> None:
        options = self.options
        if not self._server:
            if options.get("websocket"):
                raise QobraError("Websocket client is not implemented")
            if options.get("reconnect") and self._address["type"] == "fd":
                raise QobraError("'reconnect' option is incompatible with 'fd' address type")
        if "tls-creds" in options:
            from qobra.crypto.tls import find_creds

            endpoint = "server" if self._server else "client"
            self._creds = find_creds(self.machine.objects.find, options["tls-creds"], endpoint)
        elif "tls-authz" in options:
            raise QobraError("'tls_authz' option requires 'tls_creds' option")
        if self._server and "reconnect" in options:
            raise QobraError("'reconnect' option is incompatible with socket in server listen mode")
        if not self._server and "wait" in options:
            raise QobraError("'wait' option is incompatible with socket in client connect mode")

    def _note_bound_path(self) -> None:
        if self._address["type"] == "unix" and not self._address["data"].get("abstract"):
            path = self._address["data"]["path"]
            try:
                self._bound_path = (os.path.abspath(path), os.stat(path).st_ino)  # a daemon leaves its directory
            except OSError:
                pass

    def stop(self) -> None:
        self._wake.set()
        with self._lock:
            if self._connection is not None:
                self._connection.shutdown()
            if self._listener is not None:
                try:
                    self._listener.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        if self._bound_path is not None:
            path, inode = self._bound_path
            try:
                # Another server may have taken the path over since.
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
            except OSError:
                pass

    # -- the thread

    def _serve(self, connection: Connection | None) -> None:
        while not self.closed:
            if connection is None:
                connection = self._next()
            if connection is not None:
                with self._turn:
                    self._talk(connection)
                connection = None
            if not self._server and self.options.get("reconnect", 0) <= 0:
                break
        if self._listener is not None:
            self._listener.close()
        if self.when_over is not None:
            self.when_over()

    def add_client(self, fd: int) -> bool:
        """A server takes the socket as one that it accepted, unless it has a client."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            return super().add_client(fd)
        if not self._server or not self._turn.acquire(blocking=False):
            sock.close()
            return False
        start_thread(self._serve_added, sock, name=f"chardev {self.id}")
        return True

    def _serve_added(self, sock: socket.socket) -> None:
        try:
            self._talk(self._open(sock))
        except QobraError as error:
            _say(str(error))
        finally:
            self._turn.release()

    def _next(self) -> Connection | None:
        """The next peer; None if that failed or the device was closed."""
        if self._server:
            return self._accept()
        try:
            return self._open(address.connect(self.machine, self._address))
        except QobraError as error:
            if not self.closed:
                _say(f"Unable to connect character device {self.id}: {error}")
            self._wake.wait(self.options["reconnect"])
            return None

    def _accept(self) -> Connection | None:
        if self._listener is None:
            return None
        try:
            fd, _peer = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            self._wake.wait(_PAUSE)  # closed; or out of descriptors, which may pass
            return None
        try:
            return self._open(socket.socket(fileno=fd))
        except QobraError as error:
            _say(str(error))
            return None

    def _open(self, sock: socket.socket) -> Connection:
        sock.setblocking(True)
        if sock.family in _INTERNET and self.options.get("nodelay"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        layers: list[Layer] = []
        if self._creds is not None:
            layers.append(self._tls(self._creds))
        if self.options.get("websocket"):
            from qobra.chardev.layer.websocket import WebSocketLayer

            layers.append(WebSocketLayer())
        if self._server and (self.options.get("telnet") or self.options.get("tn3270")):
            from qobra.chardev.layer.telnet import TelnetLayer, Tn3270Layer

            layers.append(Tn3270Layer() if self.options.get("tn3270") else TelnetLayer())
        connection = Connection(sock, layers)
        with self._lock:
            self._connection = connection
            if self.closed:
                connection.shutdown()
        if layers:
            try:
                self._early = connection.handshake()
            except QobraError:
                connection.close()
                raise
        return connection

    def _tls(self, creds: TlsCreds) -> Layer:
        from qobra.chardev.layer.tls import TlsLayer

        if self._server:
            return TlsLayer(creds.server_context(), server=True, check_peer=self._authorize)
        hostname = self._address["data"].get("host") if self._address["type"] == "inet" else None
        return TlsLayer(creds.client_context(), server=False, hostname=hostname)

    def _authorize(self, session: Any) -> None:
        if "tls-authz" not in self.options:
            return
        from qobra.crypto.authz import is_allowed
        from qobra.crypto.identity import distinguished_name

        certificate = session.getpeercert(True)
        identity = distinguished_name(certificate) if certificate else ""
        if not is_allowed(self.machine.objects.find, self.options["tls-authz"], identity):
            raise QobraError("TLS x509 authz check for " + identity + " is denied")

    def _talk(self, connection: Connection) -> None:
        self.set_open(True)
        data: bytes | None = self._early
        self._early = b""
        while data is not None and not self.closed:
            for _ in range(connection.take_breaks()):
                self.deliver_event("break")
            if data:
                self.deliver(data)
            # While nobody listens, what comes is left to the kernel.
            data = connection.receive() if self._wait_front_end(connection) else None
        if not self.closed:
            self.deliver_event("ended")
        with self._lock:
            self._connection = None
            connection.close()
        self.set_open(False)

    def _wait_front_end(self, connection: Connection) -> bool:
        """Wait until somebody listens; False if the peer has left before, and has left nothing to be read."""
        if self.frontend is not None:
            return True
        import select

        arrival = os.eventfd(0)
        with self._lock:
            self._arrival = arrival
        try:
            poller = select.poll()
            poller.register(arrival, select.POLLIN)
            poller.register(connection.sock, 0)  # tells when the peer has gone
            while self.frontend is None and not self.closed:
                for ready, _event in poller.poll():
                    if ready == arrival:
                        os.eventfd_read(arrival)
                    elif connection.is_drained():
                        return False
                    else:
                        poller.unregister(ready)
            return True
        finally:
            with self._lock:
                self._arrival = -1
            os.close(arrival)

    # -- the front end's side

    def accept_input(self) -> None:
        super().accept_input()
        with self._lock:
            if self._arrival >= 0:
                os.eventfd_write(self._arrival, 1)

    def transmit(self, data: bytes) -> int:
        connection = self._connection
        return connection.send(data) if connection is not None and self.is_open else len(data)

    def wait_writable(self, timeout: float | None = None) -> bool:
        connection = self._connection
        return connection.wait_writable(timeout) if connection is not None else True

    @property
    def passes_fds(self) -> bool:
        return self._address["type"] in ("unix", "fd")

    def write_with_fds(self, data: bytes, fds: Sequence[int]) -> None:
        connection = self._connection
        if connection is None or not self.is_open:
            raise QobraError(f"chardev '{self.id}' is not connected")
        sent = connection.send_with_fds(data, fds)
        self.write_all(data[sent:])

    def take_fds(self) -> list[int]:
        connection = self._connection
        return connection.take_fds() if connection is not None else []

    def filename(self) -> str:
        protocol = next((name for name in ("telnet", "websocket") if self.options.get(name)), None)
        connection = self._connection
        connected = connection is not None and self.is_open
        own = self._listener
        if own is None and connection is not None:
            own = connection.sock
        name = address.describe(self._address, own, passive=self._server)
        peer = ""
        if connected and connection is not None and connection.sock.family in _INTERNET:
            try:
                name = "tcp:" + _endpoint(connection.sock.getsockname())
                peer = " <-> " + _endpoint(connection.sock.getpeername())
            except OSError:
                pass
        if protocol is not None and name.startswith("tcp:"):
            name = protocol + ":" + name.partition(":")[2]
        if self._server:
            name += ",server=on"
        return name + peer if connected else "disconnected:" + name


_PAUSE = 0.1
_INTERNET = (socket.AF_INET, socket.AF_INET6)


def _endpoint(name: tuple[str, int]) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(text: str) -> None:
    """Tell whoever runs the program; the device goes on also if nobody can be told."""
    line = f"{os.path.basename(sys.argv[0]) or 'qobra'}: {text}\n"
    try:
        os.write(2, line.encode("utf-8", "replace"))
    except OSError:
        pass

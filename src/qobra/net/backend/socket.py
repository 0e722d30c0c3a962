"""``socket``: packets over a stream (each after its length, 4 bytes, big-endian), over UDP, or by multicast."""

from __future__ import annotations

import socket
import struct
import threading

from qobra.errors import QobraError
from qobra.net.framing import Deframer
from qobra.net.netdev import MAX_PACKET, Netdev, registry
from qobra.units import decimal


@registry.register("socket")
class SocketNetdev(Netdev):
    """Exactly one of ``fd``, ``listen``, ``connect``, ``mcast`` and ``udp`` says what kind of socket it is."""

    kind = "socket"

    def start(self) -> None:
        options = self.options
        self._socket: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._target: tuple[str, int] | None = None
        self._connected_as = ""
        self._lock = threading.Lock()
        self._taking_in = threading.RLock()
        self._deframer = Deframer()
        self._closing = False
        chosen = [key for key in ("fd", "listen", "connect", "mcast", "udp") if key in options]
        if len(chosen) != 1:
            raise QobraError("exactly one of listen=, connect=, mcast= or udp= is required")
        if "localaddr" in options and chosen[0] not in ("mcast", "udp"):
            raise QobraError("localaddr= is only valid with mcast= or udp=")
        try:
            getattr(self, f"_start_{chosen[0]}")(options[chosen[0]])
        except OSError as error:
            raise QobraError.from_os(f"can't set up netdev '{self.id}'", error)

    def describe(self) -> str:
        return f"socket,{self._connected_as}"

    def close(self) -> None:
        self._closing = True
        for each in (self._listener, self._socket):
            if each is not None:
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                each.close()

    def send(self, packet: bytes) -> None:
        connection = self._socket
        if connection is None:
            return
        try:
            if self._target is not None:
                connection.sendto(packet, self._target)
            elif connection.type == socket.SOCK_DGRAM:
                connection.send(packet)
            else:
                with self._lock:
                    connection.sendall(struct.pack(">I", len(packet)) + packet)
        except OSError:
            pass  # a network loses packets

    # -- the ways to begin

    def _start_fd(self, text: str) -> None:
        fd = self.machine.fdsets.take_named_or_number(text)
        connection = socket.socket(fileno=fd)
        family = (
            "" if connection.type != socket.SOCK_DGRAM else " unix" if connection.family == socket.AF_UNIX else " inet"
        )
        self._connected_as = f"socket: fd={fd}{family}"
        self._use(connection)

    def _start_listen(self, text: str) -> None:
        self._listener = socket.create_server(_host_port(text), reuse_port=False)
        self._spawn(self._accept)

    def _start_connect(self, text: str) -> None:
        connection = socket.create_connection(_host_port(text))
        self._connected_as = f"socket: connect to {_shown(connection.getpeername())}"
        self._use(connection)

    def _start_mcast(self, text: str) -> None:
        group, port = _host_port(text)
        number = int.from_bytes(socket.inet_aton(group), "big")
        if number >> 28 != _MULTICAST:
            raise QobraError(f"specified mcastaddr {group} (0x{number:08x}) does not contain a multicast address")
        connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind((group, port))
        interface = self.options.get("localaddr", "0.0.0.0")
        membership = socket.inet_aton(group) + socket.inet_aton(interface)
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        self._target = (group, port)
        self._connected_as = f"socket: mcast={_shown(self._target)}"
        self._spawn(self._read_datagrams)

    def _start_udp(self, text: str) -> None:
        if "localaddr" not in self.options:
            raise QobraError("localaddr= is mandatory with udp=")
        connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(_host_port(self.options["localaddr"]))
        self._target = _host_port(text)
        self._connected_as = f"socket: udp={_shown(self._target)}"
        self._spawn(self._read_datagrams)

    # -- threads

    def _spawn(self, call: object) -> None:
        assert callable(call)
        threading.Thread(target=call, name=f"net {self.id}", daemon=True).start()

    def _use(self, connection: socket.socket) -> None:
        self._socket = connection
        datagrams = connection.type == socket.SOCK_DGRAM
        self._spawn(self._read_datagrams if datagrams else self._read_stream)

    def _accept(self) -> None:
        # One peer at a time; when it leaves, the next may come.
        listener = self._listener
        assert listener is not None
        while not self._closing:
            try:
                connection, address = listener.accept()
            except OSError:
                return
            with self._taking_in:
                self._deframer, self._socket = Deframer(), connection
                self._connected_as = f"socket: connection from {_shown(address)}"
            self._read_stream()

    def _read_stream(self) -> None:
        connection = self._socket
        assert connection is not None
        self._read(connection)
        if self._socket is connection:
            self._socket, self._connected_as = None, ""
        connection.close()

    def _read_datagrams(self) -> None:
        assert self._socket is not None
        self._read(self._socket)

    def _read(self, connection: socket.socket) -> None:
        try:
            while not self._closing:
                # It waits without the lock, which a guest that gives buffers may want meanwhile.
                connection.recv(1, socket.MSG_PEEK)
                if not self._take_in(connection):
                    return
        except OSError:
            return

    def _take_in(self, connection: socket.socket) -> bool:
        """Deliver what is there, in the order in which it came; False once no more will come. Raises OSError."""
        with self._taking_in:
            try:
                data = connection.recv(MAX_PACKET + 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            if connection.type == socket.SOCK_DGRAM:
                self.deliver(data)
                return True
            for packet in self._deframer.feed(data):
                self.deliver(packet)
            return bool(data) and not self._deframer.broken

    def catch_up(self) -> None:
        # Whoever delivers never waits for the strand, so the strand may wait for it.
        connection = self._socket
        if connection is not None:
            try:
                self._take_in(connection)
            except OSError:
                pass  # the reader finds it as well


_MULTICAST = 0xE
"""What addresses of groups begin with (RFC 1112)."""


def _shown(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _host_port(text: str) -> tuple[str, int]:
    host, colon, digits = text.rpartition(":")
    port = decimal(digits)
    if not colon or port is None or port > 65535:
        raise QobraError(f"host address '{text}' doesn't contain ':' separating host from port")
    return host or "0.0.0.0", port

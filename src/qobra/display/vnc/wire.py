"""A client's connection: whole messages in and out of a blocking socket, and the protocols in between."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.chardev.connection import Layer

_PIECE = 1 << 16


class Gone(Exception):
    """The client left, or broke the protocol."""


class Wire:
    """The bytes of one connection, which one thread reads; any may send.

    Layers (TLS, WebSocket, SASL) turn what passes into what the socket carries, the outermost first.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.strength = 0
        """Of how many bits the keys of TLS are, by which the server has proved who it is; 0 without."""
        self.on_close: list[Callable[[], None]] = []
        self._layers: list[Layer] = []
        self._inside = bytearray()
        # The order of what layers give out is that of what is sent: it is queued where a layer made it, and whoever
        # sends takes all that is queued.
        self._changing = threading.Lock()
        self._sending = threading.Lock()
        self._queue = bytearray()

    def add(self, layer: Layer) -> None:
        """What passes from now on, what was received and not read included, goes through ``layer``. Raises Gone."""
        try:
            with self._changing:
                early, self._inside = bytes(self._inside), bytearray()
                self._enqueue(layer.begin(), len(self._layers))
                self._layers.append(layer)
                self._take_in(early, len(self._layers) - 1)
            self._flush()
            while not layer.ready:
                self._receive()
        except QobraError:
            self._flush()
            raise Gone

    def read(self, length: int) -> bytes:
        """Exactly ``length`` bytes. Raises Gone."""
        while len(self._inside) < length:
            self._receive()
        data = bytes(self._inside[:length])
        del self._inside[:length]
        return data

    def skip(self, length: int) -> None:
        """Read ``length`` bytes that nobody needs, however many they are."""
        while length:
            length -= len(self.read(min(length, _PIECE)))

    def number(self, length: int) -> int:
        """A number of ``length`` bytes."""
        return int.from_bytes(self.read(length), "big")

    def send(self, data: bytes) -> None:
        """Send all of ``data``. Raises Gone."""
        try:
            with self._changing:
                self._enqueue(data, len(self._layers))
        except QobraError:
            raise Gone
        self._flush()

    def shutdown(self) -> None:
        """Have whoever reads or writes stop."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """The end of the connection, which no thread uses any more."""
        self.sock.close()
        for each in self.on_close:
            each()

    def _receive(self) -> None:
        try:
            data = self.sock.recv(_PIECE)
        except OSError:
            raise Gone
        if not data:
            raise Gone
        if not self._layers:
            self._inside += data
            return
        try:
            with self._changing:
                before = len(self._inside)
                self._take_in(data, 0)
        except QobraError:
            self._flush()
            raise Gone
        self._flush()
        if len(self._inside) == before and any(layer.ended for layer in self._layers):
            raise Gone

    def _take_in(self, data: bytes, first: int) -> None:
        """``data`` came for the layer ``first``."""
        for number in range(first, len(self._layers)):
            data, answer = self._layers[number].incoming(data)
            self._enqueue(answer, number)
        self._inside += data

    def _enqueue(self, data: bytes, above: int) -> None:
        """Queue ``data``, which comes from above so many layers."""
        if data:
            for layer in reversed(self._layers[:above]):
                data = layer.outgoing(data)
            self._queue += data

    def _flush(self) -> None:
        with self._sending:
            with self._changing:
                data, self._queue = self._queue, bytearray()
            try:
                if data:
                    self.sock.sendall(data)
            except OSError:
                raise Gone


def basic_info(sock: socket.socket, name: Any, *, websocket: bool = False) -> dict[str, Any]:
    """VncBasicInfo of the end of ``sock`` with that name."""
    if sock.family == socket.AF_UNIX:
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        return {"host": "", "service": text, "family": "unix", "websocket": websocket}
    family = "ipv6" if sock.family == socket.AF_INET6 else "ipv4"
    return {"host": name[0].partition("%")[0], "service": str(name[1]), "family": family, "websocket": websocket}

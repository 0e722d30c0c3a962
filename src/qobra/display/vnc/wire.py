"""A client's connection: whole messages in and out of a blocking socket."""

from __future__ import annotations

import socket
from typing import Any

_PIECE = 1 << 16


class Gone(Exception):
    """The client left, or broke the protocol."""


class Wire:
    """The bytes of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._stream = sock.makefile("rb")

    def read(self, length: int) -> bytes:
        """Exactly ``length`` bytes. Raises Gone."""
        try:
            data = self._stream.read(length)
        except (OSError, ValueError):
            raise Gone
        if len(data) < length:
            raise Gone
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
            self.sock.sendall(data)
        except OSError:
            raise Gone

    def shutdown(self) -> None:
        """Have whoever reads or writes stop."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """The end of the connection."""
        self._stream.close()
        self.sock.close()


def basic_info(sock: socket.socket, name: Any) -> dict[str, Any]:
    """VncBasicInfo of the end of ``sock`` with that name."""
    if sock.family == socket.AF_UNIX:
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        return {"host": "", "service": text, "family": "unix", "websocket": False}
    family = "ipv6" if sock.family == socket.AF_INET6 else "ipv4"
    return {"host": name[0].partition("%")[0], "service": str(name[1]), "family": family, "websocket": False}

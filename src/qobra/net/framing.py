"""Packets over a stream: each after its length (4 bytes, big-endian), and if agreed after that of its virtio header."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from qobra.net.netdev import MAX_PACKET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.chardev.chardev import Chardev

_PENDING_MAX = 4 << 20
_POLL_S = 0.2


def frame(packet: bytes, *, with_header: bool = False) -> bytes:
    """``packet`` as it goes over a stream. Packets have no virtio header here: its length is 0."""
    return len(packet).to_bytes(4, "big") + (bytes(4) if with_header else b"") + packet


class Deframer:
    """Takes packets out of a stream that comes in pieces. A length that cannot be spoils the rest of the stream."""

    def __init__(self, *, with_header: bool = False) -> None:
        self._prefix = 8 if with_header else 4
        self._data = bytearray()
        self.broken = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The packets that ``data`` completes, without their virtio headers."""
        if self.broken:
            return
        self._data += data
        while len(self._data) >= self._prefix:
            length = int.from_bytes(self._data[:4], "big")
            header = int.from_bytes(self._data[4:8], "big") if self._prefix == 8 else 0
            if length > MAX_PACKET or header > length:
                self.broken = True
                self._data.clear()
                return
            end = self._prefix + length
            if len(self._data) < end:
                return
            packet = bytes(self._data[self._prefix + header : end])
            del self._data[:end]
            yield packet


class Outlet:
    """Sends packets to a character device in a thread of its own, so that a slow peer holds up no guest.

    What a peer that does not read leaves waiting is bounded; packets beyond are lost.
    """

    def __init__(self, chardev: Chardev, name: str, *, with_header: bool = False) -> None:
        self._chardev = chardev
        self._name = name
        self._with_header = with_header
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._ready = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended = False

    def send(self, packet: bytes) -> None:
        """Send ``packet`` after those before."""
        data = frame(packet, with_header=self._with_header)
        with self._ready:
            if self._ended or self._size + len(data) > _PENDING_MAX:
                return
            self._waiting.append(data)
            self._size += len(data)
            self._ready.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Send no more."""
        with self._ready:
            self._ended = True
            self._ready.notify()

    def _serve(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self._ended:
                    self._ready.wait()
                if self._ended:
                    return
                data = self._waiting.popleft()
                self._size -= len(data)
            while data and not self._ended:
                data = data[self._chardev.write(data) :]
                if data:
                    self._chardev.wait_writable(_POLL_S)

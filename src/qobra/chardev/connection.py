"""One connection of a socket character device: blocking reads in one thread, writes from any that never wait.

Protocols that stand between (TLS, telnet, WebSocket) are layers, the outermost first. Without any, bytes go straight
to the socket, and file descriptors that the peer sends along (SCM_RIGHTS) are collected.
"""

from __future__ import annotations

import _socket as socket
import os
import sys

from qobra.errors import QobraError, strerror
from qobra.lean import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol
else:
    Protocol = object

READ_SIZE = 65536
MAX_FDS = 16
_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * 4)


class Layer(Protocol):
    """A protocol between the socket and the front end. The connection's lock serializes all calls.

    ``ready``: bytes may pass. ``ended``: the peer has closed its side in the protocol's way.
    """

    ready: bool
    ended: bool

    def begin(self) -> bytes:
        """What to send first."""

    def incoming(self, data: bytes) -> tuple[bytes, bytes]:
        """What ``data`` from the peer holds for the inside, and what it demands to be sent back."""

    def outgoing(self, data: bytes) -> bytes:
        """``data`` as it is sent."""

    def take_breaks(self) -> int:
        """How many breaks the peer sent since the last call."""


class Connection:
    """A connected stream socket and the layers over it. Whoever made it closes it."""

    def __init__(self, sock: socket.socket, layers: list[Layer] | None = None) -> None:
        self.sock = sock
        self._layers = layers or []
        self._lock = Lock()
        self._unsent = bytearray()
        self._fds: list[int] = []
        self._passes_fds = sock.family == socket.AF_UNIX
        self._broken = False

    def handshake(self) -> bytes:
        """Wait until every layer is ready. Returns what the peer has sent for the inside already.

        QobraError if the peer leaves or a layer refuses it.
        """
        early = b""
        with self._lock:
            for layer in self._layers:
                self._queue(self._wrap(layer.begin(), layer))
        self._flush_all()
        while not all(layer.ready for layer in self._layers):
            data = self._receive_raw()
            if not data:
                raise QobraError("The peer left during the handshake")
            with self._lock:
                early += self._unwrap(data)
            self._flush_all()
        return early

    def receive(self) -> bytes | None:
        """Wait for data from the peer: None at its end, ``b""`` where what came was not for the inside."""
        if not self._layers:
            return self._receive_raw() or None
        data = self._receive_raw()
        if not data:
            return None
        with self._lock:
            inside = self._unwrap(data)
            self._send_unsent()
        if not inside and any(layer.ended for layer in self._layers):
            return None
        return inside

    def is_drained(self) -> bool:
        """Whether the peer has gone and there is nothing left to be received."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def take_breaks(self) -> int:
        """Breaks that the peer sent since the last call."""
        return sum(layer.take_breaks() for layer in self._layers)

    def send(self, data: bytes) -> int:
        """Send what goes out without waiting; how much did. A broken connection takes everything."""
        if not self._layers:
            return self._send_raw(data)
        with self._lock:
            self._send_unsent()
            if self._unsent and not self._broken:
                return 0
            self._queue(self._wrap(data, None))
            self._send_unsent()
        return len(data)

    def send_with_fds(self, data: bytes, fds: Sequence[int]) -> int:
        """Send a first part of ``data``, descriptors with it; how much went. Raises QobraError."""
        if self._layers or not self._passes_fds:
            raise QobraError("this connection cannot pass file descriptors")
        packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if fds else []
        try:
            return self.sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise QobraError(f"Failed to send: {strerror(error)}", errno=error.errno)

    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait until :meth:`send` may make progress; False on time-out."""
        import select

        poller = select.poll()
        try:
            poller.register(self.sock.fileno(), select.POLLOUT)
            return bool(poller.poll(None if timeout is None else timeout * 1000))
        except (OSError, ValueError):
            return True  # closed: sending goes nowhere, and does so at once

    def take_fds(self) -> list[int]:
        """The descriptors that came with the latest data, for the caller to own."""
        fds, self._fds = self._fds, []
        return fds

    def shutdown(self) -> None:
        """End both directions, which wakes the thread that waits in :meth:`receive`."""
        self._broken = True
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close the socket. Called by the thread that reads from it."""
        self.shutdown()
        self.sock.close()
        for fd in self.take_fds():
            os.close(fd)

    # -- raw bytes

    def _receive_raw(self) -> bytes:
        try:
            if not self._passes_fds:
                return self.sock.recv(READ_SIZE)
            data, ancillary, _flags, _address = self.sock.recvmsg(READ_SIZE, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return b""
        if ancillary:
            self._collect_fds(ancillary)
        return data

    def _collect_fds(self, ancillary: list[Any]) -> None:
        fds: list[int] = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(content) // 4 * 4
                fds += memoryview(content)[:whole].cast("i").tolist()
        if fds:
            for fd in self._fds:
                os.close(fd)
            self._fds = fds

    def _send_raw(self, data: bytes | bytearray) -> int:
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._broken = True
            return len(data)

    # -- layers

    def _queue(self, raw: bytes) -> None:
        self._unsent += raw

    def _send_unsent(self) -> None:
        while self._unsent:
            sent = self._send_raw(self._unsent)
            if not sent:
                return
            del self._unsent[:sent]

    def _flush_all(self) -> None:
        while True:
            with self._lock:
                self._send_unsent()
                if not self._unsent:
                    return
            self.wait_writable()

    def _wrap(self, data: bytes, origin: Layer | None) -> bytes:
        """``data`` as the layers below ``origin`` (all, if None) send it."""
        below = self._layers if origin is None else self._layers[: self._layers.index(origin)]
        if data or origin is None:
            for layer in reversed(below):
                data = layer.outgoing(data)
        return data

    def _unwrap(self, data: bytes) -> bytes:
        for layer in self._layers:
            data, answer = layer.incoming(data)
            if answer:
                self._queue(self._wrap(answer, layer))
        return data

"""The front end of a vhost-user device: asks the process that serves it (the vhost-user protocol specification).

Messages go over a character device on a Unix socket, which passes the descriptors of memory and of queues. Nothing that
the other process says is trusted: replies are bounded, must fit the request, and must come in time.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qobra.block.export.vhost_user_blk import protocol as vu
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev

TIMEOUT_SECONDS = 10.0
"""How long a process may take to answer, or to be there at all."""
_CONFIG_MAX = 256
_WANTED = 1 << vu.PROTOCOL_F_MQ | 1 << vu.PROTOCOL_F_REPLY_ACK | 1 << vu.PROTOCOL_F_CONFIG

MemoryRegion = tuple[int, int, int, int]
"""Guest address, size, offset in the descriptor, descriptor."""


class VhostUserFrontEnd:
    """The connection. ``features`` and ``queues`` are what the other process offers.

    ``on_connected`` and ``on_lost`` are called in the character device's thread, which must not wait for replies;
    ``on_close`` before this side lets go, while the process still answers.
    """

    hotswap = False

    def __init__(self, chardev: Chardev) -> None:
        self._chardev = chardev
        self._input = bytearray()
        self._changed = threading.Condition()
        self.connected = False
        self.features = 0
        self.queues = 1
        self.on_connected: Callable[[], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_close: Callable[[], None] | None = None
        self._protocol_features = 0

    # -- as the front end of the character device

    def receive(self, data: bytes) -> None:
        """A part of a reply came."""
        with self._changed:
            self._input += data[: self.can_receive() - len(self._input)]  # what nobody asked for does not pile up
            self._changed.notify_all()

    def can_receive(self) -> int:
        """There is room for one reply."""
        return vu.HEADER.size + vu.MAX_PAYLOAD

    def event(self, name: str) -> None:
        """The other process came or left."""
        if name not in ("opened", "closed"):
            return
        with self._changed:
            self.connected = name == "opened"
            self._input.clear()
            self._changed.notify_all()
        tell = self.on_connected if self.connected else self.on_lost
        if tell is not None:
            tell()

    # -- life

    def open(self) -> None:
        """Wait for the other process and learn what it can do. Raises QobraError."""
        if not self._chardev.passes_fds:
            raise QobraError("vhost_backend_init failed: Protocol error")
        self._chardev.attach(self)
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self.connected, TIMEOUT_SECONDS):
                    raise QobraError(f"nobody is connected to chardev '{self._chardev.id}'")
            self.negotiate()
        except BaseException:
            self._chardev.detach()
            raise

    def close(self) -> None:
        """Let the character device go."""
        closing, self.on_close = self.on_close, None
        if closing is not None:
            closing()
        self.on_connected = self.on_lost = None
        self._chardev.detach()
        self.connected = False

    def negotiate(self) -> None:
        """Learn what the process offers, after it came (back). Raises QobraError."""
        self.features = self._number(vu.GET_FEATURES)
        self._protocol_features, self.queues = 0, 1
        if self._has_extensions:
            self._protocol_features = self._number(vu.GET_PROTOCOL_FEATURES) & _WANTED
            self._send(vu.SET_PROTOCOL_FEATURES, vu.U64.pack(self._protocol_features))
            if self._protocol_features >> vu.PROTOCOL_F_MQ & 1:
                self.queues = min(self._number(vu.GET_QUEUE_NUM), 1024)
        self._send(vu.SET_OWNER)

    @property
    def _has_extensions(self) -> bool:
        """Whether there are protocol features, though maybe none that both sides know: then queues start at rest."""
        return bool(self.features >> vu.F_PROTOCOL_FEATURES & 1)

    @property
    def has_config(self) -> bool:
        """Whether the process has the device's configuration space."""
        return bool(self._protocol_features >> vu.PROTOCOL_F_CONFIG & 1)

    # -- requests

    def config(self, length: int) -> bytes:
        """The first ``length`` bytes of the configuration space. Raises QobraError."""
        head = vu.CONFIG.pack(0, length, 0)
        answer = self._ask(vu.GET_CONFIG, head + bytes(length))
        if len(answer) != len(head) + length:
            raise QobraError("vhost-user: the configuration has the wrong length", errno=errno.EPROTO)
        return answer[len(head) :]

    def set_config(self, offset: int, data: bytes) -> None:
        """Write to the configuration space."""
        self._act(vu.SET_CONFIG, vu.CONFIG.pack(offset, min(len(data), _CONFIG_MAX), 0) + data[:_CONFIG_MAX])

    def set_features(self, features: int) -> None:
        """What the driver accepted."""
        keep = self.features & 1 << vu.F_PROTOCOL_FEATURES
        self._act(vu.SET_FEATURES, vu.U64.pack(features & ~(1 << vu.F_PROTOCOL_FEATURES) | keep))

    def set_memory(self, regions: Sequence[MemoryRegion]) -> None:
        """All memory that the process may use. Guest addresses serve as this process's too."""
        payload = vu.MEM_HEADER.pack(len(regions), 0)
        for guest, size, offset, _fd in regions:
            payload += vu.MEM_REGION.pack(guest, size, guest, offset)
        self._act(vu.SET_MEM_TABLE, payload, [fd for _guest, _size, _offset, fd in regions])

    def start_queue(
        self, index: int, size: int, base: int, addresses: tuple[int, int, int], kick: int, call: int
    ) -> None:
        """Serve queue ``index``: descriptors, available and used ring at guest addresses; two event descriptors."""
        descriptors, available, used = addresses
        self._send(vu.SET_VRING_NUM, vu.VRING_STATE.pack(index, size))
        self._send(vu.SET_VRING_BASE, vu.VRING_STATE.pack(index, base))
        self._act(vu.SET_VRING_ADDR, vu.VRING_ADDR.pack(index, 0, descriptors, used, available, 0))
        self._send(vu.SET_VRING_CALL, vu.U64.pack(index), [call])
        self._send(vu.SET_VRING_KICK, vu.U64.pack(index), [kick])
        if self._has_extensions:
            self._act(vu.SET_VRING_ENABLE, vu.VRING_STATE.pack(index, 1))

    def stop_queue(self, index: int) -> int:
        """No longer serve queue ``index``; where it was. Nothing is in flight when this returns."""
        answer = self._ask(vu.GET_VRING_BASE, vu.VRING_STATE.pack(index, 0))
        if len(answer) != vu.VRING_STATE.size:
            raise QobraError("vhost-user: malformed reply", errno=errno.EPROTO)
        base: int = vu.VRING_STATE.unpack(answer)[1]
        return base & 0xFFFF

    # -- messages

    def _send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        if not self.connected:
            raise QobraError("vhost-user: the other process is gone", errno=errno.ECONNRESET)
        with self._changed:
            self._input.clear()
        message = vu.HEADER.pack(request, vu.FLAG_VERSION | flags, len(payload)) + payload
        self._chardev.write_with_fds(message, fds)

    def _ask(self, request: int, payload: bytes = b"") -> bytes:
        self._send(request, payload)
        return self._reply(request)

    def _act(self, request: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send a request without an answer of its own, and wait until it was carried out where that can be known."""
        if not self._protocol_features >> vu.PROTOCOL_F_REPLY_ACK & 1:
            self._send(request, payload, fds)
            return
        self._send(request, payload, fds, vu.FLAG_NEED_REPLY)
        if any(self._reply(request)):
            raise QobraError(f"vhost-user: request {request} was refused", errno=errno.EPROTO)

    def _number(self, request: int) -> int:
        answer = self._ask(request)
        if len(answer) != vu.U64.size:
            raise QobraError("vhost-user: malformed reply", errno=errno.EPROTO)
        number: int = vu.U64.unpack(answer)[0]
        return number

    def _reply(self, request: int) -> bytes:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        header = self._take(vu.HEADER.size, deadline)
        kind, flags, size = vu.HEADER.unpack(header)
        fits = kind == request and flags & vu.FLAG_REPLY and flags & vu.FLAG_VERSION_MASK == vu.FLAG_VERSION
        if not fits or size > vu.MAX_PAYLOAD:
            raise QobraError(f"vhost-user: malformed reply to request {request}", errno=errno.EPROTO)
        return self._take(size, deadline)

    def _take(self, length: int, deadline: float) -> bytes:
        with self._changed:
            while len(self._input) < length:
                if not self.connected:
                    raise QobraError("vhost-user: the other process is gone", errno=errno.ECONNRESET)
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise QobraError("vhost-user: the other process does not answer", errno=errno.ETIMEDOUT)
            data = bytes(self._input[:length])
            del self._input[:length]
            return data

"""``ringbuf`` (and its old name ``memory``): keeps the latest of what is written, for ringbuf-read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from qobra.chardev.chardev import Chardev, registry
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

DEFAULT_SIZE = 65536
MAX_SIZE = 1 << 31


@registry.register("ringbuf", "memory")
class RingBuffer(Chardev):
    """A buffer of ``size`` bytes, a power of two."""

    kind = "ringbuf"

    def __init__(self, machine: Machine, id: str, options: dict[str, Any]) -> None:
        super().__init__(machine, id, options)
        self._size: int = options.get("size", DEFAULT_SIZE)
        self._data = bytearray()
        self._lock = threading.Lock()

    def start(self) -> None:
        if self._size <= 0 or self._size & (self._size - 1) or self._size > MAX_SIZE:
            raise QobraError("size of ringbuf chardev must be power of two")
        self.set_open(True)

    def transmit(self, data: bytes) -> int:
        with self._lock:
            self._data += data[-self._size :]
            excess = len(self._data) - self._size
            if excess > 0:
                del self._data[:excess]
        return len(data)

    def read(self, size: int) -> bytes:
        """Take out the oldest bytes, at most ``size``."""
        with self._lock:
            data = bytes(self._data[:size])
            del self._data[:size]
        return data

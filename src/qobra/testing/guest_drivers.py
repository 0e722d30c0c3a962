"""Small drivers of virtio devices, for tests: what a guest's kernel would do."""

from __future__ import annotations

from qobra.testing.guest import Memory, Queue, Transport, driver_ok, start_driver


class BlockDriver:
    """A driver of virtio-blk with one queue."""

    def __init__(self, transport: Transport, memory: Memory, *, features: int = 1 << 32 | 1 << 9) -> None:
        self.guest = transport.guest
        self.transport = transport
        self.features = start_driver(transport, features)
        self.queue = Queue(transport, memory, 0)
        self._header = memory.take(16)
        self._status = memory.take(1)
        self._buffer = memory.take(1 << 20, 4096)
        driver_ok(transport)

    def request(self, kind: int, sector: int, data: bytes = b"", read: int = 0) -> tuple[int, bytes]:
        """One request; returns its status and what was read."""
        header = kind.to_bytes(4, "little") + bytes(4) + sector.to_bytes(8, "little")
        self.guest.write(self._header, header)
        self.guest.write(self._status, b"\xff")
        parts = [(self._header, 16, False)]
        if data:
            self.guest.write(self._buffer, data)
            parts.append((self._buffer, len(data), False))
        if read:
            parts.append((self._buffer, read, True))
        parts.append((self._status, 1, True))
        self.queue.send(parts)
        self.queue.wait_used()
        return self.guest.load(self._status, 1), self.guest.read(self._buffer, read) if read else b""


class ScsiDriver:
    """A driver of virtio-scsi with one request queue."""

    def __init__(self, transport: Transport, memory: Memory, *, features: int = 1 << 32 | 1 << 1 | 1 << 2) -> None:
        self.guest = transport.guest
        self.transport = transport
        self.features = start_driver(transport, features)
        self.control, self.events, self.queue = (Queue(transport, memory, n) for n in range(3))
        self._request = memory.take(51)
        self._response = memory.take(108)
        self._buffer = memory.take(1 << 20, 4096)
        self.event_buffer = memory.take(16)
        driver_ok(transport)

    def command(
        self, cdb: bytes, *, target: int = 0, lun: int = 0, data: bytes = b"", read: int = 0
    ) -> tuple[int, int, bytes, bytes]:
        """One command: the adapter's response, the status, sense, and the data that came back."""
        unit = (0x4000 | lun).to_bytes(2, "big")
        header = bytes((1, target)) + unit + bytes(4) + bytes(11) + cdb.ljust(32, b"\0")
        self.guest.write(self._request, header)
        self.guest.write(self._response, b"\xff" * 108)
        parts = [(self._request, 51, False)]
        if data:
            self.guest.write(self._buffer, data)
            parts.append((self._buffer, len(data), False))
        parts.append((self._response, 108, True))
        if read:
            parts.append((self._buffer, read, True))
        self.queue.send(parts)
        self.queue.wait_used()
        answer = self.guest.read(self._response, 108)
        returned = max(0, read - int.from_bytes(answer[4:8], "little"))
        sense_length = int.from_bytes(answer[0:4], "little")
        got = self.guest.read(self._buffer, returned) if returned else b""
        return answer[11], answer[10], answer[12 : 12 + sense_length], got

    def await_event(self) -> None:
        """Give the device a buffer for an event."""
        self.events.send([(self.event_buffer, 16, True)])

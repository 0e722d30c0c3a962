"""The host's side of USB, for tests: drivers of controllers that move one packet after the other, and what they carry.

They work on whatever is an :class:`~qobra.testing.guest.Access`, QEMU's devices included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qobra.testing.guest import Access, PciFunction
from qobra.testing.waiting import wait_until

SETUP, IN, OUT = 0x2D, 0x69, 0xE1
TABLE, QUEUE, TRANSFER, _END, _BUFFER = 0x100000, 0x110000, 0x111000, 0x112000, 0x200000
"""Where in memory the drivers have what the controllers read."""
_MS = 10**6


def key_event(name: str, down: bool) -> dict[str, Any]:
    """The InputEvent of a key, by its QKeyCode."""
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}}


class UsbHost:
    """A driver. ``wait(ns)`` lets time pass. The device at ``port`` (from 0 on) is reset and enabled."""

    packet_size = 64
    """What one transfer moves at most."""

    def __init__(
        self, access: Access, devfn: int, *, port: int = 0, wait: Callable[[int], object] | None = None
    ) -> None:
        self.access = access
        self._wait = wait or access.step
        self.function = PciFunction(access, devfn)
        self.function.enable()
        self.port = port
        self.address = 0
        self._tag = 0
        self.start()

    def start(self) -> None:
        """Set the controller up and reset the port."""
        raise NotImplementedError

    def begin(self, pid: int, endpoint: int, length: int) -> None:
        """Have the controller transfer what is in the buffer, or fill it."""
        raise NotImplementedError

    def result(self) -> tuple[int, int] | None:
        """How many bytes were moved, and an error (0: none), or None while the transfer is under way."""
        raise NotImplementedError

    def put_words(self, address: int, *words: int) -> None:
        """Numbers of 32 bits in memory."""
        self.access.write(address, b"".join(word.to_bytes(4, "little") for word in words))

    def transfer(self, pid: int, endpoint: int, data: bytes = b"", room: int = 0) -> bytes | None:
        """One transfer; None if the device refused or is not there."""
        if data:
            self.access.write(_BUFFER, data)
        self.begin(pid, endpoint, room if pid == IN else len(data))
        found: list[tuple[int, int]] = []

        def done() -> bool:
            self._wait(_MS)
            result = self.result()
            if result is not None:
                found.append(result)
            return result is not None

        wait_until(done)
        moved, error = found[0]
        if error:
            return None
        return self.access.read(_BUFFER, moved) if pid == IN and moved else b""

    def control(self, request: bytes, room: int = 0, data: bytes = b"") -> bytes | None:
        """A request on the control pipe, and what it gives; None if the device refuses it."""
        if self.transfer(SETUP, 0, request) is None:
            return None
        got = b""
        for at in range(0, len(data), 8):
            if self.transfer(OUT, 0, data[at : at + 8]) is None:
                return None
        while len(got) < room:
            part = self.transfer(IN, 0, room=min(self.packet_size, room - len(got)))
            if part is None:
                return None
            got += part
            if len(part) < self.packet_size:
                break
        if room:
            return got if self.transfer(OUT, 0) is not None else None
        return self.transfer(IN, 0)

    def configure(self, address: int = 7) -> None:
        """Give the device an address and its configuration."""
        assert self.control(bytes((0x00, 5, address, 0, 0, 0, 0, 0))) == b""
        self.address = address
        assert self.control(bytes((0x00, 9, 1, 0, 0, 0, 0, 0))) == b""

    def scsi(self, cdb: bytes, data: bytes = b"", room: int = 0) -> tuple[int, int, bytes]:
        """One command of the bulk-only transport: its status, the residue, and the data."""
        self._tag += 1
        length = len(data) or room
        wrapper = b"USBC" + self._tag.to_bytes(4, "little") + length.to_bytes(4, "little")
        wrapper += bytes((0x80 if room else 0, 0, len(cdb))) + cdb.ljust(16, b"\0")
        assert self.transfer(OUT, 2, wrapper) == b""
        for at in range(0, len(data), self.packet_size):
            assert self.transfer(OUT, 2, data[at : at + self.packet_size]) == b""
        got = b""
        while len(got) < room:
            asked = min(self.packet_size, room - len(got))
            part = self.transfer(IN, 1, room=asked)
            assert part is not None
            got += part
            if len(part) < asked:
                break
        status = self.transfer(IN, 1, room=13)
        assert status is not None and status[:8] == b"USBS" + wrapper[4:8]
        return status[12], int.from_bytes(status[8:12], "little"), got


class UhciHost(UsbHost):
    """UHCI, with one transfer in the queue of every frame."""

    def start(self) -> None:
        access, base = self.access, self.function.bars[4]
        self.base = base
        self.put_words(TABLE, *[QUEUE | 2] * 1024)
        self.put_words(QUEUE, 1, 1)
        access.port_out(base + 8, 4, TABLE)
        register = base + 0x10 + 2 * self.port
        access.port_out(register, 2, 0x0200)
        self._wait(50 * _MS)
        access.port_out(register, 2, 0x0004)
        access.port_out(base, 2, 1)

    def begin(self, pid: int, endpoint: int, length: int) -> None:
        token = (length - 1 & 0x7FF) << 21 | endpoint << 15 | self.address << 8 | pid
        self.put_words(TRANSFER, 1, 1 << 23 | 3 << 27 | 1 << 24, token, _BUFFER)
        self.access.store(QUEUE + 4, 4, TRANSFER)

    def result(self) -> tuple[int, int] | None:
        control = self.access.load(TRANSFER + 4, 4)
        if control & 1 << 23:
            return None
        self.access.port_out(self.base + 2, 2, 0x3F)
        return control + 1 & 0x7FF, control & (1 << 22)


class EhciHost(UsbHost):
    """EHCI, with one transfer in the asynchronous ring at a time; the frame list is empty."""

    packet_size = 16384

    def start(self) -> None:
        base = self.base = self.function.bars[0] + 0x20
        store = self.access.store
        self.put_words(TABLE, *[1] * 1024)
        self._ring(1, 0)
        store(base, 4, 2)
        store(base + 0x14, 4, TABLE)
        store(base + 0x18, 4, QUEUE)
        store(base, 4, 8 << 16 | 1)
        store(base + 0x40, 4, 1)
        self.reset_port()
        store(base, 4, 8 << 16 | 0x31)

    def reset_port(self) -> None:
        register = self.base + 0x44 + 4 * self.port
        self.access.store(register, 4, 0x1100)
        self._wait(50 * _MS)
        self.access.store(register, 4, 0x1000)
        self._wait(2 * _MS)

    def _ring(self, following: int, endpoint: int) -> None:
        characteristics = 64 << 16 | 1 << 15 | 1 << 14 | 2 << 12 | endpoint << 8 | self.address
        self.put_words(QUEUE, QUEUE | 2, characteristics, 1 << 30, 0, following, 1, 0)

    def begin(self, pid: int, endpoint: int, length: int) -> None:
        code = {OUT: 0, IN: 1, SETUP: 2}[pid]
        pages = [_BUFFER + 4096 * page for page in range(5)]
        self.put_words(TRANSFER, 1, 1, length << 16 | 1 << 15 | 3 << 10 | code << 8 | 0x80, *pages)
        self._ring(TRANSFER, endpoint)
        self._length = length

    def result(self) -> tuple[int, int] | None:
        token = self.access.load(TRANSFER + 8, 4)
        if token & 0x80:
            return None
        self.access.store(self.base + 4, 4, 0x3F)
        return self._length - (token >> 16 & 0x7FFF), token & 0x78


class OhciHost(UsbHost):
    """OHCI, with one transfer in the list of bulk or control transfers."""

    packet_size = 4096
    _HCCA = TABLE

    def start(self) -> None:
        base = self.base = self.function.bars[0]
        store = self.access.store
        self.access.write(self._HCCA, bytes(256))
        store(base + 0x08, 4, 1)
        self._wait(_MS)
        store(base + 0x34, 4, 0xA7782EDF)
        store(base + 0x18, 4, self._HCCA)
        store(base + 0x04, 4, 0x80)
        store(base + 0x54 + 4 * self.port, 4, 0x10)
        self._wait(50 * _MS)
        store(base + 0x54 + 4 * self.port, 4, 0x1F0000)
        self._queue(0, 0)
        store(base + 0x20, 4, QUEUE)
        store(base + 0x28, 4, QUEUE + 0x40)
        store(base + 0x04, 4, 0xB0)

    def _queue(self, transfer: int, endpoint: int) -> None:
        words = (64 << 16 | endpoint << 7 | self.address, _END, transfer or _END, 0)
        self.put_words(QUEUE + (0x40 if endpoint else 0), *words)

    def begin(self, pid: int, endpoint: int, length: int) -> None:
        code = {SETUP: 0, OUT: 1, IN: 2}[pid]
        start, end = (_BUFFER, _BUFFER + length - 1) if length else (0, 0)
        self.put_words(TRANSFER, 0xF << 28 | 2 << 24 | code << 19 | 1 << 18, start, _END, end)
        self._queue(TRANSFER, endpoint)
        self.access.store(self.base + 0x08, 4, 4 if endpoint else 2)
        self._length = length

    def result(self) -> tuple[int, int] | None:
        code = self.access.load(TRANSFER, 4) >> 28
        if code == 0xF or not self.access.load(self.base + 0x0C, 4) & 2:
            return None
        self.access.store(self.base + 0x0C, 4, 0x7F)
        start = self.access.load(TRANSFER + 4, 4)
        return (start - _BUFFER if start else self._length), code

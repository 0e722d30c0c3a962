"""The lists of an OHCI controller in guest memory (Open Host Controller Interface Specification for USB 1.0a, 4).

Devices answer a whole transfer descriptor at once: one packet of :meth:`UsbDevice.packet` stands for as many of the
wire's as the descriptor asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from qobra.machine.usb.device import IN, OUT, SETUP, Nak, Stall, UsbDevice
from qobra.machine.vmstate import VmState, u8, u32

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory

_ENDPOINT = _TRANSFER = Struct("<4I")
_ISOCHRONOUS = Struct("<4I8H")
_POINTER, _HALTED, _CARRY = 0xFFFFFFF0, 0x1, 0x2
_SKIP, _ISOCHRONOUS_FORMAT = 1 << 14, 1 << 15
_ROUNDING, _TOGGLE, _TOGGLE_GIVEN = 1 << 18, 1 << 24, 1 << 25
_PAGE, _PAGE_MASK = 4096, 0xFFFFF000
_DIRECTIONS = {1: OUT, 2: IN}
_NO_ERROR, _STALL, _NOT_RESPONDING, _BAD_PID, _UNDERRUN = 0, 4, 5, 6, 9
_NO_INTERRUPT = 7

_MAX_STEPS = 256
"""Endpoints and transfers that are looked at in one list and frame."""


class Lists:
    """Carries out what is in the lists. ``find`` tells which device answers to an address."""

    vmstate = VmState(u32("done_head"), u8("done_delay", maximum=_NO_INTERRUPT))

    def __init__(self, memory: GuestMemory, find: Callable[[int], UsbDevice | None]) -> None:
        self._memory = memory
        self._find = find
        self.done_head = 0
        """The transfers that were retired and not yet told of, last first."""
        self.done_delay = _NO_INTERRUPT
        """In how many frames they are to be told of; 7: when others are."""

    def clear(self) -> None:
        """Forget what was retired."""
        self.done_head, self.done_delay = 0, _NO_INTERRUPT

    def walk(self, endpoint: int, frame: int, *, isochronous: bool = True) -> bool:
        """Go through the list of endpoints from ``endpoint`` on; whether there was any transfer in it."""
        found, steps = False, 0
        while endpoint & _POINTER and steps < _MAX_STEPS:
            at = endpoint & _POINTER
            steps += 1
            control, tail, head, endpoint = _ENDPOINT.unpack(self._memory.read(at, _ENDPOINT.size))
            if control & _SKIP or head & _HALTED:
                continue
            if control & _ISOCHRONOUS_FORMAT and not isochronous:
                break  # what follows is of the same kind
            while head & _POINTER != tail & _POINTER and not head & _HALTED and steps < _MAX_STEPS:
                found = True
                steps += 1
                after = self._isochronous(head, frame) if control & _ISOCHRONOUS_FORMAT else self._serve(control, head)
                if after is None:
                    break
                head = after
                self._memory.write(at + 8, head.to_bytes(4, "little"))
        return found

    def _serve(self, control: int, head: int) -> int | None:
        # Carry out the transfer at `head`; what is the head then, or None where the device is to be asked again.
        at = head & _POINTER
        words, start, following, end = _TRANSFER.unpack(self._memory.read(at, _TRANSFER.size))
        pid = _DIRECTIONS.get(control >> 11 & 3) or _DIRECTIONS.get(words >> 19 & 3)
        if pid is None:
            pid = SETUP if words >> 19 & 3 == 0 else 0
        room = _length(start, end)
        device = self._find(control & 0x7F)
        code, moved = _NO_ERROR, 0
        if not pid:
            code = _BAD_PID
        elif device is None:
            code = _NOT_RESPONDING
        else:
            sent = b"" if pid == IN else self._gather(start, end, room)
            try:
                data = device.packet(pid, control >> 7 & 0xF, sent, room)
            except Nak:
                return None
            except Stall:
                code = _STALL
            else:
                moved = len(data) if pid == IN else room
                self._scatter(start, end, data)
                if moved < room and not words & _ROUNDING:
                    code = _UNDERRUN
        size = control >> 16 & 0x7FF
        toggle = bool(words & _TOGGLE) if words & _TOGGLE_GIVEN else bool(head & _CARRY)
        if code in (_NO_ERROR, _UNDERRUN):
            toggle ^= bool(max(1, -(-moved // size)) & 1) if size else True
        words = words & ~(0xF << 28 | 3 << 26 | 3 << 24) | code << 28 | _TOGGLE_GIVEN | (_TOGGLE if toggle else 0)
        if code not in (_NO_ERROR, _UNDERRUN):
            words |= 3 << 26 if code == _NOT_RESPONDING else 0
        start = 0 if moved == room and code == _NO_ERROR else _address(start, end, moved)
        self._memory.write(at, _TRANSFER.pack(words, start, self.done_head, end))
        # An error is told of at once.
        self._retired(at, 0 if code else words >> 21 & 7)
        after: int = following & _POINTER | (_CARRY if toggle else 0) | (_HALTED if code else 0)
        return after

    def _isochronous(self, head: int, frame: int) -> int | None:
        # No device has such an endpoint: nothing answers, whenever its frame comes.
        at = head & _POINTER
        words, page, following, end, *offsets = _ISOCHRONOUS.unpack(self._memory.read(at, _ISOCHRONOUS.size))
        begins, count = words & 0xFFFF, (words >> 24 & 7) + 1
        behind = frame - begins & 0xFFFF
        if behind >= 0x8000:
            return None  # it is for a later frame
        if behind < count:
            offsets[behind] = _NOT_RESPONDING << 12
            if behind + 1 < count:
                self._memory.write(at, _ISOCHRONOUS.pack(words, page, following, end, *offsets))
                return None
        words &= ~(0xF << 28)
        self._memory.write(at, _ISOCHRONOUS.pack(words, page, self.done_head, end, *offsets))
        self._retired(at, words >> 21 & 7)
        after: int = following & _POINTER | head & _CARRY
        return after

    def _retired(self, at: int, delay: int) -> None:
        self.done_head = at
        self.done_delay = min(self.done_delay, delay)

    def _pieces(self, start: int, end: int, length: int) -> list[tuple[int, int]]:
        # A buffer is in at most two pages: that of its start, and that of its end.
        first = min(length, _PAGE - start % _PAGE)
        pieces = [(start, first)] if first else []
        return [*pieces, (end & _PAGE_MASK, length - first)] if length > first else pieces

    def _gather(self, start: int, end: int, length: int) -> bytes:
        return b"".join(self._memory.read(*piece) for piece in self._pieces(start, end, length))

    def _scatter(self, start: int, end: int, data: bytes) -> None:
        at = 0
        for address, size in self._pieces(start, end, len(data)):
            self._memory.write(address, data[at : at + size])
            at += size


def _length(start: int, end: int) -> int:
    if not start:
        return 0
    if start & _PAGE_MASK == end & _PAGE_MASK:
        return max(0, end - start + 1)
    return _PAGE - start % _PAGE + end % _PAGE + 1


def _address(start: int, end: int, moved: int) -> int:
    # The address of the byte after the first `moved` ones.
    first = _PAGE - start % _PAGE
    return start + moved if moved < first else (end & _PAGE_MASK) + moved - first

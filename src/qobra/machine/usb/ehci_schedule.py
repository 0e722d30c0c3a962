"""The schedules of an EHCI controller in guest memory (Enhanced Host Controller Interface Specification 1.0, 3 and 4).

Devices answer a whole transfer descriptor at once: one packet of :meth:`UsbDevice.packet` stands for as many of the
wire's as the descriptor asks for. Nothing of a queue is kept between two visits, so that the guest may change it
whenever the doorbell has answered, and before.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from qobra.machine.usb.device import IN, OUT, SETUP, Nak, Stall, UsbDevice

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory

COMPLETE, ERROR = 0x01, 0x02
"""What there is to tell of descriptors that are done with, as bits of USBSTS (2.3.2)."""

_HEAD = Struct("<12I")
_DESCRIPTOR = Struct("<8I")
_OVERLAY = Struct("<9I")
_ISOCHRONOUS = Struct("<8I")
_LINK, _CHARACTERISTICS, _CAPABILITIES, _CURRENT, _NEXT, _ALTERNATE, _TOKEN, _BUFFER = range(8)
_TERMINATE, _POINTER = 0x1, 0xFFFFFFE0
_ITD, _QUEUE, _SITD, _SPAN = range(4)

_ACTIVE, _HALTED, _BUFFER_ERROR, _BABBLE, _TRANSACTION_ERROR = 0x80, 0x40, 0x20, 0x10, 0x08
_RETRIES, _ON_COMPLETE, _TOGGLE = 3 << 10, 1 << 15, 1 << 31
_PIDS = (OUT, IN, SETUP)
_TOGGLE_FROM_DESCRIPTOR = 1 << 14
_PAGES, _PAGE = 5, 4096

_ITD_ACTIVE, _ITD_ERROR, _ITD_ON_COMPLETE = 1 << 31, 1 << 28, 1 << 15
_SITD_STATE, _SITD_ON_COMPLETE = 0x0C, 1 << 31

MAX_STEPS = 256
"""Descriptors that are looked at in one frame, or in one visit to the asynchronous schedule."""
_IN_TURN = 16
"""Transfers of one queue before the next queue has its turn."""


class Schedules:
    """Carries out what is in the schedules. ``find`` tells which device answers to an address."""

    def __init__(self, memory: GuestMemory, find: Callable[[int], UsbDevice | None]) -> None:
        self._memory = memory
        self._find = find
        self.told = 0
        """What has come about since this was last cleared: :data:`COMPLETE` and :data:`ERROR`."""

    def asynchronous(self, start: int) -> int:
        """Go round the ring of queues from ``start`` until none gets any further; returns where to begin next time."""
        at = start & _POINTER
        going_on = at
        seen: set[int] = set()
        progress, steps = False, 0
        while steps < MAX_STEPS:
            if at in seen:
                if not progress:
                    break
                seen.clear()
                progress = False
            seen.add(at)
            link, done = self._serve(at, _IN_TURN)
            steps += 1 + done
            progress = progress or done > 0
            if at == start & _POINTER:
                going_on = link & _POINTER
            if link >> 1 & 3 != _QUEUE:
                break
            at = link & _POINTER
        return going_on

    def periodic(self, link: int) -> int:
        """Go through the list of one frame, the element of the frame list being ``link``; returns how much was done."""
        steps = 0
        while steps < MAX_STEPS and not link & _TERMINATE:
            steps += 1
            at, kind = link & _POINTER, link >> 1 & 3
            if kind == _QUEUE:
                link, done = self._serve(at, None)
                steps += done
            else:
                if kind == _ITD:
                    self._isochronous(at)
                elif kind == _SITD:
                    self._split_isochronous(at)
                link = self._memory.number(at, 4)
        return steps

    # -- queues

    def _serve(self, at: int, limit: int | None) -> tuple[int, int]:
        # What follows the queue at `at`, and how many transfers were got over with. Without a limit it is periodic,
        # and says itself how many transactions it has in each frame.
        head = list(_HEAD.unpack(self._memory.read(at, _HEAD.size)))
        if limit is None:
            capabilities = head[_CAPABILITIES]
            limit = (capabilities & 0xFF).bit_count() * max(1, capabilities >> 30)
        done = 0
        while done < limit:
            token = head[_TOKEN]
            if token & _HALTED or (not token & _ACTIVE and not self._advance(at, head)):
                break
            if not self._transfer(head):
                break
            done += 1
            self._write_back(at, head)
            self._memory.write((head[_CURRENT] & _POINTER) + 8, head[_TOKEN].to_bytes(4, "little"))
        return head[_LINK], done

    def _write_back(self, at: int, head: list[int]) -> None:
        self._memory.write(at + 4 * _CURRENT, _OVERLAY.pack(*head[_CURRENT:]))

    def _advance(self, at: int, head: list[int]) -> bool:
        # The next descriptor into the overlay (4.10.2), if there is one to carry out.
        old = head[_TOKEN]
        link = head[_NEXT]
        if old >> 16 & 0x7FFF and not head[_ALTERNATE] & _TERMINATE:
            link = head[_ALTERNATE]
        if link & _TERMINATE:
            return False
        descriptor = _DESCRIPTOR.unpack(self._memory.read(link & _POINTER, _DESCRIPTOR.size))
        following, alternate, token, *buffers = descriptor
        if not token & _ACTIVE:
            return False
        if not head[_CHARACTERISTICS] & _TOGGLE_FROM_DESCRIPTOR:
            token = token & ~_TOGGLE | old & _TOGGLE
        reload = head[_CHARACTERISTICS] >> 28
        head[_CURRENT:] = [link & _POINTER, following, alternate & ~0x1E | reload << 1, token, *buffers]
        self._write_back(at, head)
        return True

    def _transfer(self, head: list[int]) -> bool:
        # Carry out what the overlay says; False where the device wants to be asked again.
        token = head[_TOKEN]
        room, page, offset = token >> 16 & 0x7FFF, token >> 12 & 7, head[_BUFFER] & _PAGE - 1
        code = token >> 8 & 3
        if code >= len(_PIDS) or page * _PAGE + offset + room > _PAGES * _PAGE:
            self._fail(head, _BUFFER_ERROR)
            return True
        pid = _PIDS[code]
        characteristics = head[_CHARACTERISTICS]
        device = self._find(characteristics & 0x7F)
        if device is None:
            self._fail(head, _TRANSACTION_ERROR)
            return True
        sent = b"" if pid == IN else self._gather(head, page, offset, room)
        try:
            data = device.packet(pid, characteristics >> 8 & 0xF, sent, room)
        except Nak:
            return False
        except Stall:
            self._fail(head, 0)
            return True
        moved = len(data) if pid == IN else room
        if pid == IN:
            self._scatter(head, page, offset, data)
        size = characteristics >> 16 & 0x7FF
        packets = max(1, -(-moved // size)) if size else 1
        end = page * _PAGE + offset + moved
        head[_BUFFER] = head[_BUFFER] & ~(_PAGE - 1) | end & _PAGE - 1
        token = token & ~(0x7FFF << 16 | 7 << 12 | _ACTIVE) | room - moved << 16 | (end // _PAGE & 7) << 12
        head[_TOKEN] = token ^ (_TOGGLE if packets & 1 else 0)
        if token & _ON_COMPLETE or moved < room:
            self.told |= COMPLETE
        return True

    def _fail(self, head: list[int], error: int) -> None:
        token = head[_TOKEN] & ~_ACTIVE | _HALTED | error
        if error == _TRANSACTION_ERROR:
            token &= ~_RETRIES
        head[_TOKEN] = token
        self.told |= ERROR | (COMPLETE if token & _ON_COMPLETE else 0)

    def _pieces(self, head: list[int], page: int, offset: int, length: int) -> list[tuple[int, int]]:
        # (address, length) of each page's part. The caller has seen to it that there are pages enough.
        found = []
        while length > 0:
            size = min(length, _PAGE - offset)
            found.append(((head[_BUFFER + page] & ~(_PAGE - 1)) + offset, size))
            length -= size
            page, offset = page + 1, 0
        return found

    def _gather(self, head: list[int], page: int, offset: int, length: int) -> bytes:
        return b"".join(self._memory.read(*piece) for piece in self._pieces(head, page, offset, length))

    def _scatter(self, head: list[int], page: int, offset: int, data: bytes) -> None:
        at = 0
        for address, size in self._pieces(head, page, offset, len(data)):
            self._memory.write(address, data[at : at + size])
            at += size

    # -- isochronous transfers: no device has an endpoint for them, so that nothing answers

    def _isochronous(self, at: int) -> None:
        slots = list(_ISOCHRONOUS.unpack(self._memory.read(at + 4, _ISOCHRONOUS.size)))
        if not any(slot & _ITD_ACTIVE for slot in slots):
            return
        for number, slot in enumerate(slots):
            if slot & _ITD_ACTIVE:
                slots[number] = slot & ~_ITD_ACTIVE | _ITD_ERROR
                self.told |= ERROR | (COMPLETE if slot & _ITD_ON_COMPLETE else 0)
        self._memory.write(at + 4, _ISOCHRONOUS.pack(*slots))

    def _split_isochronous(self, at: int) -> None:
        state = self._memory.number(at + _SITD_STATE, 4)
        if state & _ACTIVE:
            self._memory.write(at + _SITD_STATE, (state & ~_ACTIVE | _TRANSACTION_ERROR).to_bytes(4, "little"))
            self.told |= ERROR | (COMPLETE if state & _SITD_ON_COMPLETE else 0)

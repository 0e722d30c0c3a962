"""Transfers: what the guest puts into an endpoint's ring, given to the device (xHCI 1.1, sections 4.10 and 4.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.usb.device import IN, OUT, SETUP, Nak, Stall, UsbDevice
from qobra.machine.usb.xhci import ring, slots
from qobra.machine.usb.xhci.ring import Trb
from qobra.machine.usb.xhci.slots import Endpoint, Pipe, Slot

if TYPE_CHECKING:
    from qobra.machine.usb.xhci.controller import Xhci

_AT_ONCE = 64
"""Transfers of one endpoint that are carried out before others have their turn."""
_MAX_TRBS = 1024
_MAX_BYTES = 16 << 20
"""The longest transfer."""
BYTES_AT_ONCE = 64 << 20
"""How much is transferred, by all endpoints together, before the guest and the machine have their turn."""
_WITH_DATA = (ring.NORMAL, ring.DATA)
_ON_CONTROL = (ring.SETUP, ring.DATA, ring.STATUS)


class Suspended(Exception):
    """The device's port sleeps."""


class Transfers:
    """The endpoints of the controller's slots."""

    def __init__(self, controller: Xhci) -> None:
        self._controller = controller
        self._memory = controller.memory
        self._contexts = controller.contexts
        self._bytes_left = 0

    def begin(self) -> None:
        """The endpoints have their turn: :data:`BYTES_AT_ONCE` may be transferred."""
        self._bytes_left = BYTES_AT_ONCE

    def run(self, slot: Slot, endpoint: Endpoint) -> bool:
        """Carry out what is in the rings of ``endpoint``; whether more may be done at once."""
        more = [self._run_pipe(slot, endpoint, pipe) for pipe in list(endpoint.pipes.values())]
        return any(more)

    def _run_pipe(self, slot: Slot, endpoint: Endpoint, pipe: Pipe) -> bool:
        for _ in range(_AT_ONCE):
            if endpoint.state != slots.RUNNING:
                return False
            if self._controller.blocked or self._bytes_left <= 0:
                return True
            try:
                ahead = pipe.ring.here()
                transfer = self._gather(ahead)
            except ring.RingBroken:
                trb = Trb(pipe.ring.dequeue, 0, 0, 0)
                self._fail(slot, endpoint, pipe, trb, ring.TRB_ERROR, slots.ERROR)
                return False
            if not transfer:
                return False
            if not self._carry_out(slot, endpoint, pipe, transfer, ahead):
                return False
        return True

    def stop(self, slot: Slot, endpoint: Endpoint) -> None:
        """The guest stops the endpoint: what the device had no answer to yet is given back."""
        for pipe in endpoint.pipes.values():
            if not pipe.tried or pipe.stream:
                continue  # of a stream that the device has not chosen nothing was begun
            ahead = pipe.ring.here()
            try:
                first = ahead.fetch()
            except ring.RingBroken:
                first = None
            if first is not None:
                self._event(slot, endpoint, first, ring.STOPPED, first.length)
                pipe.ring.dequeue, pipe.ring.cycle = first.address, ahead.cycle
        self._contexts.set_state(endpoint, slots.STOPPED)

    def _gather(self, ahead: ring.Ring) -> list[Trb]:
        # What is chained together; nothing as long as a part is missing.
        found: list[Trb] = []
        while len(found) < _MAX_TRBS:
            trb = ahead.fetch()
            if trb is None:
                return []
            found.append(trb)
            if not trb.control & ring.CHAIN:
                return found
        raise ring.RingBroken

    def _carry_out(self, slot: Slot, endpoint: Endpoint, pipe: Pipe, transfer: list[Trb], ahead: ring.Ring) -> bool:
        first = next((trb for trb in transfer if trb.kind not in (ring.EVENT_DATA, ring.NO_OP)), None)
        code, moved = ring.SUCCESS, 0
        if first is not None:
            total = sum(trb.length for trb in transfer if trb.kind in _WITH_DATA)
            if not self._is_sound(endpoint, transfer, first) or total > _MAX_BYTES:
                self._fail(slot, endpoint, pipe, first, ring.TRB_ERROR, slots.ERROR)
                return False
            self._bytes_left -= total
            try:
                moved = self._move(slot, endpoint, pipe, transfer, first, total)
            except (Nak, Suspended):
                pipe.tried = True
                return False
            except Stall:
                code = ring.STALL_ERROR
            except LookupError:
                code = ring.TRANSACTION_ERROR
        pipe.tried = False
        if endpoint.state != slots.RUNNING:
            return False  # what the device did has stopped it
        if code != ring.SUCCESS:
            self._fail(slot, endpoint, pipe, first or transfer[0], code, slots.HALTED)
            return False
        pipe.ring.dequeue, pipe.ring.cycle = ahead.dequeue, ahead.cycle
        self._report(slot, endpoint, transfer, moved)
        return True

    def _is_sound(self, endpoint: Endpoint, transfer: list[Trb], first: Trb) -> bool:
        is_control = endpoint.type == slots.CONTROL_TYPE
        allowed = _ON_CONTROL if is_control else (ring.NORMAL,)
        if first.kind not in allowed or (first.kind == ring.SETUP and first.status & 0x1FFFF != 8):
            return False
        follow = (ring.EVENT_DATA, ring.NO_OP, *((ring.NORMAL,) if first.kind in _WITH_DATA else ()))
        return all(trb is first or trb.kind in follow for trb in transfer)

    def _move(self, slot: Slot, endpoint: Endpoint, pipe: Pipe, transfer: list[Trb], first: Trb, total: int) -> int:
        # Raises Nak, Stall, Suspended, and LookupError where there is no device.
        device = self._device(slot)
        if first.kind == ring.SETUP:
            try:
                device.packet(SETUP, 0, first.parameter.to_bytes(8, "little"), 0)
            except Stall:
                pass  # devices refuse in the stage that follows
            return 0
        is_in = endpoint.is_in if endpoint.type != slots.CONTROL_TYPE else bool(first.control & ring.TO_HOST)
        with_data = [trb for trb in transfer if trb.kind in _WITH_DATA]
        if not is_in:
            sent = b"".join(map(self._data_of, with_data))
            device.packet(OUT, endpoint.number, sent, 0, pipe.stream)
            return total
        data = memoryview(device.packet(IN, endpoint.number, b"", total, pipe.stream))
        at = 0
        for trb in with_data:
            if at >= len(data):
                break
            self._memory.write(trb.parameter, data[at : at + trb.length])
            at += trb.length
        return len(data)

    def _data_of(self, trb: Trb) -> bytes:
        if trb.control & ring.IMMEDIATE:
            return trb.parameter.to_bytes(8, "little")[: trb.length]
        return self._memory.read(trb.parameter, trb.length)

    def _device(self, slot: Slot) -> UsbDevice:
        controller = self._controller
        device, port = controller.device_of(slot), controller.hub.find(slot.root_port)
        if device is None or port is None or not port.is_enabled:
            raise LookupError
        if port.is_suspended:
            raise Suspended
        return device

    # -- events

    def _report(self, slot: Slot, endpoint: Endpoint, transfer: list[Trb], moved: int) -> None:
        # Where less came than there was room for, that is told where it ended, and at the end if that is asked for.
        left, accumulated, is_short = moved, 0, False
        for trb in transfer:
            if trb.kind == ring.EVENT_DATA:
                if trb.control & ring.ON_COMPLETION:
                    code = ring.SHORT_PACKET if is_short else ring.SUCCESS
                    self._event(slot, endpoint, trb, code, accumulated, own_data=True)
                accumulated = 0
                continue
            wanted = trb.length if trb.kind in _WITH_DATA else 0
            ends_here = not is_short and left < wanted
            chunk = min(left, wanted)
            left -= chunk
            accumulated = accumulated + chunk & 0xFFFFFF
            is_short = is_short or ends_here
            if trb.control & ring.ON_COMPLETION or (ends_here and trb.control & ring.SHORT_EVENT):
                self._event(slot, endpoint, trb, ring.SHORT_PACKET if is_short else ring.SUCCESS, wanted - chunk)

    def _fail(self, slot: Slot, endpoint: Endpoint, pipe: Pipe, trb: Trb, code: int, state: int) -> None:
        pipe.ring.dequeue = trb.address
        pipe.ring.cycle = trb.control & ring.CYCLE if trb.control else pipe.ring.cycle
        self._contexts.set_state(endpoint, state)
        self._event(slot, endpoint, trb, code, trb.length if trb.kind in _WITH_DATA else 0)

    def _event(
        self, slot: Slot, endpoint: Endpoint, trb: Trb, code: int, length: int, *, own_data: bool = False
    ) -> None:
        self._controller.post(
            trb.status >> 22,
            ring.TRANSFER_EVENT,
            trb.parameter if own_data else trb.address,
            code << 24 | length,
            slot.number << 24 | endpoint.dci << 16 | (0x4 if own_data else 0),
            quietly=bool(trb.control & ring.NO_INTERRUPT),
        )

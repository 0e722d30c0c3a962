"""The command ring, and what its commands do to slots and endpoints (xHCI 1.1, section 4.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.usb.device import IN, SETUP, Nak, Stall
from qobra.machine.usb.xhci import ring, slots
from qobra.machine.usb.xhci.ring import Ring, Trb
from qobra.machine.usb.xhci.slots import Slot
from qobra.machine.vmstate import VmState, flag, part

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.machine.usb.xhci.controller import Xhci

_ENABLE_SLOT, _DISABLE_SLOT, _ADDRESS_DEVICE, _CONFIGURE, _EVALUATE = range(9, 14)
_RESET_ENDPOINT, _STOP_ENDPOINT, _SET_DEQUEUE, _RESET_DEVICE = range(14, 18)
_PORT_BANDWIDTH, _NO_OP = 21, 23
_NEC_COMPLETION, _NEC_FIRMWARE = 48, 49
"""What NEC's own command is answered with, and the command, which asks for the version of the firmware."""
_BLOCK_SET_ADDRESS = _DECONFIGURE = 0x200
_CYCLE_STATE, STOP, ABORT, RUNNING = 0x1, 0x2, 0x4, 0x8
_AT_ONCE = 256
_STATE_SHIFT, _ENTRIES_SHIFT, _ADDRESS = 27, 27, 0xFF
_EXIT_LATENCY, _TARGET, _PACKET = 0xFFFF, 0xFFC00000, 0xFFFF0000
_HUB_FIELDS = 0x06000000
_FREE_PERCENT = 80


class Failed(Exception):
    """A command fails with a completion code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Commands:
    """The command ring of a controller."""

    vmstate = VmState(part("_ring"), flag("running"))

    def __init__(self, controller: Xhci) -> None:
        self._controller = controller
        self._memory = controller.memory
        self._contexts = controller.contexts
        self._ring = Ring(controller.memory)
        self.running = False
        self._table: dict[int, Callable[[Trb], int]] = {
            _ENABLE_SLOT: self._enable_slot,
            _DISABLE_SLOT: self._disable_slot,
            _ADDRESS_DEVICE: self._address_device,
            _CONFIGURE: self._configure,
            _EVALUATE: self._evaluate,
            _RESET_ENDPOINT: self._reset_endpoint,
            _STOP_ENDPOINT: self._stop_endpoint,
            _SET_DEQUEUE: self._set_dequeue,
            _RESET_DEVICE: self._reset_device,
            _PORT_BANDWIDTH: self._port_bandwidth,
            _NO_OP: lambda trb: trb.slot,
        }

    def reset(self) -> None:
        """No ring."""
        self._ring = Ring(self._memory)
        self.running = False

    # -- the ring

    def write_low(self, value: int) -> None:
        """The lower half of CRCR: where the ring is, or that it is to stop."""
        if self.running:
            if value & (STOP | ABORT):
                self.running = False
                self._complete(self._ring.dequeue, ring.COMMAND_RING_STOPPED, 0)
            return
        self._ring.dequeue = self._ring.dequeue & ~0xFFFFFFFF | value & ~0x3F
        self._ring.cycle = value & _CYCLE_STATE

    def write_high(self, value: int) -> None:
        """The upper half."""
        if not self.running:
            self._ring.dequeue = self._ring.dequeue & 0xFFFFFFFF | value << 32

    def run(self) -> bool:
        """Carry out what is in the ring; whether more may be done at once."""
        for _ in range(_AT_ONCE):
            if not self.running:
                return False
            if self._controller.blocked:
                return True
            try:
                trb = self._ring.fetch()
            except ring.RingBroken:
                self._controller.break_down()
                return False
            if trb is None:
                return False
            if trb.kind == _NEC_FIRMWARE and self._controller.firmware is not None:
                status = ring.SUCCESS << 24 | self._controller.firmware
                self._controller.post(0, _NEC_COMPLETION, trb.address, status, 0)
                continue
            slot = trb.slot
            try:
                handler = self._table.get(trb.kind)
                if handler is None:
                    raise Failed(ring.TRB_ERROR)
                slot, code = handler(trb), ring.SUCCESS
            except Failed as failed:
                code = failed.code
            self._complete(trb.address, code, slot)
        return True

    def _complete(self, address: int, code: int, slot: int) -> None:
        self._controller.post(0, ring.COMMAND_COMPLETION, address, code << 24, slot << 24)

    # -- slots

    def _slot(self, trb: Trb, *states: int) -> Slot:
        # The slot of a command, in one of ``states``.
        slot = self._controller.slots.get(trb.slot)
        if slot is None:
            raise Failed(ring.SLOT_NOT_ENABLED)
        if slot.state not in states:
            raise Failed(ring.CONTEXT_STATE_ERROR)
        return slot

    def _enable_slot(self, _trb: Trb) -> int:
        controller = self._controller
        for number in range(1, controller.slots_enabled + 1):
            if number not in controller.slots:
                controller.slots[number] = Slot(number)
                return number
        raise Failed(ring.NO_SLOTS)

    def _disable_slot(self, trb: Trb) -> int:
        slot = self._slot(trb, slots.ENABLED, slots.DEFAULT, slots.ADDRESSED, slots.CONFIGURED)
        self._remove_endpoints(slot, slots.CONTROL)
        self._set_slot_state(slot, slots.ENABLED)
        del self._controller.slots[slot.number]
        return slot.number

    def _address_device(self, trb: Trb) -> int:
        is_blocked = bool(trb.control & _BLOCK_SET_ADDRESS)
        slot = self._slot(trb, slots.ENABLED, *(() if is_blocked else (slots.DEFAULT,)))
        drop, add = self._input_flags(trb)
        if drop or add != 0x3:
            raise Failed(ring.PARAMETER_ERROR)
        controller, source = self._controller, trb.parameter & ~0xF
        words = self._contexts.words(source + slots.CONTEXT_SIZE)
        port = controller.hub.find(words[1] >> 16 & 0xFF)
        if port is None:
            raise Failed(ring.PARAMETER_ERROR)
        path = slots.place_of(port, words[0] & 0xFFFFF)
        place = controller.bus.port_at(path)
        device = place.device if place is not None else None
        if device is None or not port.is_enabled:
            raise Failed(ring.TRANSACTION_ERROR)
        if any(other is not slot and other.is_present and other.path == path for other in controller.slots.values()):
            raise Failed(ring.TRB_ERROR)
        context = self._memory.number(controller.context_array + 8 * slot.number, 8) & ~0x3F
        control = self._contexts.endpoint(source + 2 * slots.CONTEXT_SIZE, slots.CONTROL, context + slots.CONTEXT_SIZE)
        if control is None:
            raise Failed(ring.PARAMETER_ERROR)
        slot.context, slot.root_port, slot.path, slot.is_present = context, port.number, path, True
        slot.endpoints = {slots.CONTROL: control}
        device.reset()
        address = 0
        if not is_blocked:
            address = slot.number
            try:
                device.packet(SETUP, 0, bytes((0x00, 0x05, address)) + bytes(5), 0)
                device.packet(IN, 0, b"", 0)
            except (Nak, Stall):
                raise Failed(ring.TRANSACTION_ERROR)
        words[3] = words[3] & ~_ADDRESS | address
        self._contexts.put_words(context, words)
        self._set_slot_state(slot, slots.DEFAULT if is_blocked else slots.ADDRESSED)
        return slot.number

    def _reset_device(self, trb: Trb) -> int:
        slot = self._slot(trb, slots.DEFAULT, slots.ADDRESSED, slots.CONFIGURED)
        self._remove_endpoints(slot, slots.CONTROL + 1)
        words = self._contexts.words(slot.context)
        words[0] = words[0] & ~(0x1F << _ENTRIES_SHIFT) | 1 << _ENTRIES_SHIFT
        words[3] &= ~_ADDRESS
        self._contexts.put_words(slot.context, words)
        self._set_slot_state(slot, slots.DEFAULT)
        return slot.number

    def _set_slot_state(self, slot: Slot, state: int) -> None:
        slot.state = state
        if slot.context:
            words = self._contexts.words(slot.context)
            words[3] = words[3] & ~(0x1F << _STATE_SHIFT) | state << _STATE_SHIFT
            self._contexts.put_words(slot.context, words)

    def _remove_endpoints(self, slot: Slot, first: int) -> None:
        for dci in [dci for dci in slot.endpoints if dci >= first]:
            self._contexts.set_state(slot.endpoints.pop(dci), slots.DISABLED)

    # -- contexts

    def _input_flags(self, trb: Trb) -> tuple[int, int]:
        words = self._contexts.words(trb.parameter & ~0xF)
        return words[0], words[1]

    def _configure(self, trb: Trb) -> int:
        if trb.control & _DECONFIGURE:
            slot = self._slot(trb, slots.ADDRESSED, slots.CONFIGURED)
            self._remove_endpoints(slot, slots.CONTROL + 1)
            self._set_entries(slot, 1)
            self._set_slot_state(slot, slots.ADDRESSED)
            return slot.number
        slot = self._slot(trb, slots.ADDRESSED, slots.CONFIGURED)
        drop, add = self._input_flags(trb)
        if drop & 0x3 or add & 0x2:
            raise Failed(ring.PARAMETER_ERROR)
        source = trb.parameter & ~0xF
        for dci in range(slots.CONTROL + 1, slots.LAST_ENDPOINT + 1):
            if (drop | add) >> dci & 1 and dci in slot.endpoints:
                self._contexts.set_state(slot.endpoints.pop(dci), slots.DISABLED)
            if add >> dci & 1:
                at = slots.CONTEXT_SIZE * dci
                endpoint = self._contexts.endpoint(
                    source + slots.CONTEXT_SIZE + at, dci, slot.context + at, streams=self._controller.streams
                )
                if endpoint is None:
                    raise Failed(ring.PARAMETER_ERROR)
                slot.endpoints[dci] = endpoint
        words = self._contexts.words(source + slots.CONTEXT_SIZE)
        self._set_entries(slot, words[0] >> _ENTRIES_SHIFT if add & 1 else max(slot.endpoints))
        if add & 1:
            self._take_hub_fields(slot, words)
        self._set_slot_state(slot, slots.CONFIGURED if len(slot.endpoints) > 1 else slots.ADDRESSED)
        return slot.number

    def _set_entries(self, slot: Slot, count: int) -> None:
        words = self._contexts.words(slot.context)
        words[0] = words[0] & ~(0x1F << _ENTRIES_SHIFT) | count << _ENTRIES_SHIFT
        self._contexts.put_words(slot.context, words)

    def _take_hub_fields(self, slot: Slot, source: list[int]) -> None:
        words = self._contexts.words(slot.context)
        words[0] = words[0] & ~_HUB_FIELDS | source[0] & _HUB_FIELDS
        words[1] = words[1] & 0x00FFFFFF | source[1] & 0xFF000000
        self._contexts.put_words(slot.context, words)

    def _evaluate(self, trb: Trb) -> int:
        slot = self._slot(trb, slots.DEFAULT, slots.ADDRESSED, slots.CONFIGURED)
        drop, add = self._input_flags(trb)
        if drop:
            raise Failed(ring.PARAMETER_ERROR)
        source = (trb.parameter & ~0xF) + slots.CONTEXT_SIZE
        if add & 0x1:
            wanted, words = self._contexts.words(source), self._contexts.words(slot.context)
            words[1] = words[1] & ~_EXIT_LATENCY | wanted[1] & _EXIT_LATENCY
            words[2] = words[2] & ~_TARGET | wanted[2] & _TARGET
            self._contexts.put_words(slot.context, words)
        if add & 0x2:
            at = slot.context + slots.CONTEXT_SIZE
            wanted, words = self._contexts.words(source + slots.CONTEXT_SIZE), self._contexts.words(at)
            words[1] = words[1] & ~_PACKET | wanted[1] & _PACKET
            self._contexts.put_words(at, words)
        return slot.number

    # -- endpoints

    def _endpoint(self, trb: Trb, *states: int) -> tuple[Slot, slots.Endpoint]:
        slot = self._slot(trb, slots.DEFAULT, slots.ADDRESSED, slots.CONFIGURED)
        if not trb.endpoint:
            raise Failed(ring.TRB_ERROR)
        endpoint = slot.endpoints.get(trb.endpoint)
        if endpoint is None:
            raise Failed(ring.ENDPOINT_NOT_ENABLED)
        if endpoint.state not in states:
            raise Failed(ring.CONTEXT_STATE_ERROR)
        return slot, endpoint

    def _reset_endpoint(self, trb: Trb) -> int:
        slot, endpoint = self._endpoint(trb, slots.HALTED)
        self._contexts.set_state(endpoint, slots.STOPPED)
        return slot.number

    def _stop_endpoint(self, trb: Trb) -> int:
        slot, endpoint = self._endpoint(trb, slots.RUNNING)
        self._controller.transfers.stop(slot, endpoint)
        return slot.number

    def _set_dequeue(self, trb: Trb) -> int:
        slot, endpoint = self._endpoint(trb, slots.STOPPED, slots.ERROR)
        pipe = self._contexts.pipe(endpoint, trb.status >> 16)
        if pipe is None:
            raise Failed(ring.TRB_ERROR)
        pipe.ring.dequeue, pipe.ring.cycle = trb.parameter & ~0xF, trb.parameter & 1
        self._contexts.set_state(endpoint, slots.STOPPED)
        return slot.number

    def _port_bandwidth(self, trb: Trb) -> int:
        # Nothing is reserved for anybody: each port has what periodic transfers may take at most.
        ports = bytes((0, *(_FREE_PERCENT for _ in self._controller.hub.ports)))
        self._memory.write(trb.parameter & ~0xF, ports)
        return trb.slot

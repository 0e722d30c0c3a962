"""The registers of an xHC, and what holds its parts together (xHCI 1.1, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qobra.machine.usb.bus import UsbBus
from qobra.machine.usb.xhci import ring, slots
from qobra.machine.usb.xhci.commands import RUNNING, Commands
from qobra.machine.usb.xhci.interrupter import Interrupter
from qobra.machine.usb.xhci.ports import RootHub, RootPort
from qobra.machine.usb.xhci.slots import Contexts, Slot
from qobra.machine.usb.xhci.transfers import Transfers
from qobra.machine.vmstate import Field, Listed, Number, Together, VmState, i64, part, parts, timer, u32, u64

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory
    from qobra.machine.usb.device import UsbDevice
    from qobra.machine.vclock import VirtualClock

OPERATIONAL, PORT_SETS, RUNTIME, DOORBELLS, MESSAGES = 0x40, 0x440, 0x1000, 0x2000, 0x3000
_PORT_SET_SIZE, _INTERRUPTERS, _INTERRUPTER_SIZE = 0x10, 0x20, 0x20
_COMMAND, _STATUS, _PAGE_SIZE, _NOTIFICATIONS = 0x00, 0x04, 0x08, 0x14
_COMMAND_RING, _CONTEXTS, _CONFIG = 0x18, 0x30, 0x38

_RUN, _RESET, _INTERRUPTS, _SAVE, _RESTORE, _WRAP_EVENTS = 0x001, 0x002, 0x004, 0x100, 0x200, 0x400
_COMMAND_KEPT = 0xC0D
_HALTED, _SYSTEM_ERROR, _EVENT, _PORT_CHANGE, _RESTORE_ERROR, _BROKEN = 0x01, 0x04, 0x08, 0x10, 0x400, 0x1000
_STATUS_CLEARED = _SYSTEM_ERROR | _EVENT | _PORT_CHANGE | _RESTORE_ERROR

_VERSION = 0x0100
_EXTENDED = 0x20
_USB2, _USB3, _NAME = 0x02000402, 0x03000002, 0x20425355
_MICROFRAME_NS = 125_000
_MFINDEX_LIMIT = 0x4000
_ROUNDS = 16
_COMMANDS = (0, 0)
"""Stands for the command ring among the endpoints that are due."""
_DUE = Listed(Together(Number(1), Number(1, maximum=slots.LAST_ENDPOINT)), 256 * 32)


class XhciBus(UsbBus):
    """A bus whose controller waits until devices have something to say."""

    ready: Callable[[UsbDevice, int], None] = staticmethod(lambda _device, _endpoint: None)

    def endpoint_ready(self, device: UsbDevice, endpoint: int) -> None:
        self.ready(device, endpoint)


class Xhci:
    """A controller with ``usb2`` and ``usb3`` ports on ``bus``. Everything runs inside the control strand.

    ``message(n)`` sends the interrupt of interrupter ``n`` and says whether it did; otherwise ``pin(level)`` drives the
    line, for the first of them. ``firmware`` is a version that NEC's driver may ask for.
    """

    vmstate = VmState(
        u32("_command", "_status", "_notifications", "_config"),
        u64("context_array"),
        i64("_started_ns"),
        timer("_wrap_timer", "_timer"),
        part("_commands"),
        parts("_interrupters"),
        part("hub"),
        Field(
            "slots",
            slots.SLOTS_STATE,
            get=lambda self: slots.slots_saved(self.slots),
            put=lambda self, saved: self.restore_slots(saved),
        ),
        Field("due", _DUE, get=lambda self: list(self._due), put=lambda self, due: self.restore_due(due)),
    )

    def __init__(
        self,
        bus: XhciBus,
        memory: GuestMemory,
        clock: VirtualClock,
        *,
        ports: tuple[int, int],
        slot_count: int,
        interrupters: int,
        message: Callable[[int], bool],
        pin: Callable[[bool], None],
        firmware: int | None = None,
        streams: int = 0,
    ) -> None:
        self.bus = bus
        self.memory = memory
        self.contexts = Contexts(memory)
        self.firmware = firmware
        self.streams = streams
        """Arrays of streams have up to 2 ** (this + 1) of them; 0: there are none."""
        self.slots: dict[int, Slot] = {}
        self.context_array = 0
        self._clock = clock
        self._slot_count = slot_count
        self._usb2, self._usb3 = ports
        self._message = message
        self._pin = pin
        self._due: dict[tuple[int, int], None] = {}
        self._is_running = False
        self._timer = clock.timer(self._run)
        self._wrap_timer = clock.timer(self._wrapped)
        self._started_ns = 0
        self._command = self._status = self._notifications = self._config = 0
        self._interrupters = [
            Interrupter(memory, partial(self._signal, number), self._run, self.break_down)
            for number in range(interrupters)
        ]
        self.hub = RootHub(bus, self._usb2, self._usb3, self._port_changed, self._device_gone)
        self.transfers = Transfers(self)
        self._commands = Commands(self)
        bus.ready = self._endpoint_ready

    # -- life

    def reset(self) -> None:
        """As after power-on: every device is found anew."""
        self._command = self._notifications = self._config = self.context_array = 0
        self._status = _HALTED
        self._started_ns = 0
        self._timer.cancel()
        self._wrap_timer.cancel()
        self._due.clear()
        self.slots.clear()
        self._commands.reset()
        for interrupter in self._interrupters:
            interrupter.reset()
        for port in self.hub.ports:
            port.restart()
        self._pin(False)

    def close(self) -> None:
        """Stop."""
        self._timer.cancel()
        self._wrap_timer.cancel()

    def break_down(self) -> None:
        """The guest has given what no controller can work with: it has to reset this one."""
        self._status |= _BROKEN | _HALTED
        self._command &= ~_RUN
        self._commands.running = False

    def restore_slots(self, saved: list[object]) -> None:
        """The slots of a saved state."""
        self.slots = slots.slots_restored(self.memory, self._slot_count, saved)

    def restore_due(self, due: list[tuple[int, int]]) -> None:
        """What was still to be done in a saved state."""
        self._due = dict.fromkeys(due)

    def go_on(self) -> None:
        """The state was loaded: what was under way goes on."""
        self._add_tried()
        if self._due:
            self._timer.set(self._clock.now_ns())

    @property
    def slots_enabled(self) -> int:
        """How many slots the guest uses."""
        return min(self._config & 0xFF, self._slot_count)

    @property
    def blocked(self) -> bool:
        """Whether events wait for the guest, so that nothing is to be done that leads to others."""
        return any(each.full for each in self._interrupters)

    # -- registers

    def read(self, offset: int) -> int:
        """The 32-bit register at ``offset``."""
        if offset < OPERATIONAL:
            return self._capability(offset)
        if PORT_SETS <= offset < PORT_SETS + _PORT_SET_SIZE * len(self.hub.ports):
            number, at = divmod(offset - PORT_SETS, _PORT_SET_SIZE)
            return self.hub.ports[number].read(at)
        if offset < RUNTIME:
            return self._read_operational(offset - OPERATIONAL)
        if offset == RUNTIME:
            return self._microframe
        number, at = divmod(offset - RUNTIME - _INTERRUPTERS, _INTERRUPTER_SIZE)
        return self._interrupters[number].read(at) if 0 <= number < len(self._interrupters) else 0

    def _capability(self, offset: int) -> int:
        usb2, usb3 = self._usb2, self._usb3
        return {
            0x00: _VERSION << 16 | OPERATIONAL,
            0x04: usb2 + usb3 << 24 | len(self._interrupters) << 8 | self._slot_count,
            0x08: 0x0F,  # one segment in a table of event rings; isochronous transfers are scheduled as they come
            0x10: _EXTENDED >> 2 << 16 | self.streams << 12 | 0x0001,  # 64-bit addresses
            0x14: DOORBELLS,
            0x18: RUNTIME,
            _EXTENDED: _USB2,
            _EXTENDED + 0x4: _NAME,
            _EXTENDED + 0x8: usb2 << 8 | usb3 + 1,
            _EXTENDED + 0x10: _USB3,
            _EXTENDED + 0x14: _NAME,
            _EXTENDED + 0x18: usb3 << 8 | 1,
        }.get(offset, 0)

    def _read_operational(self, offset: int) -> int:
        return {
            _COMMAND: self._command,
            _STATUS: self._status,
            _PAGE_SIZE: 1,
            _NOTIFICATIONS: self._notifications,
            _COMMAND_RING: RUNNING if self._commands.running else 0,
            _CONTEXTS: self.context_array & 0xFFFFFFFF,
            _CONTEXTS + 4: self.context_array >> 32,
            _CONFIG: self._config,
        }.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write it."""
        if offset < OPERATIONAL:
            return
        if PORT_SETS <= offset < PORT_SETS + _PORT_SET_SIZE * len(self.hub.ports):
            number, at = divmod(offset - PORT_SETS, _PORT_SET_SIZE)
            self.hub.ports[number].write(at, value)
            self._resume()
        elif offset < RUNTIME:
            self._write_operational(offset - OPERATIONAL, value)
        elif offset < DOORBELLS:
            number, at = divmod(offset - RUNTIME - _INTERRUPTERS, _INTERRUPTER_SIZE)
            if 0 <= number < len(self._interrupters):
                self._interrupters[number].write(at, value)
        elif offset < MESSAGES:
            self._ring_doorbell((offset - DOORBELLS) // 4, value & 0xFF, value >> 16)

    def _write_operational(self, offset: int, value: int) -> None:
        if offset == _COMMAND:
            self._write_command(value)
        elif offset == _STATUS:
            self._status &= ~(value & _STATUS_CLEARED)
        elif offset == _NOTIFICATIONS:
            self._notifications = value & 0xFFFF
        elif offset == _COMMAND_RING:
            self._commands.write_low(value)
        elif offset == _COMMAND_RING + 4:
            self._commands.write_high(value)
        elif offset == _CONTEXTS:
            self.context_array = self.context_array & ~0xFFFFFFFF | value & ~0x3F
        elif offset == _CONTEXTS + 4:
            self.context_array = self.context_array & 0xFFFFFFFF | value << 32
        elif offset == _CONFIG:
            self._config = value & 0xFF

    def _write_command(self, value: int) -> None:
        if value & _RESET:
            self.reset()
            return
        if value & _SAVE:
            self._status &= ~_RESTORE_ERROR
        if value & _RESTORE:
            self._status |= _RESTORE_ERROR  # there is no memory to restore from: the guest sets everything up anew
        was_running = self._command & _RUN
        self._command = value & _COMMAND_KEPT
        if value & _RUN and not was_running:
            if self._status & _BROKEN:
                self._command &= ~_RUN
            else:
                self._status &= ~_HALTED
                self._started_ns = self._clock.now_ns()
                self._resume()
        elif not value & _RUN and was_running:
            self._status |= _HALTED
            self._commands.running = False
        self._set_wrap_timer()
        for number in range(len(self._interrupters)):
            self._signal(number, False)

    # -- microframes

    @property
    def _microframe(self) -> int:
        if not self._command & _RUN:
            return 0
        return (self._clock.now_ns() - self._started_ns) // _MICROFRAME_NS % _MFINDEX_LIMIT

    def _set_wrap_timer(self) -> None:
        if self._command & (_RUN | _WRAP_EVENTS) != _RUN | _WRAP_EVENTS:
            self._wrap_timer.cancel()
            return
        period = _MFINDEX_LIMIT * _MICROFRAME_NS
        self._wrap_timer.set(self._clock.now_ns() + period - (self._clock.now_ns() - self._started_ns) % period)

    def _wrapped(self) -> None:
        if not self.blocked:
            self.post(0, ring.MFINDEX_WRAP, 0, ring.SUCCESS << 24, 0)
        self._set_wrap_timer()

    # -- events

    def post(self, target: int, kind: int, parameter: int, status: int, control: int, *, quietly: bool = False) -> None:
        """An event for the interrupter ``target``."""
        interrupter = self._interrupters[target if target < len(self._interrupters) else 0]
        interrupter.post(kind, parameter, status, control, quietly=quietly)

    def _signal(self, number: int, new: bool) -> None:
        interrupter = self._interrupters[number]
        if new:
            self._status |= _EVENT
        wanted = bool(self._command & _INTERRUPTS) and interrupter.wanted
        if wanted and self._message(number):
            interrupter.taken()
            wanted = False
        if not number:
            self._pin(wanted)

    def _port_changed(self, port: RootPort) -> None:
        if self._command & _RUN:
            self._status |= _PORT_CHANGE
            self.post(0, ring.PORT_STATUS_CHANGE, port.number << 24, ring.SUCCESS << 24, 0)

    # -- work

    def device_of(self, slot: Slot) -> UsbDevice | None:
        """The device that a slot was set up for, as long as it is there."""
        place = self.bus.port_at(slot.path) if slot.is_present else None
        return place.device if place is not None else None

    def _ring_doorbell(self, number: int, target: int, stream: int) -> None:
        if not self._command & _RUN:
            return
        if not number:
            if not target:
                self._commands.running = True
                self._do(_COMMANDS)
            return
        slot = self.slots.get(number)
        endpoint = slot.endpoints.get(target) if slot is not None else None
        if endpoint is None or self.contexts.pipe(endpoint, stream) is None:
            return
        if endpoint.state == slots.STOPPED:
            self.contexts.set_state(endpoint, slots.RUNNING)
        self._do((number, target))

    def _endpoint_ready(self, device: UsbDevice, key: int) -> None:
        path = device.at.path if device.at is not None else ""
        dci = 2 * (key & 0xF) + (key >> 7 if key & 0xF else 1)
        for slot in self.slots.values():
            endpoint = slot.endpoints.get(dci)
            if slot.is_present and slot.path == path and endpoint is not None and endpoint.tried:
                self._do((slot.number, dci))

    def _device_gone(self, device: UsbDevice) -> None:
        # What is in the rings of its slot fails.
        path = device.at.path if device.at is not None else ""
        for slot in self.slots.values():
            if slot.is_present and slot.path == path:
                slot.is_present = False
        self._resume()

    def _resume(self) -> None:
        # Endpoints that had to wait go on.
        self._add_tried()
        self._run()

    def _add_tried(self) -> None:
        for slot in self.slots.values():
            for dci, endpoint in slot.endpoints.items():
                if endpoint.tried:
                    self._due[slot.number, dci] = None

    def _do(self, due: tuple[int, int]) -> None:
        self._due[due] = None
        self._run()

    def _run(self) -> None:
        if self._is_running:  # devices may call for more while they are served
            return
        self._is_running = True
        self.transfers.begin()
        try:
            for _ in range(_ROUNDS * max(1, len(self._due))):
                if not self._due or self._is_waiting:
                    break
                number, dci = due = next(iter(self._due))
                del self._due[due]
                if self._serve(number, dci):
                    self._due[due] = None
        finally:
            self._is_running = False
        if self._due and not self._is_waiting:
            self._timer.set(self._clock.now_ns() + _MICROFRAME_NS)

    @property
    def _is_waiting(self) -> bool:
        return self.blocked or not self._command & _RUN

    def _serve(self, number: int, dci: int) -> bool:
        if (number, dci) == _COMMANDS:
            return self._commands.run()
        slot = self.slots.get(number)
        endpoint = slot.endpoints.get(dci) if slot is not None else None
        return slot is not None and endpoint is not None and self.transfers.run(slot, endpoint)

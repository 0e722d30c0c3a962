"""An EHCI host controller for devices of high speed (Enhanced Host Controller Interface Specification 1.0).

Devices that are slower are handed to companion controllers, which have ports of their own for them (4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.usb.bus import PortOwner, UsbBus, UsbPort, find_device
from qobra.machine.usb.device import HIGH, UsbDevice
from qobra.machine.usb.ehci_schedule import MAX_STEPS, Schedules
from qobra.machine.vmstate import Number, VmState, i64, listed, timer, u8, u16, u32

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory
    from qobra.machine.vclock import VirtualClock

PORTS = 6
_OPERATIONAL, _PORT_REGISTERS = 0x20, 0x44
_CAPABILITIES = {0x00: 0x0100 << 16 | _OPERATIONAL, 0x04: PORTS, 0x08: 0x6880}
"""Version 1.0, the number of ports, and that isochronous transfers are read a frame ahead; capabilities from 0x68."""

_COMMAND, _STATUS, _INTERRUPTS, _FRAME, _SEGMENT, _PERIODIC, _ASYNCHRONOUS = range(0x00, 0x1C, 4)
_CONFIGURED = 0x40

_RUN, _RESET, _PERIODIC_ON, _ASYNCHRONOUS_ON, _DOORBELL = 0x01, 0x02, 0x10, 0x20, 0x40
_COMMAND_AT_RESET = 8 << 16  # interrupts once a frame
_COMMAND_FIXED = 0xC  # the frame list has 1024 elements always
_S_PORT_CHANGE, _S_ROLLOVER, _S_ADVANCED, _S_HALTED = 0x04, 0x08, 0x20, 0x1000
_S_PERIODIC, _S_ASYNCHRONOUS, _S_CLEARABLE = 0x4000, 0x8000, 0x3F

_CONNECTED, _CONNECT_CHANGED, _ENABLED, _ENABLE_CHANGED, _OVER_CURRENT_CHANGED = 0x01, 0x02, 0x04, 0x08, 0x20
_RESUME, _SUSPENDED, _PORT_RESET, _POWERED, _OWNED = 0x40, 0x80, 0x100, 0x1000, 0x2000
_PORT_CLEARABLE = _CONNECT_CHANGED | _ENABLE_CHANGED | _OVER_CURRENT_CHANGED
_PORT_TAKEN = _RESUME | _SUSPENDED | _PORT_RESET | 0x700000
"""What is as the guest writes it: beside the states, what is to wake the host."""
_PORT_WORKS = _ENABLED | _SUSPENDED | _PORT_RESET

_MICROFRAME_NS = 125_000
_FRAME_NS = 8 * _MICROFRAME_NS
_INDEX_MASK = 0x3FFF
_LIST_LENGTH = 1024


class EhciBus(UsbBus):
    """The bus of an EHCI controller."""

    controller: Ehci

    def endpoint_ready(self, device: UsbDevice, endpoint: int) -> None:
        self.controller.wake()


class EhciBusWithCompanions(EhciBus):
    """A bus whose ports other controllers share."""

    def lend(self, owner: PortOwner, first: int, count: int, speeds: Iterable[int]) -> list[UsbPort]:
        return self.controller.lend(owner, first, count, speeds)


class Ehci(PortOwner):
    """The controller of ``bus``, which gets its ports. ``interrupt(level)`` drives its line.

    ``max_frames``: how many frames are made up for when the host was busy. Everything runs inside the control strand.
    """

    vmstate = VmState(
        timer("_timer"),
        i64("_since_ns"),
        listed("_ports", kind=Number(4)),
        u32("_command", "_status", "_segment", "_periodic", "_asynchronous"),
        u8("_enabled", maximum=_S_CLEARABLE),
        u8("_configured", maximum=1),
        u16("_start", maximum=_INDEX_MASK),
        i64("_done"),
    )

    def __init__(
        self,
        bus: EhciBus,
        memory: GuestMemory,
        clock: VirtualClock,
        interrupt: Callable[[bool], None],
        *,
        max_frames: int,
    ) -> None:
        bus.controller = self
        self._memory = memory
        self._clock = clock
        self._interrupt = interrupt
        self._max_frames = max_frames
        self._schedules = Schedules(memory, self._find)
        self._timer = clock.timer(self._tick)
        self._places = [bus.add_port(self, number, (HIGH,)) for number in range(PORTS)]
        self._companions: list[UsbPort | None] = [None] * PORTS
        self._ports = [_POWERED] * PORTS
        self._clear()

    def _clear(self) -> None:
        self._command, self._status = _COMMAND_AT_RESET, _S_HALTED
        self._enabled = self._configured = 0
        self._segment = self._periodic = self._asynchronous = 0
        # The frame index is `_start` at `_since_ns`, and goes on from there; `_done` is how many frames were
        # carried out since.
        self._start = self._since_ns = self._done = 0
        self._timer.cancel()
        self._update()

    def reset(self) -> None:
        """As after power-on: every device is found anew, by the companions first."""
        for place in self._places:
            if place.device is not None:
                self._disconnect(place.number, place.device)
        self._clear()
        for number, place in enumerate(self._places):
            self._ports[number] = _POWERED | (_OWNED if self._companions[number] is not None else 0)
            if place.device is not None:
                place.device.reset()
                self._connect(number)

    def close(self) -> None:
        """Stop."""
        self._timer.cancel()

    def wake(self) -> None:
        """A device may have an answer now that it had not when it was asked."""
        if self._running(_ASYNCHRONOUS_ON):
            self._timer.set(self._clock.now_ns())

    # -- ports

    def lend(self, owner: PortOwner, first: int, count: int, speeds: Iterable[int]) -> list[UsbPort]:
        """``count`` ports from ``first`` on for the companion ``owner``. Raises QobraError where they cannot be."""
        if first + count > PORTS:
            raise QobraError(f"firstport must be between 0 and {PORTS - count}")
        for number in range(first, first + count):
            if self._companions[number] is not None:
                raise QobraError(
                    f"firstport {first} asks for ports {first}-{first + count - 1}, "
                    f"but port {number} has a companion assigned already"
                )
        lent = []
        for number in range(first, first + count):
            place = self._places[number]
            port = UsbPort(owner, number - first, place.path, speeds)
            place.speeds |= port.speeds
            self._companions[number] = port
            self._ports[number] |= _OWNED
            lent.append(port)
        return lent

    def attached(self, port: UsbPort) -> None:
        self._connect(port.number)

    def detached(self, port: UsbPort, device: UsbDevice) -> None:
        self._disconnect(port.number, device)
        if self._configured:
            self._ports[port.number] &= ~_OWNED

    def _connect(self, number: int) -> None:
        # What is in the place becomes seen by whom the port belongs to.
        companion = self._companions[number]
        if companion is not None and self._ports[number] & _OWNED:
            companion.device = self._places[number].device
            companion.owner.attached(companion)
            return
        self._ports[number] |= _CONNECTED | _CONNECT_CHANGED
        self._tell(_S_PORT_CHANGE)

    def _disconnect(self, number: int, device: UsbDevice) -> None:
        companion = self._companions[number]
        if companion is not None and self._ports[number] & _OWNED:
            companion.device = None
            companion.owner.detached(companion, device)
            return
        self._ports[number] &= ~(_CONNECTED | _ENABLED | _SUSPENDED | _RESUME | _PORT_RESET)
        self._ports[number] |= _CONNECT_CHANGED
        self._tell(_S_PORT_CHANGE)

    def _give(self, number: int, *, away: bool) -> None:
        # The port goes to the companion, or comes back.
        if self._companions[number] is None or away == bool(self._ports[number] & _OWNED):
            return
        device = self._places[number].device
        if device is not None:
            self._disconnect(number, device)
        self._ports[number] ^= _OWNED
        if device is not None:
            self._connect(number)

    def left_below(self, port: UsbPort, device: UsbDevice) -> None:
        companion = self._companions[port.number]
        if companion is not None and companion.device is not None:
            companion.owner.left_below(companion, device)

    def wakeup(self, port: UsbPort) -> None:
        companion = self._companions[port.number]
        if companion is not None and companion.device is not None:
            companion.owner.wakeup(companion)
        elif self._ports[port.number] & _SUSPENDED and not self._ports[port.number] & _RESUME:
            self._ports[port.number] |= _RESUME
            self._tell(_S_PORT_CHANGE)

    def routes_loaded(self) -> None:
        """The registers were loaded: let the devices be seen where they say."""
        for number, companion in enumerate(self._companions):
            if companion is not None:
                companion.device = self._places[number].device if self._ports[number] & _OWNED else None

    def _write_port(self, number: int, value: int) -> None:
        before, device = self._ports[number], self._places[number].device
        self._ports[number] &= ~(value & _PORT_CLEARABLE)
        self._give(number, away=bool(value & _OWNED))
        port = self._ports[number] & ~_PORT_TAKEN | value & _PORT_TAKEN
        if not value & _ENABLED:
            port &= ~_ENABLED
        if before & _RESUME and not value & _RESUME:
            port &= ~_SUSPENDED
        if before & _PORT_RESET and not value & _PORT_RESET and port & _CONNECTED and device is not None:
            device.reset()
            port &= ~_CONNECT_CHANGED
            if device.speed == HIGH:  # one that is slower stays disabled, for the guest to hand it to the companion
                port |= _ENABLED
            self._tell(_S_PORT_CHANGE)
        self._ports[number] = port

    def _find(self, address: int) -> UsbDevice | None:
        return find_device(address, self._places, lambda number: self._ports[number] & _PORT_WORKS == _ENABLED)

    # -- registers

    def read(self, offset: int, width: int) -> int:
        """The register at ``offset``."""
        if offset < _OPERATIONAL:
            return _CAPABILITIES.get(offset & ~3, 0) >> 8 * (offset & 3)
        if width != 4:
            return 0
        offset -= _OPERATIONAL
        if offset == _STATUS:
            running = (_S_PERIODIC if self._running(_PERIODIC_ON) else 0) | (
                _S_ASYNCHRONOUS if self._running(_ASYNCHRONOUS_ON) else 0
            )
            return self._status | running
        if offset == _FRAME:
            return self._microframes() & _INDEX_MASK
        number = (offset - _PORT_REGISTERS) // 4
        if 0 <= number < PORTS:
            return self._ports[number]
        return {
            _COMMAND: self._command,
            _INTERRUPTS: self._enabled,
            _SEGMENT: self._segment,
            _PERIODIC: self._periodic,
            _ASYNCHRONOUS: self._asynchronous,
            _CONFIGURED: self._configured,
        }.get(offset, 0)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write the register at ``offset``."""
        if width != 4 or offset < _OPERATIONAL:
            return
        offset -= _OPERATIONAL
        number = (offset - _PORT_REGISTERS) // 4
        if offset == _COMMAND:
            self._write_command(value)
        elif offset == _STATUS:
            self._status &= ~(value & _S_CLEARABLE)
            self._update()
        elif offset == _INTERRUPTS:
            self._enabled = value & _S_CLEARABLE
            self._update()
        elif offset == _FRAME:
            if self._status & _S_HALTED:
                self._start = value & _INDEX_MASK
        elif offset == _PERIODIC:
            self._periodic = value
        elif offset == _SEGMENT:
            self._segment = value
        elif offset == _ASYNCHRONOUS:
            self._asynchronous = value
        elif offset == _CONFIGURED:
            if value & 1:
                for each in range(PORTS):
                    self._give(each, away=False)
            self._configured = value & 1
        elif 0 <= number < PORTS:
            self._write_port(number, value)

    def _write_command(self, value: int) -> None:
        if value & _RESET:
            self.reset()
            return
        was_running = self._command & _RUN
        if was_running and not value & _RUN:
            self._start = self._microframes() & _INDEX_MASK
            self._status |= _S_HALTED
            self._timer.cancel()
        self._command = value & ~_COMMAND_FIXED
        if value & _RUN:
            now = self._clock.now_ns()
            if not was_running:
                self._status &= ~_S_HALTED
                self._since_ns, self._done = now, 0
            self._timer.set(now)

    def _running(self, schedule: int) -> bool:
        return self._command & (_RUN | schedule) == _RUN | schedule

    def _tell(self, status: int) -> None:
        self._status |= status
        self._update()

    def _update(self) -> None:
        self._interrupt(bool(self._status & self._enabled))

    # -- frames

    def _microframes(self) -> int:
        # The frame index, not yet cut to its width.
        if self._status & _S_HALTED:
            return self._start
        return self._start + max(0, self._clock.now_ns() - self._since_ns) // _MICROFRAME_NS

    def _tick(self) -> None:
        if not self._command & _RUN:
            return
        frame, first = self._microframes() // 8, self._start // 8 + self._done
        self._done = frame - self._start // 8
        if frame // _LIST_LENGTH != first // _LIST_LENGTH:
            self._status |= _S_ROLLOVER
        if self._command & _PERIODIC_ON:
            # Where the host was busy, frames are made up for, the last ones alone if there were many.
            steps = 0
            for each in range(max(first, frame - self._max_frames) + 1, frame + 1):
                element = (self._periodic & 0xFFFFF000) + 4 * (each % _LIST_LENGTH)
                steps += self._schedules.periodic(self._memory.number(element, 4))
                if steps >= MAX_STEPS:
                    break
        if self._command & _ASYNCHRONOUS_ON:
            self._asynchronous = self._schedules.asynchronous(self._asynchronous)
        if self._command & _DOORBELL:
            self._command &= ~_DOORBELL
            self._status |= _S_ADVANCED
        self._status |= self._schedules.told
        self._schedules.told = 0
        self._update()
        if self._command & _RUN:
            self._timer.set(self._next_tick(frame))

    def _next_tick(self, frame: int) -> int:
        if self._command & (_PERIODIC_ON | _ASYNCHRONOUS_ON):
            following = frame + 1
        else:  # nothing is to be done until the index rolls over
            following = (frame // _LIST_LENGTH + 1) * _LIST_LENGTH
        due = self._since_ns + (following * 8 - self._start) * _MICROFRAME_NS
        return max(due, self._clock.now_ns() + _FRAME_NS // 2)

"""An OHCI host controller for full and low speed (Open Host Controller Interface Specification for USB 1.0a)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.usb.bus import UsbPort, find_device
from qobra.machine.usb.device import LOW, UsbDevice
from qobra.machine.usb.full_speed import FRAME_NS, FullSpeedController, TakePorts
from qobra.machine.usb.ohci_lists import Lists
from qobra.machine.vmstate import Number, VmState, flag, i64, listed, part, timer, u16, u32

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory
    from qobra.machine.vclock import VirtualClock

MAX_PORTS = 15
_REVISION, _CONTROL, _COMMAND, _STATUS, _ENABLE, _DISABLE, _HCCA = range(0x00, 0x1C, 4)
_PERIOD_CURRENT, _CONTROL_HEAD, _CONTROL_CURRENT, _BULK_HEAD, _BULK_CURRENT, _DONE_HEAD = range(0x1C, 0x34, 4)
_INTERVAL, _REMAINING, _NUMBER, _PERIODIC_START, _LOW_SPEED_THRESHOLD = range(0x34, 0x48, 4)
_ROOT_A, _ROOT_B, _ROOT_STATUS, _FIRST_PORT = range(0x48, 0x58, 4)
_PLAIN = (_CONTROL_HEAD, _CONTROL_CURRENT, _BULK_HEAD, _BULK_CURRENT)

_PERIODIC_ON, _ISOCHRONOUS_ON, _CONTROL_ON, _BULK_ON = 0x04, 0x08, 0x10, 0x20
_STATE, _STATE_RESUME, _STATE_OPERATIONAL, _STATE_SUSPEND, _ROUTED = 0xC0, 0x40, 0x80, 0xC0, 0x100
_WAKEUP_CONNECTED = 0x200
_RESET, _CONTROL_FILLED, _BULK_FILLED, _OWNERSHIP = 0x1, 0x2, 0x4, 0x8
_DONE, _START_OF_FRAME, _RESUME, _NUMBER_OVERFLOWED, _ROOT_CHANGED = 0x02, 0x04, 0x08, 0x20, 0x40
_MASTER_ENABLE = 1 << 31

_INTERVAL_AT_RESET, _THRESHOLD_AT_RESET = 0x27782EDF, 0x628
_ALWAYS_POWERED = 0x200
_WAKEUP_ENABLED = 1 << 15

_CONNECTED, _ENABLED, _SUSPENDED, _POWERED, _LOW_SPEED = 0x001, 0x002, 0x004, 0x100, 0x200
_CONNECT_CHANGED, _ENABLE_CHANGED, _SUSPEND_CHANGED, _RESET_CHANGED = 1 << 16, 1 << 17, 1 << 18, 1 << 20
_PORT_CLEARABLE = 0x1F << 16
_PORT_WORKS = _ENABLED | _SUSPENDED
_CLEAR_ENABLE, _SET_ENABLE, _SET_SUSPEND, _CLEAR_SUSPEND, _SET_RESET, _SET_POWER, _CLEAR_POWER = (
    0x001, 0x002, 0x004, 0x008, 0x010, 0x100, 0x200
)  # fmt: skip

_NOTHING = 0xFFFFFFFF


class Ohci(FullSpeedController):
    """The controller."""

    _empty_port = _POWERED

    vmstate = VmState(
        timer("_timer"),
        i64("_frame_began_ns"),
        part("_lists"),
        listed("_ports", kind=Number(4)),
        u32("_control", "_command", "_status", "_enabled", "_hcca", "_root_a"),
        listed("_plain", kind=Number(4)),
        u32("_interval", "_periodic_start", "_threshold", "_period_current"),
        u16("_number"),
        flag("_wakes"),
    )

    def __init__(
        self,
        take_ports: TakePorts,
        ports: int,
        memory: GuestMemory,
        clock: VirtualClock,
        interrupt: Callable[[bool], None],
    ) -> None:
        super().__init__(take_ports, ports, memory, clock, interrupt)
        self._lists = Lists(memory, self._find)
        self._frame_began_ns = 0
        self.reset()

    def reset(self) -> None:
        """As after power-on: every device is found anew."""
        self._control = 0
        self._root_a = _ALWAYS_POWERED | len(self._ports)
        self._soft_reset()
        self._reset_root_hub()

    def _reset_root_hub(self) -> None:
        self._wakes = False
        self._reset_ports()

    def _soft_reset(self) -> None:
        # What the guest's reset is: the root hub stays as it is, and the bus is suspended.
        self._timer.cancel()
        self._command = self._status = self._hcca = 0
        self._enabled = _MASTER_ENABLE
        self._plain = [0] * len(_PLAIN)
        self._interval, self._threshold = _INTERVAL_AT_RESET, _THRESHOLD_AT_RESET
        self._periodic_start = self._period_current = self._number = 0
        self._lists.clear()
        self._update()

    # -- ports

    def attached(self, port: UsbPort) -> None:
        assert port.device is not None
        value = self._ports[port.number] & ~_LOW_SPEED | _CONNECTED | _CONNECT_CHANGED
        self._ports[port.number] = value | (_LOW_SPEED if port.device.speed == LOW else 0)
        if self._control & _STATE == _STATE_SUSPEND and self._wakes:
            self._tell(_RESUME)
        self._tell(_ROOT_CHANGED)

    def detached(self, port: UsbPort, device: UsbDevice) -> None:
        value = self._ports[port.number]
        if value & _CONNECTED:
            value = value & ~_CONNECTED | _CONNECT_CHANGED
        if value & _ENABLED:
            value = value & ~_ENABLED | _ENABLE_CHANGED
        self._ports[port.number] = value & ~_SUSPENDED
        self._tell(_ROOT_CHANGED)

    def wakeup(self, port: UsbPort) -> None:
        if self._ports[port.number] & _SUSPENDED:
            self._ports[port.number] = self._ports[port.number] & ~_SUSPENDED | _SUSPEND_CHANGED
            self._tell(_ROOT_CHANGED)
        if self._control & _STATE == _STATE_SUSPEND:
            self._control = self._control & ~_STATE | _STATE_RESUME
            self._tell(_RESUME)

    def _find(self, address: int) -> UsbDevice | None:
        return find_device(address, self._places, lambda number: self._ports[number] & _PORT_WORKS == _ENABLED)

    def _write_port(self, number: int, value: int) -> None:
        before = self._ports[number]
        port = before & ~(value & _PORT_CLEARABLE)
        device = self._places[number].device
        if value & _CLEAR_ENABLE:
            port &= ~_ENABLED
        for asked, effect in ((_SET_ENABLE, _ENABLED), (_SET_SUSPEND, _SUSPENDED)):
            if value & asked:
                # On a port where nothing is, the guest is told that this has changed.
                port |= effect if port & _CONNECTED else _CONNECT_CHANGED
        if value & _CLEAR_SUSPEND and port & _SUSPENDED:
            port = port & ~_SUSPENDED | _SUSPEND_CHANGED
        if value & _SET_RESET:
            if port & _CONNECTED and device is not None:
                device.reset()
                port = port & ~_SUSPENDED | _ENABLED | _RESET_CHANGED
            else:
                port |= _CONNECT_CHANGED
        if value & _CLEAR_POWER and not self._root_a & _ALWAYS_POWERED:
            port &= ~(_POWERED | _ENABLED | _SUSPENDED)
        if value & _SET_POWER:
            port |= _POWERED
        self._ports[number] = port
        if port & ~before & _PORT_CLEARABLE:
            self._tell(_ROOT_CHANGED)

    def _write_root_status(self, value: int) -> None:
        if value & 0x00000001 and not self._root_a & _ALWAYS_POWERED:  # global power off
            self._ports = [port & ~(_POWERED | _ENABLED | _SUSPENDED) for port in self._ports]
        if value & 0x00010000:  # global power on
            self._ports = [port | _POWERED for port in self._ports]
        if value & _WAKEUP_ENABLED:
            self._wakes = True
        if value & 1 << 31:
            self._wakes = False

    # -- registers

    def read(self, offset: int, _width: int) -> int:
        """The register at ``offset``; what is not aligned, or not there, reads as ones."""
        number = (offset - _FIRST_PORT) // 4
        if offset & 3:
            return _NOTHING
        if 0 <= number < len(self._ports):
            return self._ports[number]
        if offset in _PLAIN:
            return self._plain[_PLAIN.index(offset)]
        if offset == _REMAINING:
            return self._remaining()
        return {
            _REVISION: 0x10,
            _CONTROL: self._control,
            _COMMAND: self._command,
            _STATUS: self._status,
            _ENABLE: self._enabled,
            _DISABLE: self._enabled,
            _HCCA: self._hcca,
            _PERIOD_CURRENT: self._period_current,
            _DONE_HEAD: self._lists.done_head,
            _INTERVAL: self._interval,
            _NUMBER: self._number,
            _PERIODIC_START: self._periodic_start,
            _LOW_SPEED_THRESHOLD: self._threshold,
            _ROOT_A: self._root_a,
            _ROOT_B: 0,
            _ROOT_STATUS: _WAKEUP_ENABLED if self._wakes else 0,
        }.get(offset, _NOTHING)

    def write(self, offset: int, _width: int, value: int) -> None:
        """Write the register at ``offset``."""
        number = (offset - _FIRST_PORT) // 4
        if offset & 3:
            return
        if 0 <= number < len(self._ports):
            self._write_port(number, value)
        elif offset in _PLAIN:
            self._plain[_PLAIN.index(offset)] = value & ~0xF
        elif offset == _CONTROL:
            self._write_control(value)
        elif offset == _COMMAND:
            self._write_command(value)
        elif offset == _STATUS:
            self._status &= ~value
            self._update()
        elif offset == _ENABLE:
            self._enabled |= value
            self._update()
        elif offset == _DISABLE:
            self._enabled &= ~value
            self._update()
        elif offset == _HCCA:
            self._hcca = value & 0xFFFFFF00
        elif offset == _INTERVAL:
            self._interval = value & 0xFFFF3FFF
        elif offset == _PERIODIC_START:
            self._periodic_start = value & 0xFFFF
        elif offset == _LOW_SPEED_THRESHOLD:
            self._threshold = value & 0xFFFF
        elif offset == _ROOT_STATUS:
            self._write_root_status(value)

    def _write_control(self, value: int) -> None:
        before, self._control = self._control & _STATE, value
        after = value & _STATE
        if after == before:
            return
        if after == _STATE_OPERATIONAL:
            self._frame_began_ns = self._clock.now_ns()
            self._timer.set(self._frame_began_ns + FRAME_NS)
            return
        self._timer.cancel()
        if after == 0:  # the bus is reset, and with it every device
            self._reset_root_hub()

    def _write_command(self, value: int) -> None:
        if value & _RESET:
            self._control = self._control & (_ROUTED | _WAKEUP_CONNECTED) | _STATE_SUSPEND
            self._soft_reset()
            return
        self._command |= value & (_CONTROL_FILLED | _BULK_FILLED | _OWNERSHIP)

    def _remaining(self) -> int:
        # Bit times that are left of the frame. The top bit tells one frame interval from another.
        length = self._interval & 0x3FFF
        if self._control & _STATE != _STATE_OPERATIONAL:
            return self._interval & 1 << 31
        passed = min(FRAME_NS, max(0, self._clock.now_ns() - self._frame_began_ns))
        return self._interval & 1 << 31 | length - passed * length // FRAME_NS

    def _tell(self, status: int) -> None:
        self._status |= status
        self._update()

    def _update(self) -> None:
        self._interrupt(bool(self._enabled & _MASTER_ENABLE and self._status & self._enabled))

    # -- frames

    def _next_frame(self) -> None:
        if self._control & _STATE != _STATE_OPERATIONAL:
            return
        self._frame_began_ns = self._clock.now_ns()
        self._number = self._number + 1 & 0xFFFF
        self._memory.write(self._hcca + 0x80, self._number.to_bytes(4, "little"))
        status = _START_OF_FRAME
        if self._number in (0, 0x8000):
            status |= _NUMBER_OVERFLOWED
        self._walk()
        if self._lists.done_delay not in (0, 7):
            self._lists.done_delay -= 1
        if not self._lists.done_delay and not self._status & _DONE and self._lists.done_head:
            others = (self._status | status) & self._enabled & ~_DONE
            head = self._lists.done_head | (1 if others else 0)
            self._memory.write(self._hcca + 0x84, head.to_bytes(4, "little"))
            self._lists.clear()
            status |= _DONE
        self._tell(status)
        self._timer.set(max(self._frame_began_ns + FRAME_NS, self._clock.now_ns() + FRAME_NS // 2))

    def _walk(self) -> None:
        control, walk = self._control, self._lists.walk
        if control & _PERIODIC_ON:
            first = self._memory.number(self._hcca + 4 * (self._number & 31), 4)
            walk(first, self._number, isochronous=bool(control & _ISOCHRONOUS_ON))
        if control & _CONTROL_ON and self._command & _CONTROL_FILLED:
            if not walk(self._plain[_PLAIN.index(_CONTROL_HEAD)], self._number):
                self._command &= ~_CONTROL_FILLED
        if control & _BULK_ON and self._command & _BULK_FILLED:
            if not walk(self._plain[_PLAIN.index(_BULK_HEAD)], self._number):
                self._command &= ~_BULK_FILLED

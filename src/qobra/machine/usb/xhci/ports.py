"""The root hub of an xHC: a register set for each port (xHCI 1.1, sections 4.15, 4.19 and 5.4.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.usb.bus import PortOwner, UsbPort
from qobra.machine.usb.device import FULL, HIGH, LOW, SUPER, UsbDevice
from qobra.machine.vmstate import VmState, parts, u32

if TYPE_CHECKING:
    from qobra.machine.usb.bus import UsbBus

STATUS, POWER_MANAGEMENT, LINK_INFORMATION, HARDWARE_LINK = 0x0, 0x4, 0x8, 0xC
_CONNECTED, _ENABLED, _RESET, _POWER = 1 << 0, 1 << 1, 1 << 4, 1 << 9
_LINK_WRITE = 1 << 16
_CONNECT_CHANGED, _ENABLE_CHANGED, _WARM_RESET_CHANGED = 1 << 17, 1 << 18, 1 << 19
_RESET_CHANGED, _LINK_CHANGED = 1 << 21, 1 << 22
_CHANGES = 0x7F << 17
_WAKE_ENABLES = 0x7 << 25
_WARM_RESET = 1 << 31
_LINK_SHIFT, _SPEED_SHIFT = 5, 10
_LINK = 0xF << _LINK_SHIFT
_U0, _U3, _DISABLED, _RX_DETECT, _POLLING, _RESUME = 0, 3, 4, 5, 7, 15
_SPEED_IDS = {FULL: 1, LOW: 2, HIGH: 3, SUPER: 4}


class RootPort:
    """One register set: the USB 2 or the USB 3 side of a port of the bus."""

    vmstate = VmState(u32("status", "_power_management"))

    def __init__(self, number: int, place: UsbPort, *, is_super: bool, changed: Callable[[RootPort], None]) -> None:
        self.number = number
        """From 1 on, as the guest counts."""
        self.place = place
        self.is_super = is_super
        self._changed = changed
        self.status = _POWER | _RX_DETECT << _LINK_SHIFT
        self._power_management = 0

    @property
    def device(self) -> UsbDevice | None:
        """What is plugged in here."""
        device = self.place.device
        return device if device is not None and (device.speed == SUPER) == self.is_super else None

    @property
    def link(self) -> int:
        """The state of the link."""
        return self.status >> _LINK_SHIFT & 0xF

    @property
    def is_enabled(self) -> bool:
        """Whether the guest may reach the device."""
        return bool(self.status & _ENABLED)

    @property
    def is_suspended(self) -> bool:
        """Whether the link sleeps."""
        return self.link != _U0

    def _set_link(self, state: int) -> None:
        self.status = self.status & ~_LINK | state << _LINK_SHIFT

    def update(self) -> None:
        """A device came or went, or the controller begins anew."""
        device, was_connected = self.device, self.status & _CONNECTED
        self.status = self.status & (_CHANGES | _WAKE_ENABLES) | _POWER
        if device is None:
            self._set_link(_RX_DETECT)
        else:
            # A link of USB 3 trains by itself, a port of USB 2 waits for a reset.
            self.status |= _CONNECTED | _SPEED_IDS[device.speed] << _SPEED_SHIFT | (_ENABLED if self.is_super else 0)
            self._set_link(_U0 if self.is_super else _POLLING)
        if device is not None or was_connected:
            self._change(_CONNECT_CHANGED)

    def restart(self) -> None:
        """The controller is reset, and links of USB 3 with it."""
        self.status = self._power_management = 0
        if self.is_super and self.device is not None:
            self.device.reset()
        self.update()

    def wakeup(self) -> None:
        """The device asks to be resumed."""
        if self.status & _ENABLED and self.link == _U3:
            self._set_link(_RESUME)
            self._change(_LINK_CHANGED)

    def _change(self, bits: int) -> None:
        if self.status & bits != bits:
            self.status |= bits
            self._changed(self)

    # -- registers

    def read(self, offset: int) -> int:
        """The 32-bit register at ``offset``."""
        return {STATUS: self.status, POWER_MANAGEMENT: self._power_management}.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write it."""
        if offset == POWER_MANAGEMENT:
            self._power_management = value & (0x0001FFFF if self.is_super else 0xF001FFF8)
        elif offset == STATUS:
            self._write_status(value)

    def _write_status(self, value: int) -> None:
        if value & _WARM_RESET and self.is_super:
            self._reset(warm=True)
            return
        if value & _RESET:
            self._reset(warm=False)
            return
        self.status &= ~(value & _CHANGES)
        self.status = self.status & ~_WAKE_ENABLES | value & _WAKE_ENABLES
        if value & _ENABLED and self.status & _ENABLED:
            self.status &= ~_ENABLED
            self._set_link(_DISABLED if self.is_super else _POLLING)
        elif value & _LINK_WRITE:
            self._set_link_by_guest(value >> _LINK_SHIFT & 0xF)

    def _set_link_by_guest(self, wanted: int) -> None:
        link = self.link
        if wanted == _RX_DETECT and self.is_super and link == _DISABLED:
            self.update()
        elif not self.status & _ENABLED:
            return
        elif wanted == _U0 and link != _U0:
            self._set_link(_U0)
            self._change(_LINK_CHANGED)
        elif (wanted == _U3 and link < _U3) or (wanted == _RESUME and link == _U3 and not self.is_super):
            self._set_link(wanted)

    def _reset(self, *, warm: bool) -> None:
        device = self.device
        if device is None:
            return
        device.reset()
        self.status |= _ENABLED
        self._set_link(_U0)
        self._change(_RESET_CHANGED | (_WARM_RESET_CHANGED if warm else 0))


class RootHub(PortOwner):
    """The ports of ``bus``; those of USB 3 come first where the guest counts them.

    ``changed(port)`` is told of changes that the guest is to see, ``gone(device)`` of devices that left.
    """

    vmstate = VmState(parts("ports"))

    def __init__(
        self,
        bus: UsbBus,
        usb2: int,
        usb3: int,
        changed: Callable[[RootPort], None],
        gone: Callable[[UsbDevice], None],
    ) -> None:
        self._gone = gone
        self.ports: list[RootPort] = []
        places = []
        for number in range(max(usb2, usb3)):
            speeds = ((LOW, FULL, HIGH) if number < usb2 else ()) + ((SUPER,) if number < usb3 else ())
            places.append(bus.add_port(self, number, speeds))
        for count, is_super in ((usb3, True), (usb2, False)):
            for number in range(count):
                self.ports.append(RootPort(len(self.ports) + 1, places[number], is_super=is_super, changed=changed))

    def of(self, place: UsbPort) -> RootPort | None:
        """The register set that shows what is at ``place``."""
        return next((port for port in self.ports if port.place is place and port.device is not None), None)

    def find(self, number: int) -> RootPort | None:
        """The port with the number that the guest gives."""
        return self.ports[number - 1] if 1 <= number <= len(self.ports) else None

    def attached(self, port: UsbPort) -> None:
        shown = self.of(port)
        assert shown is not None
        shown.update()

    def detached(self, port: UsbPort, device: UsbDevice) -> None:
        for shown in self.ports:
            if shown.place is port and shown.is_super == (device.speed == SUPER):
                shown.update()
        self._gone(device)

    def left_below(self, port: UsbPort, device: UsbDevice) -> None:
        self._gone(device)

    def wakeup(self, port: UsbPort) -> None:
        shown = self.of(port)
        if shown is not None:
            shown.wakeup()

"""The ports of a hub: what is there, what has changed, and what the host does to them (USB 2.0, 11.24.2)."""

from __future__ import annotations

from qobra.machine.usb.bus import PortOwner, UsbBus, UsbPort, find_device
from qobra.machine.usb.device import FULL, LOW, Stall, UsbDevice
from qobra.machine.vmstate import Number, VmState, listed

_F_ENABLE, _F_SUSPEND, _F_RESET, _F_POWER, _F_CHANGES = 1, 2, 4, 8, range(16, 21)
_CONNECTED, _ENABLED, _SUSPENDED, _POWERED, _LOW_SPEED = 0x001, 0x002, 0x004, 0x100, 0x200
_WORKS = _ENABLED | _SUSPENDED
_RESET = 0x10
_STATUS_ENDPOINT = 1


class HubPorts(PortOwner):
    """``count`` ports of ``hub``, which are places on its bus. ``switched``: the host can take power from them."""

    vmstate = VmState(listed("_status", "_changes", kind=Number(2)))

    def __init__(self, hub: UsbDevice, bus: UsbBus, count: int, *, switched: bool) -> None:
        self._hub = hub
        self._bus = bus
        self._switched = switched
        self._status, self._changes = [_POWERED] * count, [0] * count
        self._places = [bus.add_port(self, number, (LOW, FULL), behind=hub.at) for number in range(count)]

    def close(self) -> None:
        """The hub goes, and with it what is behind it."""
        for place in self._places:
            if place.claimed is not None:
                place.claimed.unparent()
            self._bus.remove_port(place)

    def find(self, address: int) -> UsbDevice | None:
        """The device behind the hub that the host has given an address."""
        return find_device(address, self._places, lambda number: self._status[number] & _WORKS == _ENABLED)

    def status(self, number: int) -> bytes:
        """What GetPortStatus tells."""
        return self._status[number].to_bytes(2, "little") + self._changes[number].to_bytes(2, "little")

    def changed(self) -> int:
        """Which ports there is something to tell of: bit 1 is the first."""
        return sum(2 << number for number, change in enumerate(self._changes) if change)

    def attached(self, port: UsbPort) -> None:
        assert port.device is not None
        if not self._status[port.number] & _POWERED:
            return
        slow = _LOW_SPEED if port.device.speed == LOW else 0
        self._status[port.number] = self._status[port.number] & ~_LOW_SPEED | _CONNECTED | slow
        self._changed(port.number, _CONNECTED)

    def detached(self, port: UsbPort, device: UsbDevice) -> None:
        status = self._status[port.number]
        self._status[port.number] = status & ~(_CONNECTED | _ENABLED | _SUSPENDED | _LOW_SPEED)
        self._changed(port.number, status & (_CONNECTED | _ENABLED))
        self.left_below(port, device)

    def left_below(self, port: UsbPort, device: UsbDevice) -> None:
        at = self._hub.at
        if at is not None:
            at.owner.left_below(at, device)

    def wakeup(self, port: UsbPort) -> None:
        if self._status[port.number] & _SUSPENDED:
            self._status[port.number] &= ~_SUSPENDED
            self._changed(port.number, _SUSPENDED)

    def _changed(self, number: int, bits: int) -> None:
        if bits:
            self._changes[number] |= bits
            self._hub.endpoint_ready(_STATUS_ENDPOINT | 0x80)

    def reset(self) -> None:
        """The hub is reset: what is there is found anew."""
        for number, place in enumerate(self._places):
            self._status[number], self._changes[number] = _POWERED, 0
            if place.device is not None:
                self.attached(place)

    def set_feature(self, number: int, feature: int) -> None:
        """SetPortFeature. Raises Stall."""
        status, place = self._status[number], self._places[number]
        if feature == _F_SUSPEND:
            self._status[number] |= _SUSPENDED
        elif feature == _F_RESET:
            change = _RESET
            if status & _CONNECTED and place.device is not None:
                place.device.reset()
                self._status[number] = status & ~_SUSPENDED | _ENABLED
                change |= ~status & _ENABLED
            self._changed(number, change)
        elif feature == _F_POWER:
            if not status & _POWERED:
                self._status[number] = _POWERED
                if place.device is not None:
                    self.attached(place)
        else:
            raise Stall

    def clear_feature(self, number: int, feature: int) -> None:
        """ClearPortFeature. Raises Stall."""
        if feature == _F_ENABLE:
            self._status[number] &= ~_ENABLED
        elif feature == _F_SUSPEND:
            if self._status[number] & _SUSPENDED:
                self._status[number] &= ~_SUSPENDED
                self._changed(number, _SUSPENDED)
        elif feature == _F_POWER:
            if self._switched:
                self._status[number] = self._changes[number] = 0
        elif feature in _F_CHANGES:
            self._changes[number] &= ~(1 << feature - _F_CHANGES[0])
        else:
            raise Stall

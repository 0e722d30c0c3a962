"""The USB bus: its ports, whose they are, and which device is at which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.qdev import Bus, Device
from qobra.machine.usb.device import SPEED_NAMES, UsbDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qobra.object.qom import Object
    from qobra.object.tree import ObjectTree


class PortOwner:
    """A controller or a hub: what it is told of its ports, inside the control strand."""

    def attached(self, port: UsbPort) -> None:
        """``port.device`` has come."""
        raise NotImplementedError

    def detached(self, port: UsbPort, device: UsbDevice) -> None:
        """``device`` has gone; ``port.device`` is None already."""
        raise NotImplementedError

    def left_below(self, port: UsbPort, device: UsbDevice) -> None:
        """``device`` has gone, which was behind the hub at ``port``."""

    def wakeup(self, port: UsbPort) -> None:
        """What is at ``port`` asks to be resumed, if the port is suspended."""


class UsbPort:
    """A place for a device.

    ``path`` is how users name it: the number of the controller's port, after that for each hub a dot and the number of
    its port. ``claimed`` is whose place it is, ``device`` what is plugged in there: the same, while it is attached.
    """

    __slots__ = ("claimed", "device", "number", "owner", "path", "speeds")

    def __init__(self, owner: PortOwner, number: int, path: str, speeds: Iterable[int]) -> None:
        self.owner = owner
        self.number = number
        """From 0 on among those of its owner."""
        self.path = path
        self.speeds = frozenset(speeds)
        self.claimed: UsbDevice | None = None
        self.device: UsbDevice | None = None


def find_device(address: int, places: Iterable[UsbPort], is_open: Callable[[int], bool]) -> UsbDevice | None:
    """The device that the host has given ``address``: at one of ``places``, or behind it.

    ``is_open`` tells of the number of a place whether packets get through there.
    """
    for place in places:
        if place.device is not None and is_open(place.number):
            device = place.device.find(address)
            if device is not None:
                return device
    return None


class UsbBus(Bus):
    """The ports of one host controller, and of the hubs behind it.

    A device without a port of its own choice gets the first that is free; one that gets free again comes last.
    """

    type_name = "usb-bus"
    interfaces = ("hotplug-handler",)
    hotplug = True

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.ports: list[UsbPort] = []
        self.free: list[UsbPort] = []
        self.used: list[UsbPort] = []
        """The ports that are claimed, in the order in which they were."""

    def hotplug_handler(self) -> Object | None:
        return self

    # -- for controllers and hubs

    def add_port(
        self, owner: PortOwner, number: int, speeds: Iterable[int], *, behind: UsbPort | None = None
    ) -> UsbPort:
        """A port of ``owner``, number ``number`` (from 0 on), for devices of these speeds; of the hub at ``behind``."""
        path = str(number + 1) if behind is None else f"{behind.path}.{number + 1}"
        port = UsbPort(owner, number, path, speeds)
        self.ports.append(port)
        self.free.append(port)
        return port

    def add_ports(self, owner: PortOwner, count: int, speeds: Iterable[int]) -> list[UsbPort]:
        """All the ports of a controller."""
        return [self.add_port(owner, number, speeds) for number in range(count)]

    def lend(self, owner: PortOwner, first: int, count: int, speeds: Iterable[int]) -> list[UsbPort]:
        """Ports for a companion, which has the slower devices there. Raises QobraError where it gets none."""
        raise QobraError(f"Can't use USB bus '{self.bus_name}' as masterbus, it doesn't support companion controllers")

    def port_at(self, path: str) -> UsbPort | None:
        """The port that users call so."""
        return next((port for port in self.ports if port.path == path), None)

    def remove_port(self, port: UsbPort) -> None:
        """A hub goes, and its port with it."""
        self.ports.remove(port)
        if port in self.free:
            self.free.remove(port)

    def endpoint_ready(self, device: UsbDevice, endpoint: int) -> None:
        """What an endpoint of ``device`` had no answer to (Nak) may have one now. Controllers that wait override it."""

    # -- devices

    def check(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        if device.at is not None:
            return
        if device.port is not None:
            free = [port for port in self.free if port.path == device.port]
            if not free:
                raise QobraError(f"usb port {device.port} (bus {self.bus_name}) not found (in use?)")
        else:
            if len(self.free) == 1:
                self._extend(device)
            free = self.free
            if not free:
                raise QobraError(f"tried to attach usb device {device.product} to a bus with no free ports")
        port = device.at = free[0]
        port.claimed = device
        self.free.remove(port)
        self.used.append(port)

    def _extend(self, device: Device) -> None:
        # The last port is better used for a hub, if it can be plugged in there.
        hub: Any = self.tree.find_type("usb-hub")
        if not isinstance(device, hub) and self.free[0].speeds & hub.speeds:
            device.board.place(hub(self.tree), bus=self)

    def admit(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        if device.attaches_itself:
            device.speed = self._speed(device)

    def plugged(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        if device.attaches_itself:
            self.attach(device)

    def attach(self, device: UsbDevice) -> None:
        """Plug ``device`` into its port, at the highest speed that both have. Raises QobraError if there is none."""
        port = device.at
        assert port is not None
        device.speed = self._speed(device)
        port.device = device
        port.owner.attached(port)

    def detach(self, device: UsbDevice) -> None:
        """Pull ``device`` out; the port stays its."""
        port = device.at
        if port is not None and port.device is device:
            port.device = None
            port.owner.detached(port, device)

    def _speed(self, device: UsbDevice) -> int:
        assert device.at is not None
        offered, wanted = device.at.speeds, device.speeds
        if not offered & wanted:
            raise QobraError(
                f'Warning: speed mismatch trying to attach usb device "{device.product}" ({_names(wanted)} speed) '
                f'to bus "{self.bus_name}", port "{device.at.path}" ({_names(offered)} speed)'
            )
        return max(offered & wanted)

    def unplugged(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        self.detach(device)
        self._release(device)

    def remove(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        self._release(device)
        super().remove(device)

    def _release(self, device: UsbDevice) -> None:
        port = device.at
        if port is not None and port.claimed is device:
            port.claimed = port.device = None
            device.at = None
            self.used.remove(port)
            if port in self.ports:
                self.free.append(port)


def _names(speeds: Iterable[int]) -> str:
    return "+".join(SPEED_NAMES[speed] for speed in sorted(speeds))

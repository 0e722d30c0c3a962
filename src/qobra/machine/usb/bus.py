"""The USB bus: which device is at which port of a host controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.qdev import Bus, Device
from qobra.machine.usb.device import UsbDevice

if TYPE_CHECKING:
    from qobra.object.qom import Object
    from qobra.object.tree import ObjectTree


class UsbBus(Bus):
    """The ports of one host controller, numbered from 1.

    ``attached(port, device)`` is called when a device comes, and with None when it goes.
    """

    type_name = "usb-bus"
    interfaces = ("hotplug-handler",)
    hotplug = True

    def __init__(self, tree: ObjectTree, ports: int = 2) -> None:
        super().__init__(tree)
        self.ports: list[UsbDevice | None] = [None] * ports
        self.attached: Callable[[int, UsbDevice | None], None] = lambda _port, _device: None

    def hotplug_handler(self) -> Object | None:
        return self

    def find(self, address: int) -> UsbDevice | None:
        """The device that the host has given an address."""
        for device in self.ports:
            if device is not None and device.address == address:
                return device
        return None

    def check(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        if device.port:
            free = [n for n, other in enumerate(self.ports) if other is None and device.port == str(n + 1)]
            if not free:
                raise QobraError(f"usb port {device.port} (bus {self.bus_name}) not found (in use?)")
        else:
            free = [n for n, other in enumerate(self.ports) if other is None]
            if not free:
                raise QobraError(f"tried to attach usb device {device.product} to a bus with no free ports")
        device.port_number = free[0]
        self.ports[free[0]] = device

    def plugged(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        self.attached(device.port_number, device)

    def unplugged(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        self._forget(device, tell=True)

    def remove(self, device: Device) -> None:
        assert isinstance(device, UsbDevice)
        self._forget(device, tell=False)
        super().remove(device)

    def _forget(self, device: UsbDevice, *, tell: bool) -> None:
        if device in self.ports:
            number = self.ports.index(device)
            self.ports[number] = None
            if tell:
                self.attached(number, None)

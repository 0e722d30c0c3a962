"""``usb-hub``: a hub of full speed, with up to eight ports (USB 2.0, chapter 11)."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.usb.device import Nak, Stall, UsbDevice
from qobra.machine.usb.hub_ports import HubPorts
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool, Int

_MAX_PORTS, _MAX_TIERS = 8, 5
_GET_STATUS, _CLEAR_FEATURE, _SET_FEATURE, _GET_DESCRIPTOR = 0x00, 0x01, 0x03, 0x06
_FROM_HUB, _FROM_PORT, _TO_HUB, _TO_PORT = 0xA0, 0xA3, 0x20, 0x23
_HUB_DESCRIPTOR, _POWER_TOGETHER, _POWER_EACH, _NO_OVER_CURRENT = 0x29, 0x02, 0x01, 0x08

_STATUS_ENDPOINT = 1


@registry.register("usb-hub")
class UsbHub(UsbDevice):
    """The hub. Its ports are places on the bus that it is plugged into itself."""

    type_name = "usb-hub"
    category = "Controller/Bridge/Hub"
    product = "QEMU USB Hub"
    device_descriptor = bytes((18, 1, 0x10, 0x01, 9, 0, 0, 8, 0x09, 0x04, 0xAA, 0x55, 0x01, 0x01, 1, 2, 3, 1))
    configuration_descriptor = bytes((
        9, 2, 25, 0, 1, 1, 0, 0xE0, 0,
        9, 4, 0, 0, 1, 9, 0, 0, 0,
        7, 5, 0x81, 3, 2, 0, 0xFF,
    ))  # fmt: skip
    strings = {1: "QEMU", 2: "QEMU USB Hub", 3: "314159"}

    ports = Int(_MAX_PORTS, type="uint32")
    port_power = Bool(False)

    vmstate = VmState(part("down"))

    def realize(self) -> None:
        if not 1 <= self.ports <= _MAX_PORTS:
            raise QobraError(f"num_ports ({self.ports}) out of range (1..{_MAX_PORTS})")
        bus: Any = self.bus
        assert self.at is not None
        if self.at.path.count(".") >= _MAX_TIERS:
            raise QobraError("usb hub chain too deep")
        self.down = HubPorts(self, bus, self.ports, switched=self.port_power)

    def unrealize(self) -> None:
        self.down.close()

    def string(self, index: int) -> str | None:
        if index == 3:
            return self.serial_number or self.place(self.strings[index])
        return super().string(index)

    def find(self, address: int) -> UsbDevice | None:
        return self if self.address == address else self.down.find(address)

    def device_reset(self) -> None:
        self.down.reset()

    def endpoint_in(self, endpoint: int, room: int) -> bytes:
        if endpoint != _STATUS_ENDPOINT:
            raise Stall
        changed = self.down.changed()
        if not changed:
            raise Nak
        return changed.to_bytes((self.ports + 8) // 8, "little")

    # -- requests

    def own_request(self, request: bytes, data: bytes) -> bytes:
        kind, code = request[0], request[1]
        value, index = int.from_bytes(request[2:4], "little"), int.from_bytes(request[4:6], "little")
        if kind == _FROM_HUB and code == _GET_DESCRIPTOR:
            return self._hub_descriptor()
        if kind == _FROM_HUB and code == _GET_STATUS:
            return bytes(4)  # it has its own power, and never too much current
        if kind == _TO_HUB and code in (_CLEAR_FEATURE, _SET_FEATURE) and value <= 1:
            return b""
        number = index - 1
        if not 0 <= number < self.ports:
            raise Stall
        if kind == _FROM_PORT and code == _GET_STATUS:
            return self.down.status(number)
        if kind == _TO_PORT and code == _SET_FEATURE:
            self.down.set_feature(number, value)
        elif kind == _TO_PORT and code == _CLEAR_FEATURE:
            self.down.clear_feature(number, value)
        else:
            raise Stall
        return b""

    def _hub_descriptor(self) -> bytes:
        count = int(self.ports)
        power = _POWER_EACH if self.port_power else _POWER_TOGETHER
        fixed = bytes((_HUB_DESCRIPTOR, count, power | _NO_OVER_CURRENT, 0, 1, 0))
        maps = bytes((count + 8) // 8) + b"\xff" * ((count + 7) // 8)  # all may be removed; all have power
        return bytes((1 + len(fixed) + len(maps),)) + fixed + maps

"""Controllers that serve the slower devices at ports of another controller, whose bus they share."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.pci.device import PciDevice
from qobra.machine.plug import all_buses
from qobra.machine.usb.bus import PortOwner, UsbBus, UsbPort
from qobra.object.property import Int, String


class Companion(PciDevice):
    """A controller that has its ports from ``masterbus``, or a bus of its own if none is given."""

    abstract = True

    masterbus = String(type="str")
    firstport = Int(0, type="uint32")

    def take_ports(self, owner: PortOwner, count: int, speeds: tuple[int, ...]) -> list[UsbPort]:
        """``count`` ports for ``owner``. Raises QobraError where the other controller has none for it."""
        if self.masterbus is None:
            bus = UsbBus(self.tree)
            self.add_bus(bus)
            return bus.add_ports(owner, count, speeds)
        master: Any = next(
            (
                bus
                for bus in all_buses(self.board.system_bus)
                if bus.implements(UsbBus.type_name) and bus.bus_name == self.masterbus
            ),
            None,
        )
        if master is None:
            raise QobraError(f"USB bus '{self.masterbus}' not found")
        lent: list[UsbPort] = master.lend(owner, self.firstport, count, speeds)
        return lent

"""``pci-bridge``: a conventional PCI bridge with hot-plug by a controller of its own or by ACPI."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.pci import regs
from qobra.machine.pci.hotplug_bridge import HotplugBridge
from qobra.machine.pci.reserve import ReservingBridge
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool, Int

_CAP_SLOT_ID, _FIRST_IN_CHASSIS = 0x04, 0x20


@registry.register("pci-bridge")
class PciPciBridge(HotplugBridge, ReservingBridge):
    """A bridge; ``chassis_nr`` tells one from another."""

    type_name = "pci-bridge"
    interfaces = ("hotplug-handler",)
    description = "Standard PCI Bridge"
    vendor_id = regs.RED_HAT
    device_id = 0x0001

    chassis_nr = Int(0, type="uint8", name="chassis_nr")
    shpc = Bool(True)

    vmstate = VmState()

    def realize(self) -> None:
        if self.chassis_nr == 0:
            raise QobraError(
                "Bridge chassis not specified. Each bridge is required to be assigned a unique chassis id > 0."
            )
        super().realize()
        self.add_reservation()

    def add_capabilities(self) -> None:
        start = self.add_capability(_CAP_SLOT_ID, 4)
        self.put(start + 2, 1, _FIRST_IN_CHASSIS)
        self.put(start + 3, 1, self.chassis_nr)
        self.writable[start + 3] = 0xFF

"""``pcie-pci-bridge``: conventional PCI devices behind a PCI Express port (PCI Express to PCI Bridge 1.0)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import express, regs
from qobra.machine.pci.hotplug_bridge import HotplugBridge
from qobra.machine.vmstate import VmState


@registry.register("pcie-pci-bridge")
class PciePciBridge(HotplugBridge):
    """A bridge. Devices behind it come and go with the standard controller or with the help of ACPI."""

    type_name = "pcie-pci-bridge"
    interfaces = ("hotplug-handler",)
    plugs_into = ("pci-express-device",)
    vendor_id = regs.RED_HAT
    device_id = 0x000E
    always_express = True

    vmstate = VmState()

    def add_capabilities(self) -> None:
        express.add_link(self, express.add_capability(self, express.TO_PCI))
        self.writable[express.add_power_management(self)] = 0  # it has one power state
        express.add_error_reporting(self, express.EXTENDED)

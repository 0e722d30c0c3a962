"""``pcie-pci-bridge``: conventional PCI devices behind a PCI Express port (PCI Express to PCI Bridge 1.0)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import express, regs
from qobra.machine.pci.bridge import PciBridge
from qobra.machine.pci.msix import Msi
from qobra.machine.vmstate import VmState
from qobra.object.property import Enum


@registry.register("pcie-pci-bridge")
class PciePciBridge(PciBridge):
    """A bridge. Devices behind it come and go with the help of ACPI."""

    type_name = "pcie-pci-bridge"
    plugs_into = ("pci-express-device",)
    vendor_id = regs.RED_HAT
    device_id = 0x000E
    interrupt_pin = 1
    is_express = True

    msi = Enum("OnOffAuto", ("auto", "on", "off"), "auto")

    vmstate = VmState()

    def realize(self) -> None:
        self.realize_bridge(self.user_id)
        express.add_capability(self, express.TO_PCI)
        start = self.add_capability(regs.CAP_PM, 8)
        self.put(start + 2, 2, 3)
        self.writable[start + 4] = 0x03
        self._msi = Msi(self, 1, maskable=True) if self.msi != "off" else None
        self.board.bridge_added(self.secondary)

    def reset(self) -> None:
        super().reset()
        if self._msi is not None:
            self._msi.reset()

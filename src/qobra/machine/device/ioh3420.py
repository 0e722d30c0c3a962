"""``ioh3420``: the root port of Intel's I/O hubs."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import express, regs
from qobra.machine.pci.msix import Msi
from qobra.machine.pci.port import ERROR_REPORTING, PcieSlot
from qobra.machine.vmstate import VmState

_SUBSYSTEM, _MESSAGES, _CAPABILITY = 0x40, 0x60, 0x90


@registry.register("ioh3420")
class Ioh3420(PcieSlot):
    """The port. It has two messages, the first of which is for the slot."""

    type_name = "ioh3420"
    ancestors = {"pcie-root-port-base": ("pci-express-device",)}
    description = "Intel IOH device id 3420 PCIE Root Port"
    vendor_id = regs.INTEL
    device_id = 0x3420
    revision = 2
    interrupt_pin = 1

    vmstate = VmState()

    def realize(self) -> None:
        self.check_place()
        self.realize_bridge(self.user_id)
        start = self.add_capability(regs.CAP_SSVID, 8, offset=_SUBSYSTEM)
        self.put(start + 4, 4, regs.INTEL)
        self._msi = Msi(self, 2, offset=_MESSAGES, maskable=True, wide=False)
        start = express.add_capability(self, self.port_type, offset=_CAPABILITY, slot=True)
        express.add_link(self, start, port=self.port)
        self.writable[start + express.ROOT_CONTROL] = 0x07
        self.realize_slot(start)
        express.add_port_error_reporting(self, ERROR_REPORTING, root=True)
        self.board.bridge_added(self.secondary)

    def signal(self) -> None:
        if self._msi.enabled:
            self._msi.notify(0)
        else:
            super().signal()

    def reset(self) -> None:
        super().reset()
        self._msi.reset()
        express.reset_root_error_reporting(self, ERROR_REPORTING)

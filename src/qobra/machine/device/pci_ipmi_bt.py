"""``pci-ipmi-bt``: a management controller by the block transfer interface, as a PCI function."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.ipmi.bt import Bt
from qobra.machine.ipmi.pci import PciIpmi
from qobra.machine.vmstate import VmState


@registry.register("pci-ipmi-bt")
class PciIpmiBt(PciIpmi):
    """The registers, at the first ports of a window."""

    type_name = "pci-ipmi-bt"
    interfaces = ("ipmi-interface",)
    description = "PCI IPMI BT"
    prog_if = 2
    port_type = Bt
    ports = 3

    vmstate = VmState()

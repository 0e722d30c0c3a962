"""``pci-ipmi-kcs``: a management controller by the keyboard controller style interface, as a PCI function."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.ipmi.kcs import Kcs
from qobra.machine.ipmi.pci import PciIpmi
from qobra.machine.vmstate import VmState


@registry.register("pci-ipmi-kcs")
class PciIpmiKcs(PciIpmi):
    """The registers, at the first ports of a window."""

    type_name = "pci-ipmi-kcs"
    interfaces = ("ipmi-interface",)
    description = "PCI IPMI KCS"
    prog_if = 1
    port_type = Kcs
    ports = 2

    vmstate = VmState()

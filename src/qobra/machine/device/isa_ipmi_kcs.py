"""``isa-ipmi-kcs``: a management controller by the keyboard controller style interface, at ports of the ISA bus."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.ipmi.isa import IsaIpmi
from qobra.machine.ipmi.kcs import Kcs
from qobra.machine.vmstate import VmState
from qobra.object.property import Int


@registry.register("isa-ipmi-kcs")
class IsaIpmiKcs(IsaIpmi):
    """Data, and status with commands."""

    type_name = "isa-ipmi-kcs"
    interfaces = ("ipmi-interface", "acpi-dev-aml-interface")
    port_type = Kcs
    ports = 2
    kind = 1
    label = "ipmi_kcs"

    ioport = Int(0xCA2, type="uint32")

    vmstate = VmState()

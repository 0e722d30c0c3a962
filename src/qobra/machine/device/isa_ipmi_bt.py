"""``isa-ipmi-bt``: a management controller by the block transfer interface, at ports of the ISA bus."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.ipmi.bt import Bt
from qobra.machine.ipmi.isa import IsaIpmi
from qobra.machine.vmstate import VmState
from qobra.object.property import Int


@registry.register("isa-ipmi-bt")
class IsaIpmiBt(IsaIpmi):
    """Control, data and interrupt mask."""

    type_name = "isa-ipmi-bt"
    interfaces = ("ipmi-interface", "acpi-dev-aml-interface")
    port_type = Bt
    ports = 3
    kind = 3
    label = "ipmi_bt"

    ioport = Int(0xE4, type="uint32")

    vmstate = VmState()

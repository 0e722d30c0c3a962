"""``pci-serial-2x``: two serial ports on one function of PCI."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci.serial_ports import PciSerialPorts
from qobra.machine.vmstate import VmState
from qobra.object.property import String


@registry.register("pci-serial-2x")
class PciSerialTwo(PciSerialPorts):
    """Two ports."""

    type_name = "pci-serial-2x"
    error_name = type_name
    device_id = 0x0003
    port_properties = ("chardev1", "chardev2")

    chardev1 = String(type="str", description="ID of a chardev to use as a backend")
    chardev2 = String(type="str", description="ID of a chardev to use as a backend")

    vmstate = VmState()

"""``pci-serial-4x``: four serial ports on one function of PCI."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci.serial_ports import PciSerialPorts
from qobra.machine.vmstate import VmState
from qobra.object.property import String


@registry.register("pci-serial-4x")
class PciSerialFour(PciSerialPorts):
    """Four ports."""

    type_name = "pci-serial-4x"
    error_name = type_name
    device_id = 0x0004
    port_properties = ("chardev1", "chardev2", "chardev3", "chardev4")

    chardev1 = String(type="str", description="ID of a chardev to use as a backend")
    chardev2 = String(type="str", description="ID of a chardev to use as a backend")
    chardev3 = String(type="str", description="ID of a chardev to use as a backend")
    chardev4 = String(type="str", description="ID of a chardev to use as a backend")

    vmstate = VmState()

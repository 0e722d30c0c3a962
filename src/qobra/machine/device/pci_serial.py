"""``pci-serial``: a serial port on PCI."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci.serial_ports import PciSerialPorts
from qobra.machine.vmstate import VmState
from qobra.object.property import String


@registry.register("pci-serial")
class PciSerial(PciSerialPorts):
    """One port."""

    type_name = "pci-serial"
    device_id = 0x0002

    chardev = String(type="str", description="ID of a chardev to use as a backend")

    vmstate = VmState()

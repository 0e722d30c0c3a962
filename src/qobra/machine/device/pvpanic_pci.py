"""``pvpanic-pci``: the panic device as a PCI function."""

from __future__ import annotations

from qobra.machine import pvpanic
from qobra.machine.devices import registry
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState
from qobra.object.property import Int


@registry.register("pvpanic-pci")
class PvpanicPci(PciDevice):
    """Two bytes of memory, of which the first one counts."""

    type_name = "pvpanic-pci"
    category = "Misc"
    vendor_id = regs.RED_HAT
    device_id = 0x0011
    revision = 1
    class_id = 0x0880

    events = Int(pvpanic.ALL_EVENTS, type="uint8")

    vmstate = VmState()

    def realize(self) -> None:
        region = Registers("pvpanic", 2, lambda _o, _w: int(self.events), self._write, valid=(1, 4), impl=(1, 1))
        self.add_bar(0, region)

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset == 0:
            pvpanic.write(self.machine, self.events, value)

"""``VGA``: the usual graphics card of a PC, a VGA with the larger modes of Bochs."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import regs
from qobra.machine.vga.pci import PciVga
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool


@registry.register("VGA")
class Vga(PciVga):
    """The card at the places where a PC's software expects one."""

    type_name = "VGA"
    class_id = regs.CLASS_VGA
    default_rom = "vgabios-stdvga.bin"
    hotpluggable_class = False

    mmio = Bool(True, description="on/off")

    vmstate = VmState()

    def realize(self) -> None:
        super().realize()
        self.core.answer_at_legacy_places(self.pci_bus.memory, self.pci_bus.ports)
        if self.mmio:
            self.show_registers()

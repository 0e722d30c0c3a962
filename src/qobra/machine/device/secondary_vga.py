"""``secondary-vga``: the same card without the places that only one card can have, for further screens."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pci import regs
from qobra.machine.vga.pci import PciVga
from qobra.machine.vmstate import VmState


@registry.register("secondary-vga")
class SecondaryVga(PciVga):
    """A card that is driven through its registers in memory alone."""

    type_name = "secondary-vga"
    class_id = regs.CLASS_DISPLAY

    vmstate = VmState()

    def realize(self) -> None:
        super().realize()
        self.show_registers()

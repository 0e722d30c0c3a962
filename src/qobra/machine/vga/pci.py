"""VGA as a PCI function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.vga.core import VgaCore
from qobra.machine.vga.mmio import ByteOrder, RegisterWindow
from qobra.machine.vga.properties import WithMonitor, big_endian_framebuffer, memory_size
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool, Int

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

VENDOR, DEVICE, REVISION = 0x1234, 0x1111, 2
MEMORY_BAR, REGISTERS_BAR = 0, 2
_MONITOR_SIZE = 0x180


class PciVga(WithMonitor):
    """The card's memory in base address 0; models add the places at which the registers are."""

    type_name = "pci-vga"
    interfaces = ("acpi-dev-aml-interface", "conventional-pci-device")
    abstract = True
    category = "Display"
    vendor_id, device_id, revision = VENDOR, DEVICE, REVISION

    vgamem_mb = Int(16, type="uint32", name="vgamem_mb")
    qemu_extended_regs = Bool(True, description="on/off")
    edid = Bool(True, description="on/off")
    big_endian_framebuffer = big_endian_framebuffer()

    vmstate = VmState(part("core"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.byte_order = ByteOrder()

    def realize(self) -> None:
        size = memory_size(self.vgamem_mb)
        self.values["vgamem_mb"] = size >> 20
        self.core = VgaCore(size, self.board.guest_time_ns, self.byte_order)
        self.core.draw_on(self.board.consoles.add(self))
        self.add_bar(MEMORY_BAR, self.core.memory, prefetch=True)

    def show_registers(self) -> None:
        """Have the registers in memory, too."""
        window = RegisterWindow(
            self.core.dispi,
            identity=self.identity(_MONITOR_SIZE),
            registers=self.core.registers,
            order=self.byte_order if self.qemu_extended_regs else None,
        )
        self.add_bar(REGISTERS_BAR, window.region("vga.mmio"))

    def unrealize(self) -> None:
        super().unrealize()
        self.board.consoles.remove(self)
        self.core.close()

    def reset(self) -> None:
        super().reset()
        self.core.reset()

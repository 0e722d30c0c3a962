"""``virtio-vga``: a virtio-gpu that is a VGA until its driver shows a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qobra.machine.devices import registry
from qobra.machine.pci import regs
from qobra.machine.vga.core import VgaCore
from qobra.machine.vga.mmio import ByteOrder, RegisterWindow
from qobra.machine.vga.pci import MEMORY_BAR
from qobra.machine.vga.properties import big_endian_framebuffer
from qobra.machine.virtio.pci import CAP_COMMON, CAP_DEVICE, CAP_ISR, CAP_NOTIFY, VirtioPci
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool, Int

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_VGA_MEMORY = 8 << 20


@registry.register("virtio-vga")
class VirtioVga(VirtioPci):
    """Both cards in one function: the VGA's registers are in memory before virtio's."""

    type_name = "virtio-vga"
    ancestors = {"virtio-vga-base-type": (), "virtio-vga-base": ()}
    backend_type = "virtio-gpu-device"
    device_id = 0x1050
    class_id = regs.CLASS_VGA
    fixed_legacy = "on"
    hotpluggable_class = False
    default_rom = "vgabios-virtio.bin"
    modern_bar, msix_bar = 2, 4
    areas: ClassVar[dict[int, tuple[int, int]]] = {
        CAP_COMMON: (0x1000, 0x800),
        CAP_ISR: (0x1800, 0x800),
        CAP_DEVICE: (0x2000, 0x1000),
        CAP_NOTIFY: (0x3000, 0x1000),
    }

    vectors = Int(3, type="uint32")
    ioeventfd = Bool(False, description="on/off")
    big_endian_framebuffer = big_endian_framebuffer()

    vmstate = VmState(part("core"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.byte_order = ByteOrder()

    def realize(self) -> None:
        self.core = VgaCore(_VGA_MEMORY, self.board.guest_time_ns, self.byte_order)
        self._registers = RegisterWindow(
            self.core.dispi, registers=self.core.registers, order=self.byte_order, nothing=0
        )
        self.add_bar(MEMORY_BAR, self.core.memory, prefetch=True)
        super().realize()
        device: Any = self.device
        self._commands = device.commands
        console = self._commands.consoles[0]
        self.core.draw_on(console)
        console.refresh = self._refresh
        self.core.answer_at_legacy_places(self.pci_bus.memory, self.pci_bus.ports)

    def unrealize(self) -> None:
        super().unrealize()
        self.core.close()

    def reset(self) -> None:
        super().reset()
        self.core.reset()

    def _refresh(self) -> None:
        if not self._commands.driven:
            self.core.refresh()

    def read_modern(self, offset: int, width: int) -> int:
        if offset < self.areas[CAP_COMMON][0]:
            return self._registers.load(offset, width)
        return super().read_modern(offset, width)

    def write_modern(self, offset: int, width: int, value: int) -> None:
        if offset < self.areas[CAP_COMMON][0]:
            self._registers.store(offset, width, value)
        else:
            super().write_modern(offset, width, value)

"""``isa-vga``: the VGA for machines without PCI; its whole memory lies at a fixed address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vga.core import VgaCore
from qobra.machine.vga.mmio import ByteOrder
from qobra.machine.vga.properties import memory_size
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int

if TYPE_CHECKING:
    from qobra.machine.fw_cfg import FwCfg

_MEMORY = 0xE0000000
_ROM = "vgabios.bin"


@registry.register("isa-vga")
class IsaVga(IsaDevice):
    """The card on the ISA bus."""

    type_name = "isa-vga"
    category = "Display"
    hotpluggable_class = False

    vgamem_mb = Int(8, type="uint32", name="vgamem_mb")

    vmstate = VmState(part("core"))

    def realize(self) -> None:
        board: Any = self.board
        firmware: FwCfg | None = board.fw_cfg
        size = memory_size(self.vgamem_mb)
        self.values["vgamem_mb"] = size >> 20
        self.core = VgaCore(size, board.guest_time_ns, ByteOrder())
        self.core.draw_on(board.consoles.add(self))
        self.core.answer_at_legacy_places(board.memory, board.ports)
        self._mappings.append(board.memory.map(_MEMORY, self.core.memory))
        path = board.find_firmware(_ROM)
        if path is not None and firmware is not None:
            with open(path, "rb") as stream:
                firmware.add_file(f"vgaroms/{_ROM}", stream.read())

    def unrealize(self) -> None:
        super().unrealize()
        self.board.consoles.remove(self)
        self.core.close()

    def reset(self) -> None:
        self.core.reset()

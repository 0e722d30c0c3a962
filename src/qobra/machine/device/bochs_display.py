"""``bochs-display``: Bochs' registers in memory and a picture, without all that is older."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.memory import Ram
from qobra.machine.pci import express, regs
from qobra.machine.vga import colours, dispi
from qobra.machine.vga.frame import Frame, Painter
from qobra.machine.vga.mmio import ByteOrder, RegisterWindow
from qobra.machine.vga.pci import DEVICE, MEMORY_BAR, REGISTERS_BAR, REVISION, VENDOR
from qobra.machine.vga.properties import WithMonitor, big_endian_framebuffer
from qobra.machine.vmstate import Field, Listed, Number, VmState, part
from qobra.object.property import Bool, Size

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_LEAST_MEMORY, _MOST_MEMORY = 4 << 20, 256 << 20
_LEAST_SIDE = 64
_EXPRESS = 0x80
_MONITOR_SIZE = 0x100


class _Registers:
    """Registers that keep what is written, whatever it is."""

    vmstate = VmState(Field("values", Listed(Number(2))))

    def __init__(self, memory: int) -> None:
        self.values = [0] * dispi.COUNT
        self.values[dispi.ID], self.values[dispi.MEMORY] = dispi.LAST_ID, memory >> 16

    def read(self, number: int) -> int:
        return self.values[number] if number < dispi.COUNT else 0xFFFF

    def write(self, number: int, value: int) -> None:
        if number not in (dispi.ID, dispi.MEMORY) and number < dispi.COUNT:
            self.values[number] = value


@registry.register("bochs-display")
class BochsDisplay(WithMonitor):
    """A picture of 16 or 32 bits a pixel."""

    type_name = "bochs-display"
    category = "Display"
    vendor_id, device_id, revision = VENDOR, DEVICE, REVISION
    class_id = regs.CLASS_DISPLAY
    plugs_into = ("pci-express-device", "conventional-pci-device")
    default_rom = "vgabios-bochs-display.bin"

    vgamem = Size(16 << 20)
    edid = Bool(True)
    big_endian_framebuffer = big_endian_framebuffer()

    vmstate = VmState(part("_registers", "byte_order"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.byte_order = ByteOrder()

    @property
    def is_express(self) -> bool:
        """It is what its bus is."""
        return self.pci_bus.implements("PCIE")

    def realize(self) -> None:
        if self.is_express:
            express.add_endpoint(self, offset=_EXPRESS, reports_errors=False, resets=False)
        for wrong, how in ((self.vgamem < _LEAST_MEMORY, "small"), (self.vgamem > _MOST_MEMORY, "big")):
            if wrong:
                raise QobraError(f"bochs-display: video memory too {how}")
        self.values["vgamem"] = 1 << (self.vgamem - 1).bit_length()
        self._memory = Ram("bochs-display-vram", self.vgamem)
        self._registers = _Registers(self.vgamem)
        window = RegisterWindow(self._registers, identity=self.identity(_MONITOR_SIZE), order=self.byte_order)
        self.add_bar(MEMORY_BAR, self._memory, prefetch=True)
        self.add_bar(REGISTERS_BAR, window.region("bochs-display-mmio"))
        console = self.board.consoles.add(self)
        self._painter = Painter(console)
        console.refresh = self._refresh

    def unrealize(self) -> None:
        super().unrealize()
        self.board.consoles.remove(self)
        self._memory.close()

    def _refresh(self) -> None:
        frame = self._frame()
        if frame is not None:
            self._painter.paint(frame)

    def _frame(self) -> Frame | None:
        """What the registers show; None where they make no picture: it stays as it was."""
        values = self._registers.values
        width, height, depth = values[dispi.WIDTH], values[dispi.HEIGHT], values[dispi.DEPTH]
        if not values[dispi.ENABLE] & dispi.ON or depth not in (16, 32) or min(width, height) < _LEAST_SIDE:
            return None
        step = max(values[dispi.VIRTUAL_WIDTH], width) * depth // 8
        begins = values[dispi.X] * depth // 8 + values[dispi.Y] * step
        if begins + height * step > self._memory.size:
            return None
        length, view = width * depth // 8, self._memory.view
        rows = [bytes(view[at : at + length]) for at in range(begins, begins + height * step, step)]
        big = self.byte_order.big_endian and depth == 32
        return Frame(width, height, rows, lambda row: colours.direct(row, depth, big_endian=big), look=(depth, big))

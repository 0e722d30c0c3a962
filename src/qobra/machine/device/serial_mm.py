"""``serial-mm``: a 16550A in memory."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.memory import Registers
from qobra.machine.qdev import SysBusDevice
from qobra.machine.serial16550 import Uart, find_chardev
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int, String


@registry.register("serial-mm")
class SerialMm(SysBusDevice):
    """The eight registers, ``1 << regshift`` bytes apart."""

    type_name = "serial-mm"

    regshift = Int(0, type="uint8")
    chardev = String(type="str")
    base = 0

    vmstate = VmState(part("uart"))

    def realize(self) -> None:
        self.irq = Line()
        self.uart = Uart(self.board, self.irq, find_chardev(self.board, self.chardev, self.type_name))
        shift = self.regshift
        region = Registers(
            "serial",
            8 << shift,
            lambda offset, width: self.uart.read(offset >> shift),
            lambda offset, width, value: self.uart.write(offset >> shift, 1, value),
            valid=(1, 8),
            impl=(1, 8),
        )
        self._mapping = self.board.memory.map(self.base, region)

    def unrealize(self) -> None:
        self.uart.close()
        self._mapping.remove()

    def reset(self) -> None:
        self.uart.reset()

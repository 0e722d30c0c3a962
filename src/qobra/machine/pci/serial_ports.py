"""Serial ports on a PCI function: one, two or four 16550A at eight I/O ports each, which share the interrupt pin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.irq import Line, SharedLine
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.serial16550 import Uart, find_chardev
from qobra.machine.vmstate import VmState, parts
from qobra.object.property import Int

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_PORTS_EACH = 8


class PciSerialPorts(PciDevice):
    """``port_properties`` names the properties of the ports' character devices, ``error_name`` the type in errors."""

    abstract = True
    category = "Input"
    vendor_id = regs.RED_HAT
    revision = 1
    class_id = 0x0700
    interrupt_pin = 1
    port_properties: tuple[str, ...] = ("chardev",)
    error_name = "serial"

    prog_if_property = Int(2, type="uint8", name="prog_if")

    vmstate = VmState(parts("uarts"), partial=True)

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.uarts: list[Uart] = []

    def realize(self) -> None:
        self.put(regs.PROG_IF, 1, self.get("prog_if"))
        shared = SharedLine(Line(self.set_pin))
        for number, name in enumerate(self.port_properties):
            backend = find_chardev(self.board, self.values.get(name), self.error_name, name)
            self.uarts.append(Uart(self.board, shared.source(number), backend))
        size = _PORTS_EACH * len(self.uarts)
        self.add_bar(0, Registers("serial", size, self._read, self._write, impl=(1, 1)), io=True)

    def unrealize(self) -> None:
        while self.uarts:
            self.uarts.pop().close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        for uart in self.uarts:
            uart.reset()

    def _read(self, offset: int, _width: int) -> int:
        return self.uarts[offset // _PORTS_EACH].read(offset % _PORTS_EACH)

    def _write(self, offset: int, _width: int, value: int) -> None:
        self.uarts[offset // _PORTS_EACH].write(offset % _PORTS_EACH, 1, value)

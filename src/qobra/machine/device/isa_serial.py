"""``isa-serial``: a serial port of a PC."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.serial16550 import Uart, find_chardev
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int, String

_MAX_PORTS = 4
_BASES = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
_LINES = (4, 3, 4, 3)


@registry.register("isa-serial")
class IsaSerial(IsaDevice):
    """A 16550A at one of the four places, the next free one unless ``index`` says otherwise."""

    type_name = "isa-serial"
    interfaces = ("acpi-dev-aml-interface",)
    category = "Input"

    index = Int(0xFFFFFFFF, type="uint32")
    iobase = Int(0xFFFFFFFF, type="uint32")
    irq = Int(0xFFFFFFFF, type="uint32")
    chardev = String(type="str", description="ID of a chardev to use as a backend")

    vmstate = VmState(part("uart"))

    def realize(self) -> None:
        if self.index == 0xFFFFFFFF:
            used = {d.index for d in self.bus.devices if isinstance(d, IsaSerial) and d.realized} if self.bus else set()
            self.values["index"] = next((i for i in range(_MAX_PORTS) if i not in used), _MAX_PORTS)
        if self.index >= _MAX_PORTS:
            raise QobraError(f"Max. supported number of ISA serial ports is {_MAX_PORTS}.")
        if self.iobase == 0xFFFFFFFF:
            self.values["iobase"] = _BASES[self.index]
        if self.irq == 0xFFFFFFFF:
            self.values["irq"] = _LINES[self.index]
        self.uart = Uart(self.board, self.line(self.irq), find_chardev(self.board, self.chardev, "serial"))
        self.map_ports(self.iobase, 8, self.uart.read, self.uart.write, name="serial")

    def unrealize(self) -> None:
        self.uart.close()
        super().unrealize()

    def reset(self) -> None:
        self.uart.reset()

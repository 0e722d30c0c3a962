"""``isa-fdc``: the floppy controller of a PC, at ports 0x3f0 to 0x3f7."""

from __future__ import annotations

from typing import Any

from qobra.machine.device.floppy import FloppyBus
from qobra.machine.devices import registry
from qobra.machine.fdc.controller import Controller
from qobra.machine.fdc.formats import DRIVE_TYPES
from qobra.machine.isa import IsaDevice
from qobra.machine.plug import all_buses
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Enum, Int


@registry.register("isa-fdc")
class IsaFdc(IsaDevice):
    """The controller with its cable."""

    type_name = "isa-fdc"
    interfaces = ("acpi-dev-aml-interface",)
    category = "Storage"
    description = "virtual floppy controller"

    iobase = Int(0x3F0, type="uint32")
    irq = Int(6, type="uint32")
    dma = Int(2, type="uint32")
    fdtypeA = Enum("FdcDriveType", DRIVE_TYPES, "auto")
    fdtypeB = Enum("FdcDriveType", DRIVE_TYPES, "auto")
    fallback = Enum("FdcDriveType", DRIVE_TYPES, "288")
    bootindexA = Int(-1, type="int32", show_default=False)
    bootindexB = Int(-1, type="int32", show_default=False)

    vmstate = VmState(part("controller"))

    def realize(self) -> None:
        bus = self.floppies = FloppyBus(self.tree)
        bus.fallback = self.fallback
        dma = None
        if self.dma < 4:
            found = (each for every in all_buses(self.board.system_bus) for each in every.devices)
            dma = next((each for each in found if each.type_name == "i8257" and each.realized), None)
        engine: Any = dma
        self.controller = Controller(bus, self.line(self.irq), self.board.clock, engine, self.dma)
        bus.controller = self.controller
        self.add_bus(bus)
        # Port 6 is the hard disks'.
        for first, size in ((1, 5), (7, 1)):

            def read(offset: int, _width: int, first: int = first) -> int:
                return self.controller.read(first + offset)

            def write(offset: int, _width: int, value: int, first: int = first) -> None:
                self.controller.write(first + offset, value & 0xFF)

            self.map_ports(self.iobase + first, size, read, write, name="fdc")

    def unrealize(self) -> None:
        self.controller.close()
        super().unrealize()

    def reset(self) -> None:
        self.controller.reset()

    def state_blocked(self) -> str | None:
        return "a command is under way" if self.controller.transferring else None

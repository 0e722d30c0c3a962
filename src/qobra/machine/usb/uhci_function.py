"""UHCI controllers as functions of PCI: what Intel's chips have in common."""

from __future__ import annotations

from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.usb.bus import PortOwner, UsbBus, UsbPort
from qobra.machine.usb.uhci import Uhci
from qobra.machine.vmstate import VmState, part


class UhciFunction(PciDevice):
    """A controller with a bus of its own."""

    type_name = "pci-uhci-usb"
    interfaces = ("conventional-pci-device",)
    abstract = True
    category = "USB"
    vendor_id = regs.INTEL
    class_id = 0x0C03
    interrupt_pin = 4

    vmstate = VmState(part("controller"), partial=True)

    def take_ports(self, owner: PortOwner, count: int, speeds: tuple[int, ...]) -> list[UsbPort]:
        """``count`` ports for ``owner``, on a bus of their own."""
        bus = UsbBus(self.tree)
        self.add_bus(bus)
        return bus.add_ports(owner, count, speeds)

    def realize(self) -> None:
        self.put(0x60, 1, 0x10)  # USB 1.0
        memory = GuestMemory(self.board.memory, self.may_master)
        self.controller = Uhci(self.take_ports, memory, self.board.clock, self.set_pin)
        self.add_bar(4, Registers("uhci", 32, self._read, self._write, valid=(1, 4), impl=(2, 2)), io=True)

    def unrealize(self) -> None:
        self.controller.close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.put(0x6A, 2, 1)
        self.controller.reset()

    def _read(self, offset: int, _width: int) -> int:
        return self.controller.read(offset)

    def _write(self, offset: int, _width: int, value: int) -> None:
        self.controller.write(offset, value & 0xFFFF)

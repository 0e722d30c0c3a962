"""``piix3-usb-uhci``: the USB host controller of the PIIX3, for full and low speed, with two ports."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.usb.bus import UsbBus
from qobra.machine.usb.uhci import Uhci
from qobra.machine.vmstate import VmState, part


@registry.register("piix3-usb-uhci")
class Piix3UsbUhci(PciDevice):
    """The controller and its bus."""

    type_name = "piix3-usb-uhci"
    ancestors = {"pci-uhci-usb": ("conventional-pci-device",)}
    category = "USB"
    vendor_id = regs.INTEL
    device_id = 0x7020
    revision = 1
    class_id = 0x0C03
    interrupt_pin = 4

    vmstate = VmState(part("controller"))

    def realize(self) -> None:
        self.put(0x60, 1, 0x10)  # USB 1.0
        bus = UsbBus(self.tree)
        self.add_bus(bus)
        memory = GuestMemory(self.board.memory, self.may_master)
        self.controller = Uhci(bus, memory, self.board.clock, self.set_pin)
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

"""EHCI controllers as functions of PCI."""

from __future__ import annotations

from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.usb.ehci import Ehci, EhciBus, EhciBusWithCompanions
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int

_SIZE = 4096
_VERSION, _FRAME_LENGTH, _LEGACY = 0x60, 0x61, 0x68


class EhciFunction(PciDevice):
    """A controller and its bus."""

    type_name = "pci-ehci-usb"
    interfaces = ("conventional-pci-device",)
    abstract = True
    category = "USB"
    vendor_id = regs.INTEL
    class_id = 0x0C03
    prog_if = 0x20
    interrupt_pin = 4
    has_companions = False

    maxframes = Int(128, type="uint32")

    vmstate = VmState(part("controller"), partial=True)

    def realize(self) -> None:
        self.put(_VERSION, 1, 0x20)  # USB 2.0
        self.put(_FRAME_LENGTH, 1, 0x20)  # 60000 bit times
        # No firmware has the controller, and nothing is to be told to it (EHCI 1.0, 2.1.7 and 2.1.8).
        self.put(_LEGACY, 4, 1)
        self.put(_LEGACY + 4, 4, 0xC0000000)
        bus = EhciBusWithCompanions(self.tree) if self.has_companions else EhciBus(self.tree)
        self.add_bus(bus)
        memory = GuestMemory(self.board.memory, self.may_master)
        self.controller = Ehci(bus, memory, self.board.clock, self.set_pin, max_frames=self.maxframes)
        self.add_bar(0, Registers("ehci", _SIZE, self.controller.read, self.controller.write))

    def unrealize(self) -> None:
        self.controller.close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.controller.reset()

    def state_loaded(self) -> None:
        super().state_loaded()
        self.controller.routes_loaded()

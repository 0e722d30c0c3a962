"""``pci-ohci``: an OHCI controller, for full and low speed: that of Apple's KeyLargo."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.usb.companion import Companion
from qobra.machine.usb.ohci import MAX_PORTS, Ohci
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int

_APPLE = 0x106B
_SIZE = 256


@registry.register("pci-ohci")
class PciOhci(Companion):
    """The controller, with a bus of its own or at ports of another."""

    type_name = "pci-ohci"
    description = "Apple USB Controller"
    category = "USB"
    hotpluggable_class = False
    vendor_id = _APPLE
    device_id = 0x003F
    class_id = 0x0C03
    prog_if = 0x10
    interrupt_pin = 1

    num_ports = Int(3, type="uint32")

    vmstate = VmState(part("controller"))

    def realize(self) -> None:
        if self.num_ports > MAX_PORTS:
            raise QobraError(f"OHCI num-ports={self.num_ports} is too big (limit is {MAX_PORTS} ports)")
        memory = GuestMemory(self.board.memory, self.may_master)
        self.controller = Ohci(self.take_ports, self.num_ports, memory, self.board.clock, self.set_pin)
        self.add_bar(0, Registers("ohci", _SIZE, self.controller.read, self.controller.write))

    def unrealize(self) -> None:
        self.controller.close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.controller.reset()

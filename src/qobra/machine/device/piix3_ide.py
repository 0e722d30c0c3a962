"""``piix3-ide``: the IDE controller of the ``pc`` board, two channels at the old ports, with bus-master DMA."""

from __future__ import annotations

from typing import Any

from qobra.machine.ata.bmdma import BusMaster
from qobra.machine.ata.bus import IdeBus, count_channels
from qobra.machine.ata.channel import Channel
from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Mapping, Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState, parts

_PLACES = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))


class PciIde(PciDevice):
    """What PCI IDE controllers have in common in the type tree."""

    type_name = "pci-ide"
    interfaces = ("conventional-pci-device",)
    abstract = True
    class_id = 0x0101
    prog_if = 0x80  # bus master, both channels at the old ports

    vmstate = VmState(partial=True)


@registry.register("piix3-ide")
class Piix3Ide(PciIde):
    """Function 1 of the PIIX3."""

    type_name = "piix3-ide"
    architectures = frozenset(("x86_64",))
    pluggable = False
    hotpluggable_class = False
    vendor_id = regs.INTEL
    device_id = 0x7010

    vmstate = VmState(parts("channels"))

    def realize(self) -> None:
        board: Any = self.board
        self.put(regs.STATUS, 2, 0x0280)
        memory = GuestMemory(board.memory, self.may_master)
        first = 1 + 2 * count_channels(board)
        self.channels: list[Channel] = []
        self._mappings: list[Mapping] = []
        for number, (command, control, irq) in enumerate(_PLACES):
            bus = IdeBus(self.tree)
            bus.first_serial = first + 2 * number
            self.add_bus(bus)
            channel = Channel(bus, board.gsi[irq], BusMaster(memory))
            self.channels.append(channel)
            block = Registers("ide", 8, channel.read_command, channel.write_command, valid=(1, 4))
            alternate = Registers("ide", 1, channel.read_control, channel.write_control, valid=(1, 1))
            self._mappings.append(board.ports.map(command, block))
            self._mappings.append(board.ports.map(control, alternate))
        window = Registers("piix-bmdma-container", 16, self._read, self._write, valid=(1, 4), impl=(1, 1))
        self.add_bar(4, window, io=True)

    def unrealize(self) -> None:
        for mapping in self._mappings:
            mapping.remove()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.put(regs.STATUS, 2, 0x0280)
        for channel in self.channels:
            channel.reset()

    def _read(self, offset: int, _width: int) -> int:
        return self.channels[offset >> 3].engine.read(offset & 7)

    def _write(self, offset: int, _width: int, value: int) -> None:
        self.channels[offset >> 3].engine.write(offset & 7, value & 0xFF)

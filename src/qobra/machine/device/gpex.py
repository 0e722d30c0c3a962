"""The generic PCI Express host of boards without a chipset: ECAM, two windows of memory, one of ports."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.memory import AddressSpace, Region
from qobra.machine.pci import regs
from qobra.machine.pci.bus import PcieBus
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.host import Ecam
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import VmState


class _Opening(Region):
    """A range of an address space, shown in another; where nothing is, it answers as that space does."""

    __slots__ = ("base", "space")

    def __init__(self, name: str, space: AddressSpace) -> None:
        super().__init__(name, 0)
        self.space = space
        self.base = 0

    def load(self, offset: int, width: int) -> int:
        return self.space.load(self.base + offset, width)

    def store(self, offset: int, width: int, value: int) -> None:
        self.space.store(self.base + offset, width, value)

    def chunk(self, address: int, length: int) -> int:
        width = min(8, address & -address) if address else 8
        while width > length:
            width >>= 1
        return width


@registry.register("gpex-pcihost")
class GpexHost(SysBusDevice):
    """The host with the root bus ``pcie.0``. The board sets where things are and what the four lines drive."""

    type_name = "gpex-pcihost"
    ancestors = {"pcie-host-bridge": (), "pci-host-bridge": ()}

    ecam_base = 0
    ecam_size = 0x10000000
    windows: tuple[tuple[int, int], ...] = ()
    port_window = 0
    lines: list[Line]

    vmstate = VmState()

    def realize(self) -> None:
        bus = PcieBus(self.tree)
        # Base addresses live in a space of their own, of which the board shows the windows.
        bus.memory = AddressSpace("gpex_mmio", unassigned=0xFF)
        bus.ports = AddressSpace("gpex_ioport", unassigned=0xFF)
        self.add_child("pcie.0", bus)
        self.root = bus
        memory = self.board.memory
        memory.map(self.ecam_base, Ecam("pcie-mmcfg-mmio", bus, self.ecam_size >> 20))
        for base, size in self.windows:
            window = _Opening("gpex_mmio_window", bus.memory)
            window.base, window.size = base, size
            memory.map(base, window)
        ports = _Opening("gpex_ioport_window", bus.ports)
        ports.size = 0x10000
        memory.map(self.port_window, ports)
        bus.line_handler = lambda number, level: self.lines[number].set(level)
        root = GpexRoot(self.tree)
        root.values["addr"] = 0
        bus.insert(root)
        self.add_child("gpex_root", root)
        root.set_realized(True)


@registry.register("gpex-root")
class GpexRoot(PciDevice):
    """The host bridge at 00:00.0."""

    type_name = "gpex-root"
    pluggable = False
    hotpluggable_class = False
    vendor_id = regs.RED_HAT
    device_id = 0x0008
    class_id = 0x0600

    vmstate = VmState()

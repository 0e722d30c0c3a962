"""Bridges: a second bus behind a device, seen through the windows that the guest opens in the bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.memory import AddressSpace, Mapping, Window
from qobra.machine.pci import regs
from qobra.machine.pci.bus import PciBus
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree


class _Place:
    """A window's mapping, which moves and changes its size."""

    def __init__(self, outer: AddressSpace, window: Window) -> None:
        self._outer = outer
        self._window = window
        self._mapping: Mapping | None = None

    def put(self, base: int, limit: int) -> None:
        """Show ``base`` to ``limit`` inclusive; nothing if there is nothing between."""
        if self._mapping is not None:
            self._mapping.remove()
            self._mapping = None
        if limit >= base:
            # Below all else: where nothing behind the bridge answers, what is before it does.
            size = limit - base + 1
            self._mapping = self._outer.map(base, self._window, offset=base, size=size, priority=-2)

    def remove(self) -> None:
        self.put(1, 0)


class PciBridge(PciDevice):
    """A bridge of the type 1 header. ``secondary`` is the bus behind it."""

    type_name = "base-pci-bridge"
    category = "Controller/Bridge/Hub"
    abstract = True
    class_id = 0x0604
    header_type = 1
    secondary: PciBus
    secondary_type: type[PciBus] = PciBus
    is_port = False
    """Whether it leads to a link of PCI Express."""
    closes_windows = False
    """Whether its windows begin with limits below their bases, so that they let nothing through."""

    vmstate = VmState(partial=True)

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.secondary = self.secondary_type(tree)

    def realize_bridge(self, bus_name: str | None) -> None:
        """Make the header of a bridge and the bus behind it, called ``bus_name`` or by its type and number."""
        for offset, width, mask in (
            (regs.PRIMARY_BUS, 4, 0xFFFFFFFF),
            (regs.IO_BASE, 2, 0xF0F0),
            (regs.MEMORY_BASE, 4, 0xFFF0FFF0),
            (regs.PREFETCH_BASE, 4, 0xFFF0FFF0),
            (regs.PREFETCH_BASE_HIGH, 8, (1 << 64) - 1),
            (regs.BRIDGE_CONTROL, 2, 0x005F if self.is_port else 0x0BFF),
        ):
            self.writable[offset : offset + width] = mask.to_bytes(width, "little")
        if not self.is_port:
            # 66 MHz, fast back-to-back transfers.
            self.put(regs.SECONDARY_STATUS, 2, 0x00A0)
            self.put(regs.STATUS, 2, self.word(regs.STATUS) | 0x00A0)
        self._close_windows()
        bus = self.secondary
        bus.parent_bridge = self
        self.add_bus(bus, bus_name)
        upper = self.pci_bus
        memory, ports = bus.memory, bus.ports
        self._places = [
            _Place(upper.ports, Window("pci_bridge_io", ports)),
            _Place(upper.memory, Window("pci_bridge_mem", memory)),
            _Place(upper.memory, Window("pci_bridge_pref_mem", memory)),
        ]

    def config_write(self, offset: int, width: int, value: int) -> None:
        held = self.word(regs.BRIDGE_CONTROL) & 0x40
        super().config_write(offset, width, value)
        if offset < regs.COMMAND + 2 or (offset < 0x34 and offset + width > regs.IO_BASE):
            self.update_windows()
        if not held and self.word(regs.BRIDGE_CONTROL) & 0x40:
            self.secondary.reset()

    def update_windows(self) -> None:
        """Follow the base and limit registers."""
        command = self.word(regs.COMMAND)
        io, memory, prefetch = self._places
        low, high = self.config[regs.IO_BASE], self.config[regs.IO_LIMIT]
        base, limit = (low & 0xF0) << 8, (high & 0xF0) << 8 | 0xFFF
        if low & 0xF:
            base |= self.word(regs.IO_BASE_HIGH) << 16
            limit |= self.word(regs.IO_LIMIT_HIGH) << 16
        _show(io, command & regs.COMMAND_IO, base, limit)
        base = (self.word(regs.MEMORY_BASE) & 0xFFF0) << 16
        limit = (self.word(regs.MEMORY_LIMIT) & 0xFFF0) << 16 | 0xFFFFF
        _show(memory, command & regs.COMMAND_MEMORY, base, limit)
        base = (self.word(regs.PREFETCH_BASE) & 0xFFF0) << 16 | self.dword(regs.PREFETCH_BASE_HIGH) << 32
        limit = (self.word(regs.PREFETCH_LIMIT) & 0xFFF0) << 16 | 0xFFFFF | self.dword(regs.PREFETCH_LIMIT_HIGH) << 32
        _show(prefetch, command & regs.COMMAND_MEMORY, base, limit)

    def unrealize(self) -> None:
        for place in self._places:
            place.remove()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.put(regs.PRIMARY_BUS, 4, 0)
        self._close_windows()
        self.put(regs.BRIDGE_CONTROL, 2, 0)
        self.update_windows()

    def _close_windows(self) -> None:
        closed = self.closes_windows
        self.put(regs.IO_BASE, 2, 0x00F0 if closed else 0)
        self.put(regs.MEMORY_BASE, 4, 0xFFF0 if closed else 0)
        self.put(regs.PREFETCH_BASE, 4, 0x0001FFF1 if closed else 0x00010001)
        self.put(regs.PREFETCH_BASE_HIGH, 8, 0)

    def state_loaded(self) -> None:
        super().state_loaded()
        self.update_windows()


def _show(place: _Place, enabled: int, base: int, limit: int) -> None:
    if enabled:
        place.put(base, limit)
    else:
        place.remove()

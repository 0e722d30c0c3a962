"""PCI hot-plug with the help of the guest's ACPI: registers that its tables read when an event tells them to.

Each bus with hot-plug has a number (BSEL), which it gets at the first reset: those on the way to a bus come before it,
and of the buses behind one the latest comes first, as on QEMU's boards. ``up`` and ``down`` say which of its slots were
filled or shall be emptied; the guest writes an eject bit when it has let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qobra.errors import QobraError
from qobra.machine.memory import Mapping, Registers
from qobra.machine.pci.bridge import PciBridge
from qobra.machine.pci.bus import PciBus
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import Number, VmState, listed, u32

GPE_BIT = 1
SIZE = 0x18
_PATIENCE_NS = 1_000_000
_MAX_INDEX = 16383
_UP, _DOWN, _EJECT, _REMOVABLE, _SELECT = 0x00, 0x04, 0x08, 0x0C, 0x10


class AcpiPciHotplug:
    """The registers, which belong to ``owner``. ``notify`` raises the general-purpose event."""

    vmstate = VmState(u32("_selected"), listed("_up", "_down", kind=Number(4)))

    def __init__(self, owner: PciDevice, notify: Callable[[], None]) -> None:
        self.owner = owner
        self._notify = notify
        self.buses: list[PciBus] = []
        self._up: list[int] = []
        self._down: list[int] = []
        self._selected = 0
        self._numbered = False
        self.registers = Registers("acpi-pci-hotplug", SIZE, self._read, self._write, valid=(4, 4), impl=(4, 4))
        self.mapping: Mapping | None = None

    def manage(self, bus: PciBus) -> None:
        """Serve ``bus``, which takes hot-plug from now on."""
        bus.hotplug = True
        bus.managed_by = self.owner
        bus.plug_handler = self._plugged
        bus.unplug_handler = self._request_unplug
        bus.slot_check = self._check_index
        self.buses.append(bus)
        self._up.append(0)
        self._down.append(0)
        self._numbered = False

    def reset(self) -> None:
        """A reset: what was to go goes, as the guest no longer holds it."""
        if not self._numbered:
            self._numbered = True
            self.buses = [bus for bus in _in_order(self.owner.pci_bus) if bus in self.buses]
        for number in range(len(self.buses)):
            self._up[number] = 0
            self._eject(number, self._down[number])

    def _check_index(self, device: PciDevice) -> None:
        # By its index a guest names a device ("onboard" names of network interfaces, for one).
        index = device.acpi_index
        if index > _MAX_INDEX:
            raise QobraError(f"acpi-index should be less or equal to {_MAX_INDEX}")
        if index and any(other.acpi_index == index for bus in self.buses for other in bus.functions.values()):
            raise QobraError(f"a PCI device with acpi-index = {index} already exist")

    def _plugged(self, device: PciDevice) -> None:
        number = self.buses.index(device.pci_bus)
        self._up[number] |= 1 << device.slot
        self._notify()

    def _request_unplug(self, device: PciDevice) -> None:
        number = self.buses.index(device.pci_bus)
        device.unplug_pending = True
        device.unplug_again_ns = device.board.clock.now_ns() + _PATIENCE_NS
        self._down[number] |= 1 << device.slot
        self._notify()

    def _eject(self, number: int, slots: int) -> None:
        bus = self.buses[number]
        self._down[number] &= ~slots
        for device in list(bus.functions.values()):
            if slots >> device.slot & 1 and device.hotpluggable_class:
                device.unparent()

    def _read(self, offset: int, _width: int) -> int:
        number = self._selected
        if number >= len(self.buses):
            return number if offset == _SELECT else 0
        if offset == _UP:
            value, self._up[number] = self._up[number], 0
            return value
        if offset == _DOWN:
            return self._down[number]
        if offset == _REMOVABLE:
            # A slot is fixed while something in it cannot be unplugged.
            fixed = 0
            for device in self.buses[number].functions.values():
                if not device.hotpluggable_class or not device.pluggable:
                    fixed |= 1 << device.slot
            return ~fixed & 0xFFFFFFFF
        if offset == _SELECT:
            return number
        return 0

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset == _EJECT and self._selected < len(self.buses):
            self._eject(self._selected, value & 0xFFFFFFFF)
        elif offset == _SELECT:
            self._selected = value & 0xFFFFFFFF


def _in_order(bus: PciBus) -> Iterator[PciBus]:
    yield bus
    for device in reversed(list(bus.functions.values())):
        if isinstance(device, PciBridge):
            yield from _in_order(device.secondary)

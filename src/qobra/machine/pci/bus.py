"""PCI buses: who is where, configuration accesses, and the wiring of interrupt pins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.memory import AddressSpace
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.qdev import Bus, Device

if TYPE_CHECKING:
    from qobra.object.qom import Object
    from qobra.object.tree import ObjectTree


class PciBus(Bus):
    """A conventional PCI bus: 32 slots of 8 functions.

    ``memory`` and ``ports`` are the address spaces that base addresses live in.
    """

    type_name = "PCI"
    first_free = 0
    hotplug = False
    one_slot = False
    """Whether a guest looks for devices in the first slot alone."""

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.memory = AddressSpace("pci")
        self.ports = AddressSpace("pci-io", unassigned=0xFF)
        self.functions: dict[int, PciDevice] = {}
        self.parent_bridge: Any = None
        self.managed_by: Device | None = None
        """The device of the board that sees to hot-plug here, if it is not the one that provides the bus."""
        self.unplug_handler: Callable[[PciDevice], None] | None = None
        self.plug_handler: Callable[[PciDevice], None] | None = None
        self.slot_check: Callable[[PciDevice], None] | None = None
        """Refuses a device in a slot that the bus has, but its hot-plug controller has not."""
        self.line_handler: Callable[[int, int], None] | None = None
        self._sources: dict[int, set[int]] = {}

    @property
    def number(self) -> int:
        """The bus number: 0 for a root, else what the guest gave the bridge."""
        return self.parent_bridge.config[regs.SECONDARY_BUS] if self.parent_bridge is not None else 0

    # -- plugging

    def hotplug_handler(self) -> Object | None:
        return self.managed_by or super().hotplug_handler()

    def check(self, device: Device) -> None:
        assert isinstance(device, PciDevice)
        if device.romsize != regs.ROM_SIZE_FREE and (not device.romsize or device.romsize & (device.romsize - 1)):
            raise QobraError(f"ROM size {device.romsize} is not a power of two")
        device.devfn = self._choose(device)
        if self.slot_check is not None:
            self.slot_check(device)
        self.functions[device.devfn] = device
        device.set_up_config()

    def admit(self, device: Device) -> None:
        assert isinstance(device, PciDevice)
        if device.failover_pair_id is not None:
            self._check_primary(device)
        device.load_rom()

    def _check_primary(self, device: PciDevice) -> None:
        # See qobra.machine.failover: the guest must be able to let go of the card by itself.
        if not self.implements("PCIE"):
            raise QobraError("failover primary device must be on PCIExpress bus")
        if device.class_id != regs.CLASS_ETHERNET:
            raise QobraError("failover primary device is not an Ethernet device")
        if device.multifunction or device.function:
            raise QobraError("failover: primary device must be in its own PCI slot")

    def remove(self, device: Device) -> None:
        assert isinstance(device, PciDevice)
        if self.functions.get(device.devfn) is device:
            del self.functions[device.devfn]
        super().remove(device)

    def plugged(self, device: Device) -> None:
        assert isinstance(device, PciDevice)
        if device.hotplugged and self.plug_handler is not None:
            self.plug_handler(device)

    def unplugged(self, device: Device) -> None:
        assert isinstance(device, PciDevice)
        if self.functions.get(device.devfn) is device:
            del self.functions[device.devfn]

    def request_unplug(self, device: Device) -> None:
        assert isinstance(device, PciDevice)
        if self.unplug_handler is not None:
            self.unplug_handler(device)
        else:
            super().request_unplug(device)

    def _choose(self, device: PciDevice) -> int:
        devfn: int = device.addr
        name = device.type_name
        if devfn < 0:
            devfn = next((n for n in range(self.first_free << 3, 256, 8) if n not in self.functions), -1)
            if devfn < 0:
                raise QobraError(f"PCI: no slot/function available for {name}, all in use or reserved")
        elif devfn in self.functions:
            other = self.functions[devfn]
            raise QobraError(
                f"PCI: slot {devfn >> 3} function {devfn & 7} not available for {name}, "
                f"in use by {other.type_name},id={other.user_id or '(null)'}"
            )
        # A guest looks for a new device when function 0 comes.
        shown = self.functions.get(0 if self.one_slot else devfn & ~7)
        if device.hotplugged and shown is not None:
            raise QobraError(
                f"PCI: slot {shown.devfn >> 3} function 0 already occupied by {shown.type_name}, "
                f"new func {name} cannot be exposed to guest."
            )
        self._check_functions(device, devfn, self.functions.get(devfn & ~7))
        return devfn

    def _check_functions(self, device: PciDevice, devfn: int, first: PciDevice | None) -> None:
        slot, function = devfn >> 3, devfn & 7
        if function:
            if first is not None and not device.multifunction and not first.multifunction:
                raise QobraError(f"PCI: single function device can't be populated in function {slot:x}.{function:x}")
        elif not device.multifunction:
            for other in range(devfn + 1, devfn + 8):
                if other in self.functions:
                    raise QobraError(
                        f"PCI: {slot:x}.0 indicates single function, but {slot:x}.{other & 7:x} is already populated."
                    )

    # -- configuration accesses

    def find(self, number: int) -> PciBus | None:
        """This bus or the one behind its bridges that has ``number``."""
        if number == self.number:
            return self
        for device in list(self.functions.values()):
            if device.secondary is not None:
                low, high = device.config[regs.SECONDARY_BUS], device.config[regs.SUBORDINATE_BUS]
                if low and low <= number <= high:
                    return device.secondary.find(number)
        return None

    def find_function(self, number: int, devfn: int) -> PciDevice | None:
        """The function that answers at this bus number and place."""
        bus = self.find(number)
        device = bus.functions.get(devfn) if bus is not None else None
        # Until function 0 is there, the others of its slot are not seen.
        return device if device is not None and device.realized and device.powered else None

    def config_read(self, bdf: int, offset: int, width: int) -> int:
        """A configuration read; all ones where nobody answers."""
        device = self.find_function(bdf >> 8, bdf & 0xFF)
        if device is None or offset + width > len(device.config):
            return (1 << 8 * width) - 1
        return device.config_read(offset, width)

    def config_write(self, bdf: int, offset: int, width: int, value: int) -> None:
        """A configuration write; lost where nobody answers."""
        device = self.find_function(bdf >> 8, bdf & 0xFF)
        if device is not None and offset + width <= len(device.config):
            device.config_write(offset, width, value)

    # -- interrupts

    def drive(self, device: PciDevice, pin: int, level: int) -> None:
        """A device drives its pin. Each bridge rotates the pins by the slot; a root passes them to its host."""
        root, line = self._root_line(device, pin)
        root.root_drive(device, line, level)

    def pin_restored(self, device: PciDevice, pin: int, level: int) -> None:
        """The pin has the level ``level`` already, as the host that hears it knows: its state was loaded."""
        root, line = self._root_line(device, pin)
        if level:
            root._sources.setdefault(line, set()).add(id(device))

    def _root_line(self, device: PciDevice, pin: int) -> tuple[PciBus, int]:
        bus, source = self, device
        while bus.parent_bridge is not None:
            pin = (pin + source.slot) % 4
            source = bus.parent_bridge
            bus = source.pci_bus
        return bus, bus.route(source, pin)

    def route(self, device: PciDevice, pin: int) -> int:
        """Which of the host's lines a root bus puts the pin of ``device`` on."""
        return (pin + device.slot) % 4

    def root_drive(self, source: PciDevice, line: int, level: int) -> None:
        """A line of a root bus is driven by ``source``; it is high while any source drives it."""
        sources = self._sources.setdefault(line, set())
        before = bool(sources)
        if level:
            sources.add(id(source))
        else:
            sources.discard(id(source))
        if before != bool(sources) and self.line_handler is not None:
            self.line_handler(line, 1 if sources else 0)


class PcieBus(PciBus):
    """A PCI Express root complex's bus or a link: conventional devices have a place on it too."""

    type_name = "PCIE"

"""What every PCI device has: configuration space, base address registers, an interrupt pin, DMA."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from qobra.errors import QobraError
from qobra.machine.memory import Mapping, Ram, Region
from qobra.machine.pci import regs
from qobra.machine.qdev import Device
from qobra.machine.vmstate import Field, Raw, VmState, flag, u8
from qobra.object.property import Bool, Int, Property, String

if TYPE_CHECKING:
    from qobra.machine.pci.bus import PciBus
    from qobra.machine.vmstate import StateSource
    from qobra.object.tree import ObjectTree

_MIN_ROM, _MAX_ROM = 2048, 2 << 30


class PciAddress(Property):
    """A device's place on its bus as ``slot.function`` in hexadecimal, or devfn as a number; -1 is any."""

    def check(self, value: Any) -> int:
        if isinstance(value, str):
            return self.parse(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.mismatch("integer")
        if not -1 <= value <= 255:
            raise QobraError(f"Property '{self.owner_type}.{self.name}' doesn't take value '{value}'")
        return value

    def parse(self, text: str) -> int:
        slot, dot, function = text.partition(".")
        try:
            if not slot or (dot and not function):
                raise ValueError(text)
            slot_number, function_number = int(slot, 16), int(function or "0", 16)
            if not (0 <= slot_number < 32 and 0 <= function_number < 8):
                raise ValueError(text)
        except ValueError:
            raise QobraError(f"Property '{self.owner_type}.{self.name}' doesn't take value '{text}'")
        return slot_number << 3 | function_number

    owner_type = "pci-device"

    def write(self, instance: Any, value: Any, *, keyval: bool = False) -> None:
        self.owner_type = instance.type_name
        super().write(instance, value, keyval=keyval)


class ConfigSpace(Raw):
    """Configuration space as state. What tells which device it is, and how it is laid out, must be the same."""

    def take(self, source: StateSource, current: bytearray) -> bytearray:
        fixed = [*range(4), *range(regs.REVISION, regs.CLASS + 2), regs.HEADER_TYPE, regs.CAPABILITIES]
        at = current[regs.CAPABILITIES]
        while at:
            fixed += [at, at + 1]
            at = current[at + 1]
        kept = bytes(current)
        super().take(source, current)
        for i in fixed:
            if current[i] != kept[i]:
                read = current[i]
                current[:] = kept  # the list of capabilities is to have an end when the next state comes
                raise QobraError(f"Bad config data: i={i:#x} read: {read:x} device: {kept[i]:x}")
        return current


class Bar:
    """One base address register: which registers or memory it shows."""

    __slots__ = ("flags", "mapping", "number", "region", "size")

    def __init__(self, number: int, region: Region, flags: int, mapping: Mapping) -> None:
        self.number = number
        self.region = region
        self.flags = flags
        self.mapping = mapping
        self.size = region.size


class PciDevice(Device):
    """A function on a PCI bus. Class attributes are its identity; models add bars and capabilities in realize()."""

    type_name = "pci-device"
    abstract = True
    plugs_into: tuple[str, ...] = ("conventional-pci-device",)
    """The kinds of PCI that the device is made for, as interfaces of its type."""
    bus_type = "PCI"
    vendor_id = regs.QUMRANET
    device_id = 0
    revision = 0
    class_id = 0
    prog_if = 0
    subsystem_vendor_id = regs.QUMRANET
    subsystem_id = regs.SUBSYSTEM_DEFAULT
    always_express = False
    """Whether it is a function of PCI Express wherever it is plugged in."""
    header_type = 0
    interrupt_pin = 0
    default_rom: str | None = None
    """The option ROM that the device has where the user says nothing and the host has the file."""

    addr = PciAddress("int32", -1, description="Slot and, after a dot, function, in hexadecimal: 06.0 or 06")
    romfile = String(type="str")
    romsize = Int(regs.ROM_SIZE_FREE, type="uint32")
    rombar = Int(1, type="uint32")
    multifunction = Bool(False)
    acpi_index = Int(0, type="uint32")
    failover_pair_id = String(type="str", name="failover_pair_id")

    vmstate = VmState(Field("config", ConfigSpace()), u8("_pin_level", maximum=1), flag("unplug_pending"), partial=True)

    @classmethod
    def implements(cls, type_name: str) -> bool:
        return super().implements(type_name) or (not cls.abstract and type_name in cls.plugs_into)

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.devfn = -1
        self.config = bytearray()
        self.writable = bytearray()
        self.clear_by_one = bytearray()
        self.bars: dict[int, Bar] = {}
        self._capability_end = 0x40
        self._pin_level = 0
        self.powered = True
        """Whether its slot gives it power; nothing is seen of it otherwise."""
        self._rom: Ram | None = None
        self.secondary: PciBus | None = None
        """The bus behind it, where it is a bridge."""

    @property
    def pci_bus(self) -> PciBus:
        """The bus that the device is on."""
        return cast("PciBus", self.bus)

    @property
    def is_express(self) -> bool:
        """Whether it is a function of PCI Express, with extended configuration space."""
        return self.always_express

    @property
    def slot(self) -> int:
        """Device number on the bus."""
        return self.devfn >> 3

    @property
    def function(self) -> int:
        """Function number in the slot."""
        return self.devfn & 7

    # -- configuration space

    def get(self, name: str) -> Any:
        if name == "addr" and self.realized:
            return self.devfn
        return super().get(name)

    def word(self, offset: int) -> int:
        """The 16-bit register at ``offset``."""
        return self.config[offset] | self.config[offset + 1] << 8

    def dword(self, offset: int) -> int:
        """The 32-bit register at ``offset``."""
        return int.from_bytes(self.config[offset : offset + 4], "little")

    def put(self, offset: int, width: int, value: int) -> None:
        """Set a register, whatever the guest may write there."""
        self.config[offset : offset + width] = value.to_bytes(width, "little")

    def set_up_config(self) -> None:
        """Fill in the header. The bus calls it before the model's realize()."""
        size = 4096 if self.is_express else 256
        self.config, self.writable, self.clear_by_one = bytearray(size), bytearray(size), bytearray(size)
        self.put(regs.VENDOR_ID, 2, self.vendor_id)
        self.put(regs.DEVICE_ID, 2, self.device_id)
        self.put(regs.REVISION, 1, self.revision)
        self.put(regs.PROG_IF, 1, self.prog_if)
        self.put(regs.CLASS, 2, self.class_id)
        self.put(regs.HEADER_TYPE, 1, self.header_type | (regs.HEADER_MULTIFUNCTION if self.multifunction else 0))
        self.put(regs.INTERRUPT_PIN, 1, self.interrupt_pin)
        if self.header_type == 0:
            self.put(regs.SUBSYSTEM_VENDOR, 2, self.subsystem_vendor_id)
            self.put(regs.SUBSYSTEM_ID, 2, self.subsystem_id)
        command = regs.COMMAND_IO | regs.COMMAND_MEMORY | regs.COMMAND_MASTER | regs.COMMAND_INTX_DISABLE
        self.writable[regs.COMMAND : regs.COMMAND + 2] = (command | regs.COMMAND_SERR).to_bytes(2, "little")
        self.writable[regs.CACHE_LINE] = 0xFF
        self.writable[regs.INTERRUPT_LINE] = 0xFF
        # What lies behind the header is the device's own, and free to the guest where no capability takes it.
        self.writable[0x40:] = b"\xff" * (size - 0x40)
        self._capability_end = 0x40

    def load_rom(self) -> None:
        """Show the option ROM that the user named, or the device's own. Raises QobraError."""
        path = self._rom_path()
        if path is None:
            return
        try:
            with open(path, "rb") as stream:
                length = os.fstat(stream.fileno()).st_size
                size = self._rom_size(length)
                if not self.rombar:
                    self._give_rom_to_firmware(stream.read())
                    return
                self._rom = Ram(f"{self.type_name}.rom", size, readonly=True)
                stream.readinto(self._rom.view[:length])
        except OSError:
            raise QobraError(f'failed to find romfile "{self.romfile}"')
        self.values["romsize"] = size
        self.add_bar(6, self._rom)

    def _rom_path(self) -> str | None:
        if self.romfile is None and self.default_rom is not None:
            path = self.board.find_firmware(self.default_rom)
            if path is not None:
                self.values["romfile"] = self.default_rom
            return path
        return (self.board.find_firmware(self.romfile) or str(self.romfile)) if self.romfile else None

    def _give_rom_to_firmware(self, data: bytes) -> None:
        """Without a base address register, the firmware has to find the ROM among its files."""
        if self.hotplugged:
            raise QobraError("Hot-plugged device without ROM bar can't have an option ROM")
        board: Any = self.board
        kind = "vgaroms" if self.class_id == regs.CLASS_VGA else "genroms"
        board.fw_cfg.add_file(f"{kind}/{os.path.basename(self.romfile)}", data)

    def _rom_size(self, length: int) -> int:
        if not length:
            raise QobraError(f'romfile "{self.romfile}" is empty')
        if length > _MAX_ROM:
            raise QobraError(f'romfile "{self.romfile}" too large (size cannot exceed 2 GiB)')
        if self.romsize == regs.ROM_SIZE_FREE:
            return max(1 << (length - 1).bit_length(), _MIN_ROM)
        if length > self.romsize:
            raise QobraError(f'romfile "{self.romfile}" ({length} bytes) is too large for ROM size {self.romsize}')
        return int(self.romsize)

    def config_read(self, offset: int, width: int) -> int:
        """What the guest reads from configuration space."""
        return int.from_bytes(self.config[offset : offset + width], "little")

    def config_write(self, offset: int, width: int, value: int) -> None:
        """What the guest writes there: only writable bits change."""
        for i in range(offset, offset + width):
            byte, mask = value & 0xFF, self.writable[i]
            value >>= 8
            self.config[i] = ((self.config[i] & ~mask) | (byte & mask)) & ~(byte & self.clear_by_one[i])
        end = offset + width
        if offset < regs.COMMAND + 2 and end > regs.COMMAND:
            self.update_mappings()
            self._update_pin()
        elif (offset < 0x28 and end > regs.BAR0) or (offset < 0x3C and end > regs.ROM):
            self.update_mappings()

    def add_capability(self, kind: int, size: int, *, offset: int | None = None) -> int:
        """Room for a capability of ``size`` bytes, linked into the list; returns its offset."""
        length = (size + 3) & ~3
        if offset is None:
            offset = self._capability_end
            self._capability_end += length
        self.writable[offset : offset + size] = bytes(size)
        self.config[offset] = kind
        self.config[offset + 1] = self.config[regs.CAPABILITIES]
        self.config[regs.CAPABILITIES] = offset
        self.config[regs.STATUS] |= regs.STATUS_CAPABILITIES
        return offset

    # -- base addresses

    def add_bar(
        self, number: int, region: Region, *, io: bool = False, wide: bool = False, prefetch: bool = False
    ) -> None:
        """Show ``region``, whose size is a power of two, where the guest sets base address ``number`` to.

        Number 6 is the expansion ROM.
        """
        flags = regs.BAR_IO if io else (regs.BAR_MEM64 if wide else 0) | (regs.BAR_PREFETCH if prefetch else 0)
        space = self.pci_bus.ports if io else self.pci_bus.memory
        # Memory of the board shows before that of a device, registers in ports the other way round.
        mapping = space.map(0, region, priority=1 if io else -1, enabled=False)
        self.bars[number] = Bar(number, region, flags, mapping)
        offset, width = self._bar_offset(number), 8 if wide else 4
        self.put(offset, width, flags)
        mask = ~(region.size - 1) & ((1 << 8 * width) - 1)
        if number == 6:
            mask |= regs.ROM_ENABLE
        self.writable[offset : offset + width] = mask.to_bytes(width, "little")

    def bar_address(self, bar: Bar) -> int | None:
        """Where the guest has put ``bar``, or None while it is off or nowhere."""
        if not self.powered:
            return None
        command = self.word(regs.COMMAND)
        offset = self._bar_offset(bar.number)
        if bar.flags & regs.BAR_IO:
            if not command & regs.COMMAND_IO:
                return None
            address = self.dword(offset) & ~(bar.size - 1)
            return address if address > 0 and address + bar.size <= 0x10000 else None
        if not command & regs.COMMAND_MEMORY or (bar.number == 6 and not self.config[offset] & regs.ROM_ENABLE):
            return None
        address = self.dword(offset)
        if bar.flags & regs.BAR_MEM64:
            address |= self.dword(offset + 4) << 32
        address &= ~(bar.size - 1)
        limit = 1 << (64 if bar.flags & regs.BAR_MEM64 else 32)
        return address if address > 0 and address + bar.size < limit else None

    def update_mappings(self) -> None:
        """Follow the base address and command registers."""
        for bar in self.bars.values():
            bar.mapping.place(self.bar_address(bar))

    def _bar_offset(self, number: int) -> int:
        if number == 6:
            return regs.BRIDGE_ROM if self.header_type & 0x7F == 1 else regs.ROM
        return regs.BAR0 + 4 * number

    # -- interrupts and DMA

    def set_pin(self, level: int) -> None:
        """Drive the interrupt pin."""
        self._pin_level = 1 if level else 0
        self._update_pin()

    def _update_pin(self) -> None:
        if not self.config[regs.INTERRUPT_PIN]:
            return
        if self._pin_level:
            self.config[regs.STATUS] |= regs.STATUS_INTERRUPT
        else:
            self.config[regs.STATUS] &= ~regs.STATUS_INTERRUPT
        self.pci_bus.drive(self, self.config[regs.INTERRUPT_PIN] - 1, self._pin_driven)

    @property
    def _pin_driven(self) -> int:
        # What comes out of the pin.
        return 0 if self.word(regs.COMMAND) & regs.COMMAND_INTX_DISABLE else self._pin_level

    def may_master(self) -> bool:
        """Whether the guest lets the device reach memory."""
        return self.powered and bool(self.config[regs.COMMAND] & regs.COMMAND_MASTER)

    def send_message(self, address: int, data: int) -> None:
        """Signal an interrupt by writing a message."""
        if self.may_master():
            self.board.memory.store(address, 4, data)

    # -- life

    def set_power(self, on: bool) -> None:
        """The slot gives power, or takes it; without it the device forgets all."""
        if on != self.powered:
            self.powered = on
            if not on:
                self.reset_tree()
            self.update_mappings()

    def unrealize(self) -> None:
        self.set_pin(0)
        for bar in self.bars.values():
            bar.mapping.remove()
        self.bars.clear()
        if self._rom is not None:
            self._rom.close()
            self._rom = None

    def reset(self) -> None:
        """The registers that the guest sets go back; models extend it."""
        self.put(regs.COMMAND, 2, self.word(regs.COMMAND) & ~int.from_bytes(self.writable[4:6], "little"))
        self.config[regs.CACHE_LINE] = 0
        self.config[regs.INTERRUPT_LINE] = 0
        for bar in self.bars.values():
            self.put(self._bar_offset(bar.number), 8 if bar.flags & regs.BAR_MEM64 else 4, bar.flags)
        self.set_pin(0)
        self.update_mappings()

    def state_id(self) -> str:
        bridge = self.pci_bus.parent_bridge
        before = f"{bridge.state_id()}:" if bridge is not None else "0000:00:"
        return f"{before}{self.devfn >> 3:02x}.{self.function:x}"

    def state_loaded(self) -> None:
        """Show the base addresses where the configuration space, which was loaded, says."""
        super().state_loaded()
        if self.config[regs.INTERRUPT_PIN]:
            self.pci_bus.pin_restored(self, self.config[regs.INTERRUPT_PIN] - 1, self._pin_driven)
        self.update_mappings()

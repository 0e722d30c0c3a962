"""What both kinds of PC have in common: memory, firmware, CPUs, and the devices of the ISA bus."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine import boot_devices, boot_paths, cmos, flash_banks
from qobra.machine.acpi_cpuhp import GPE_BIT as CPU_HOTPLUG_GPE
from qobra.machine.acpi_cpuhp import AcpiCpuHotplug
from qobra.machine.acpi_memhp import GPE_BIT as MEMORY_HOTPLUG_GPE
from qobra.machine.acpi_memhp import PORT as MEMORY_HOTPLUG_PORT
from qobra.machine.acpi_tables.loader import OEM, OEM_TABLE
from qobra.machine.apic_ids import ApicIds, find_place
from qobra.machine.board import Board
from qobra.machine.device.hpet import BASE as HPET_BASE
from qobra.machine.device.pc_dimm import PcDimm
from qobra.machine.device.x86_64_cpu import X86Cpu
from qobra.machine.memory import Ram, Registers
from qobra.machine.memory_slots import MemorySlots
from qobra.machine.shadow import Shadow
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool, Enum, Property, Size, String
from qobra.report import report_warning

if TYPE_CHECKING:
    from qobra.machine.acpi import SleepStates
    from qobra.machine.acpi_tables.dsdt import Layout
    from qobra.machine.device.hpet import Hpet
    from qobra.machine.device.ioapic import IoApic
    from qobra.machine.device.isa_i8259 import I8259
    from qobra.machine.device.mc146818rtc import Rtc
    from qobra.machine.fw_cfg import FwCfg
    from qobra.machine.irq import Line
    from qobra.machine.isa import IsaBus
    from qobra.machine.nvdimm_interface import NvdimmInterface
    from qobra.machine.pci.bus import PciBus
    from qobra.machine.qdev import Device
    from qobra.machine.smbus import I2cBus
    from qobra.object.tree import ObjectTree

BIOS_SIZE = 256 << 10
_ISA_BIOS_SIZE = 128 << 10
_FIRMWARE_DIRECTORIES = ("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu")
_HPET_ENTRY = Struct("<IQHB")
_MIB, _FOUR_GIB = 1 << 20, 1 << 32
_MAX_MEMORY_SLOTS = 256
OLD_QEMU64 = tuple(
    ("qemu64-x86_64-cpu", name, value) for name, value in (("family", "6"), ("model", "6"), ("stepping", "3"))
)
"""What the CPU model that boards have by default said of itself up to version 6.0."""
ON_OFF_AUTO = ("auto", "on", "off")


def _only(name: str, *allowed: Any) -> Any:
    def set_value(board: Board, value: Any) -> None:
        if value not in allowed:
            shown = {True: "on", False: "off"}.get(value, value)
            raise QobraError(f"{name}={shown} is not supported by this machine")
        board.values[name] = value

    return set_value


def _text_of_tables(name: str, default: str, what: str) -> String:
    """A field of every ACPI table's header, of as many bytes as ``default`` has."""
    size = len(default)

    def set_value(board: Board, value: str) -> None:
        if len(value.encode()) > size:
            raise QobraError(f"User specified {name} value is bigger than {size} bytes in size")
        board.values[name] = value

    return String(
        default,
        name=name,
        set=set_value,
        description=f"Override the default value of field {what} in ACPI table header."
        f"The string may be up to {size} bytes in size",
    )


def _set_max_ram_below(board: Board, value: int) -> None:
    if value > _FOUR_GIB:
        raise QobraError(f"Machine option 'max-ram-below-4g={value}' expects size less than or equal to 4G")
    if value < _MIB:
        report_warning(f"Only {value} bytes of RAM below the 4GiB boundary,BIOS may not work with less than 1MiB")
    board.values["max-ram-below-4g"] = value


class X86Board(Board):
    """A board for x86 CPUs, which know non-maskable interrupts."""

    type_name = "x86-machine"
    interfaces = ("nmi",)
    abstract = True


class PcBoard(X86Board):
    """A PC without its chipset."""

    type_name = "generic-pc-machine"
    interfaces = ("hotplug-handler",)
    abstract = True
    architectures = frozenset(("x86_64",))
    max_cpus = 255
    default_cpu_type = "qemu64-x86_64-cpu"
    default_ram_id = "pc.ram"
    dynamic_devices = frozenset(("ramfb",))
    nic_unasked = True
    dies_supported = True
    hotpluggable_cpus = True
    numa_supported = True
    node_for_memory_to_come = True
    kernel_failure = "could not open kernel file '{path}': {reason}"
    acpi_supported = True
    default_boot_order = "cad"
    default_graphics_card = "VGA"
    has_place_for_graphics_card = True

    nvdimm = Bool(False, description="Set on/off to enable/disable NVDIMM instantiation")
    nvdimm_persistence = Enum("string", ("cpu", "mem-ctrl"), "", description="Set NVDIMM persistence")
    rtc_time = Property("struct tm", get=lambda self: self.rtc.date_info(), writable=False, show_default=False)
    acpi = Enum("OnOffAuto", ON_OFF_AUTO, "auto", description="Enable ACPI")
    hmat = Bool(False, description="Set on/off to enable/disable ACPI Heterogeneous Memory Attribute Table (HMAT)")
    i8042 = Bool(True)
    hpet = Bool(True, description="Enable/disable high precision event timer emulation")
    hpet_lines: int
    """The inputs of the I/O APIC that the timers of the HPET can be routed to."""
    pit = Enum("OnOffAuto", ON_OFF_AUTO, "auto", description="Enable i8254 PIT")
    # What the board always has cannot be switched off.
    pic = Enum("OnOffAuto", ON_OFF_AUTO, "auto", set=_only("pic", "auto", "on"), description="Enable i8259 PIC")
    vmport = Enum("OnOffAuto", ON_OFF_AUTO, "auto", description="Enable vmport")
    smbus = Bool(True, description="Enable/disable system management bus")
    smm = Enum("OnOffAuto", ON_OFF_AUTO, "auto", description="Enable SMM")
    sata = Bool(True)
    max_ram_below_4g = Size(
        0,
        get=lambda self: self.values.get("max-ram-below-4g") or self.most_ram_below_4g,
        set=_set_max_ram_below,
        description="Maximum ram below the 4G boundary (32bit boundary)",
    )
    most_ram_below_4g = 0xE0000000
    acpi_device = Property(
        "link<hotplug-handler>",
        get=lambda self: self.power_manager.path() if self.power_manager is not None else "",
        writable=False,
    )
    x_oem_id = _text_of_tables("x-oem-id", OEM, "OEMID")
    x_oem_table_id = _text_of_tables("x-oem-table-id", OEM_TABLE, "OEM Table ID")
    smbios_entry_point_type = Enum("str", ("32", "64"), "32", description="SMBIOS Entry Point type [32, 64]")
    power_manager: SleepStates | None = None
    """The device with the ACPI registers."""
    pflash0 = flash_banks.bank_property()
    pflash1 = flash_banks.bank_property()

    firmware_directories = _FIRMWARE_DIRECTORIES
    fw_cfg: FwCfg
    isa: IsaBus
    gsi: list[Line]
    """The lines of the interrupt controllers, by their number."""
    rtc: Rtc
    ioapic: IoApic | None = None
    hpet_device: Hpet | None = None
    cpu_hotplug: AcpiCpuHotplug
    dimm_slots: MemorySlots | None = None
    nvdimm_interface: NvdimmInterface | None = None
    pci_root: PciBus
    ide: Any = None
    floppies = False
    """Whether the board has a floppy controller."""
    fdc: Any = None

    vmstate = VmState(part("dimm_slots", "nvdimm_interface", "cpu_hotplug"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.pics: list[I8259] = []

    # -- memory

    def low_memory_limit(self) -> int:
        """Where RAM below 4 GiB ends and the hole for devices begins."""
        raise NotImplementedError

    def build_memory(self) -> None:
        """Map RAM below and above the hole, the ROM areas and the firmware."""
        assert self.ram is not None
        low = min(self.ram_size, self.low_memory_limit())
        self.low_memory = low
        self.memory.map(0, self.ram, size=low)
        if self.ram_size > low:
            self.memory.map(_FOUR_GIB, self.ram, offset=low, size=self.ram_size - low)
        self._option_rom = Ram("pc.rom", 0x20000, readonly=True)
        self.bios = Ram("pc.bios", BIOS_SIZE, readonly=True)
        self._load_bios()
        self.bios_mapping = self.memory.map(_FOUR_GIB - BIOS_SIZE, self.bios)
        self.shadow = Shadow(self)
        # The CPUs' window for messages; no CPU listens yet, and from outside nothing answers.
        self.memory.map(0xFEE00000, Registers("apic-msi", 0x100000, lambda _o, _w: 0, _ignore), priority=4096)

    def _load_bios(self) -> None:
        name = self.firmware or "bios-256k.bin"
        path = self.find_firmware(name)
        if path is None:
            if self.firmware:
                raise QobraError(f"could not load PC BIOS '{name}'")
            return  # a machine without firmware still serves tests, and kernels that are started directly
        with open(path, "rb") as stream:
            data = stream.read(BIOS_SIZE + 1)
        if len(data) > BIOS_SIZE or not data:
            raise QobraError(f"could not load PC BIOS '{name}'")
        self.firmware = name
        self.show_firmware(data)

    def show_firmware(self, data: bytes | memoryview) -> None:
        """Have the area below 1 MiB, and the ROM below 4 GiB if it is shown, end with ``data``."""
        data = data[-BIOS_SIZE:]
        self.bios.view[:] = bytes(BIOS_SIZE - len(data)) + bytes(data)

    def shadow_rom(self, start: int) -> tuple[Ram, int]:
        """What lies at ``start`` (0xc0000 to 0xfffff) while no RAM is shown there."""
        if start < 0xE0000:
            return self._option_rom, start - 0xC0000
        return self.bios, BIOS_SIZE - _ISA_BIOS_SIZE + start - 0xE0000

    def build_memory_eeproms(self, bus: I2cBus) -> None:
        """What tells of the modules of memory on the system management bus; they are blank."""
        for number in range(8):
            eeprom = self.new("smbus-eeprom")
            eeprom.values["address"] = 0x50 + number
            self.place(eeprom, bus=bus)

    def build_ide(self, type_name: str, devfn: int) -> None:
        """The board's own IDE or SATA controller, for whose buses ``-drive if=ide`` is meant."""
        cls: Any = self.tree.find_type(type_name)
        if cls is None:
            return  # a build without the controller
        self.ide = cls(self.tree)
        self.ide.values |= {"addr": devfn, "multifunction": self.ide_units == 1}
        self.place(self.ide, bus=self.pci_root)

    def build_graphics(self) -> None:
        """The graphics card, in the first slot that is free."""
        if self.graphics_card is not None:
            self.place(self.new(self.graphics_card), bus=self.pci_root)

    def plug_drives(self, drives: list[Any]) -> None:
        images = flash_banks.images(self, drives)
        if images:
            from qobra.machine import pc_flash

            pc_flash.plug(self, images)
        buses = list(self.ide.buses()) if self.ide is not None else []
        for drive in sorted(drives, key=lambda drive: drive.index):
            if drive.interface == "floppy" and self.fdc is not None and drive.index < 2:
                self._plug_drive("floppy", self.fdc.floppies, drive.index, drive)
            if drive.interface != "ide" or drive.index >= len(buses) * self.ide_units:
                continue
            bus, unit = divmod(drive.index, self.ide_units)
            self._plug_drive("ide-cd" if drive.media == "cdrom" else "ide-hd", buses[bus], unit, drive)

    def _plug_drive(self, type_name: str, bus: Any, unit: int, drive: Any) -> None:
        device = self.new(type_name)
        device.values["unit"] = unit
        self.check_no_global(device, "drive", drive.backend.name)
        device.set("drive", drive.backend.name)
        drive.claimed = True
        self.place(device, bus=bus)

    # -- CPUs

    @property
    def apic_ids(self) -> ApicIds:
        """By which numbers the CPUs are addressed."""
        assert self.topology is not None
        return ApicIds(self.topology)

    def build_cpus(self) -> None:
        """One object for each CPU of the start."""
        assert self.topology is not None
        cls: Any = self.tree.find_type(self.cpu_type)
        for index in range(self.topology.cpus):
            cpu = cls(self.tree)
            cpu.index = index
            cpu.values |= {"apic-id": self.apic_ids.of(index), "die-id": 0, **self.place_of_cpu(index)}
            self.place(cpu)

    def build_cpu_hotplug(self, port: int, raise_gpe: Callable[[int], None]) -> None:
        """The registers by which the guest learns of CPUs that come and go."""
        self.cpu_hotplug = AcpiCpuHotplug(self, port, lambda: raise_gpe(CPU_HOTPLUG_GPE))

    def build_memory_slots(self, raise_gpe: Callable[[int], None]) -> None:
        """The place for memory that is plugged in, above all that is there from the start."""
        if self.memory_slots > _MAX_MEMORY_SLOTS:
            raise QobraError(f"unsupported amount of memory slots: {self.memory_slots}")
        above = self.ram_size - self.low_memory
        self.dimm_slots = MemorySlots(
            self,
            base=_FOUR_GIB + above,
            size=self.max_ram_size - self.ram_size,
            count=self.memory_slots,
            notify=lambda: raise_gpe(MEMORY_HOTPLUG_GPE),
        )
        if self.memory_slots:
            self.ports.map(MEMORY_HOTPLUG_PORT, self.dimm_slots.acpi.registers)
        if self.nvdimm:
            from qobra.machine import nvdimm_interface

            self.nvdimm_interface = nvdimm_interface.NvdimmInterface(
                self, self.dimm_slots, lambda: raise_gpe(nvdimm_interface.GPE_BIT)
            )
            self.ports.map(nvdimm_interface.PORT, self.nvdimm_interface.registers)

    def acpi_layout(self) -> Layout:
        """Where the chipset has what the ACPI tables speak of."""
        raise NotImplementedError

    def load(self) -> None:
        from qobra.machine.smbios import tables as smbios_tables

        if self.kernel:
            from qobra.machine import linux_boot

            linux_boot.offer(self)
        for name, data in smbios_tables.files(self).items():
            self.fw_cfg.add_file(name, data)
        if self.acpi != "off":
            from qobra.machine.acpi_tables import tpm

            for name, data in tpm.files(self).items():
                self.fw_cfg.add_file(name, data)
            self.fw_cfg.add_late_files(self._acpi_files)

    def _acpi_files(self) -> dict[str, bytes]:
        from qobra.machine.acpi_tables.tables import build

        return build(self, self.acpi_layout())

    def memory_slots_of(self) -> MemorySlots | None:
        return self.dimm_slots

    def ospm_status(self) -> list[dict[str, Any]] | None:
        if self.acpi == "off" or self.dimm_slots is None:
            return None
        return self.dimm_slots.ospm_status() + self.cpu_hotplug.ospm_status()

    def inject_nmi(self) -> None:
        for cpu in self.cpus:
            cpu.nmi_pending = True  # taken when the CPU runs

    def can_hotplug(self, cls: type[Device]) -> bool:
        return cls.implements("x86_64-cpu") or cls.implements("pc-dimm")

    def place_cpu(self, cpu: X86Cpu) -> None:
        """Find the place of a CPU that a user plugs in. Raises QobraError."""
        if cpu.type_name != self.cpu_type:
            raise QobraError(f"Invalid CPU type, expected cpu type: '{self.cpu_type}'")
        cpu.index, cpu.values["apic-id"] = find_place(self, cpu)
        cpu.values |= {"die-id": 0, **self.place_of_cpu(cpu.index)}

    def request_unplug(self, device: Device) -> None:
        if isinstance(device, X86Cpu):
            if device is self.cpus[0]:
                raise QobraError("Boot CPU is unpluggable")
            self.cpu_hotplug.request_removal(device)
            return
        if isinstance(device, PcDimm) and self.dimm_slots is not None:
            device.request_removal()
            return
        super().request_unplug(device)

    def new(self, type_name: str) -> Device:
        """A device of that type, to be set up and placed."""
        cls: Any = self.tree.find_type(type_name)
        device: Device = cls(self.tree)
        return device

    def build_fw_cfg(self) -> None:
        """The firmware configuration, with what every firmware asks for."""
        from qobra.machine import fw_cfg
        from qobra.machine.device.fw_cfg_io import FwCfgIo

        assert self.topology is not None
        self.fw_cfg = FwCfgIo(self.tree)
        self.place(self.fw_cfg, "fw_cfg")
        self.fw_cfg.set_number(fw_cfg.NB_CPUS, self.topology.cpus, 2)
        self.fw_cfg.set_number(fw_cfg.MAX_CPUS, self.apic_ids.limit, 2)
        self.fw_cfg.set_number(fw_cfg.RAM_SIZE, self.ram_size, 8)
        self.fw_cfg.set_number(fw_cfg.IRQ0_OVERRIDE, 1, 4)
        self.fw_cfg.set_item(fw_cfg.HPET, self._hpet_table())
        fw_cfg.add_boot_options(self.fw_cfg, self.boot)
        self.fw_cfg.set_item(fw_cfg.NUMA, self._numa_table())
        self.fw_cfg.add_file("etc/e820", self._e820())
        self.fw_cfg.add_users_files(self.fw_cfg_files)

    def _numa_table(self) -> bytes:
        # How many nodes, the node of each CPU by its APIC id, the memory of each node.
        assert self.topology is not None
        nodes = self.numa.nodes
        cpus = [0] * self.apic_ids.limit
        for index in range(self.topology.max_cpus if nodes else 0):
            cpus[self.apic_ids.of(index)] = self.numa.node_of_cpu(index) or 0
        sizes = [nodes[number].memory or 0 for number in sorted(nodes)]
        return b"".join(number.to_bytes(8, "little") for number in (len(nodes), *cpus, *sizes))

    def _hpet_table(self) -> bytes:
        # How many there are (255: it is not known), and of up to eight the capabilities and the address.
        if self.hpet_device is None:
            return b"\xff" + bytes(8 * _HPET_ENTRY.size)
        entry = _HPET_ENTRY.pack(self.hpet_device.block_id, HPET_BASE, 0, 0)
        return b"\1" + entry + bytes(7 * _HPET_ENTRY.size)

    def ram_ranges(self) -> list[tuple[int, int]]:
        """Address and length of each range of RAM that is there from the start."""
        ranges = [(0, self.low_memory)]
        if self.ram_size > self.low_memory:
            ranges.append((_FOUR_GIB, self.ram_size - self.low_memory))
        return ranges

    def _e820(self) -> bytes:
        ranges = self.ram_ranges()
        return b"".join(s.to_bytes(8, "little") + n.to_bytes(8, "little") + b"\1\0\0\0" for s, n in ranges)

    def boot_order(self) -> str:
        """Letters of devices to boot from, at most three. Raises QobraError."""
        order = str(self.boot.get("order", self.default_boot_order))
        cmos.check_order(order)
        once = self.boot.get("once")
        if once is not None:
            cmos.check_order(str(once))
        return order if once is None or self.ready else str(once)

    def set_boot_order(self, order: str) -> None:
        boot_devices.check(order)
        cmos.check_order(order)
        self.boot["order"] = order
        cmos.fill(self)

    def reset_all(self) -> None:
        super().reset_all()
        cmos.fill(self)
        if self.power_manager is not None:
            self.fw_cfg.add_file("etc/system-states", self.power_manager.sleep_bits())
        for name, data in boot_paths.files(self).items():
            self.fw_cfg.add_file(name, data)

    def finalize(self) -> None:
        if "bios" in self.__dict__:
            self.bios.close()
            self._option_rom.close()
        super().finalize()


def _ignore(_offset: int, _width: int, _value: int) -> None:
    pass

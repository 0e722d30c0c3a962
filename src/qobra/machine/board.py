"""Boards: the machine types. A board is the object ``/machine``, with memory, a bus for its devices, and CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qobra.display.console import Consoles
from qobra.errors import QobraError
from qobra.machine import accelerator
from qobra.machine.failover import Failover
from qobra.machine.input import InputHub
from qobra.machine.memory import AddressSpace, Ram
from qobra.machine.numa import Numa
from qobra.machine.qdev import Device, SystemBus
from qobra.machine.ram import backend_ram
from qobra.machine.smbios.settings import Settings as SmbiosSettings
from qobra.machine.vclock import VirtualClock
from qobra.object.property import Bool, Property, String
from qobra.object.qom import Container, Object
from qobra.registry import Registry

if TYPE_CHECKING:
    from qobra.machine.cpu import Cpu, Topology
    from qobra.machine.fw_cfg import FwCfg
    from qobra.machine.machine import Machine
    from qobra.machine.memory_slots import MemorySlots
    from qobra.object.tree import ObjectTree

Compat = tuple[tuple[str, str, str], ...]
"""Other defaults: device type, property, value."""

boards: Registry[type[Board]] = Registry("machine type", ["qobra.machine.board_type"])

_KERNEL_DEVICES = frozenset({"kvm-pit", "kvm-ioapic", "kvm-i8259", "kvm-apic", "kvmclock"})
"""QEMU's types of what KVM emulates itself. Defaults for them, as libvirt sets, do not matter elsewhere."""


def find_devices(start: Object, type_name: str) -> Iterator[Device]:
    """Every realized device of a type at or below ``start``."""
    if isinstance(start, Device) and start.realized and start.implements(type_name):
        yield start
    for child in list(start.children.values()):
        yield from find_devices(child, type_name)


_TOLD: dict[str, Any] = {"writable": False, "show_default": False}


def _set_usb(board: Board, value: bool) -> None:
    if value and not board.usb_supported:
        raise QobraError("this machine has no USB controller of its own: use -device")
    board.values["usb"] = value


def _refuse_encryption(_board: Board, value: str) -> None:
    raise QobraError(f"No such memory encryption object '{value}'")  # nor a type of such objects


class Board(Object):
    """A machine type. Subclasses build their devices in :meth:`build`.

    ``memory`` is what CPUs and devices see; ``ports`` the I/O ports of x86. ``ready`` is False while the program
    still sets the machine up: devices that come later are hot-plugged.
    """

    type_name = "machine"
    abstract = True
    description = ""
    machine_name = ""
    family = ""
    """What boards of several versions have in common; empty: there is one alone."""
    alias: str | None = None
    architectures: frozenset[str] = frozenset()
    default_for: frozenset[str] = frozenset()
    max_cpus = 1
    default_cpu_type: str | None = None
    default_ram_size = 128 << 20
    default_ram_id: str | None = None
    default_drive_interface = "ide"
    default_drives: tuple[str, ...] = ()
    """Which of ``cdrom``, ``floppy`` and ``sd`` there is a drive for although nobody names it."""
    ide_units = 2
    virtio_blk_type = "virtio-blk-pci"
    default_nic = "virtio-net-pci"
    default_graphics_card: str | None = None
    """The type of the graphics card that the board has although nobody asks for one."""
    has_ports = True
    """Whether a serial and a parallel port have something to be connected to although nobody names it."""
    has_place_for_graphics_card = False
    nic_unasked = False
    """Whether there is a network card, on a user mode network, although nobody names one."""
    fw_cfg: FwCfg | None = None
    """What firmware finds files and numbers in."""
    firmware_directories: tuple[str, ...] = ()
    dies_supported = False
    hotpluggable_cpus = False
    numa_supported = False
    numa_mem_supported = False
    node_for_memory_to_come = False
    """Whether there is a NUMA node, though nobody asks for one, where memory may be plugged in."""
    hmat: Any = False
    """Whether the guest is told how fast its memory is; a property where there can be nodes."""
    acpi_supported = False
    dynamic_devices: frozenset[str] = frozenset()
    """Which types of devices users may put onto the board itself."""
    platform_bus: Any = None
    """Where such devices have their registers and interrupt lines, if they need any."""
    usb_supported = False
    """Whether the board has a USB controller of its own, for those who want it."""
    big_endian = False
    boot_first: str | None = None
    """What the firmware boots from before all devices, as it names it."""
    default_boot_order = ""
    kernel_failure: str | None = None
    """What is said of a kernel that cannot be read; None where kernels are not started directly."""
    compat: Compat = ()
    """What was different about this version of a board."""
    cpu_models_have_versions = True
    """Whether a CPU model without a version is told to be another name of one that has it."""

    graphics = Bool(True, description="Set on/off to enable/disable graphics emulation")
    usb = Bool(False, set=_set_usb, description="Set on/off to enable/disable usb")
    firmware = String(description="Firmware image")
    kernel = String(description="Linux kernel image file")
    initrd = String(description="Linux initial ramdisk file")
    append = String(description="Linux kernel command line")
    dtb = String(description="Linux kernel device tree file")
    dumpdtb = String(description="Dump current dtb to a file and quit")
    dump_guest_core = Bool(True, description="Include guest memory in a core dump")
    mem_merge = Bool(True, description="Enable/disable memory merge support")
    suppress_vmdesc = Bool(False, description="Set on to disable self-describing migration")
    memory_encryption = String(set=_refuse_encryption, description="Set memory encryption object to use")
    smp = Property("SMPConfiguration", get=lambda board: board.describe_topology(), **_TOLD)
    boot_order_told = Property("BootConfiguration", name="boot", get=lambda board: board.describe_boot(), **_TOLD)
    memory_told = Property("MemorySizeConfiguration", name="memory", get=lambda board: board.describe_memory(), **_TOLD)
    backend_told = Property(
        "link<memory-backend>", name="memory-backend", get=lambda board: board.path_of_backend(), **_TOLD
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.ready = False
        self.memory = AddressSpace("memory")
        self.ports = AddressSpace("I/O", unassigned=0xFF)
        self.ram: Ram | None = None
        self.ram_size = self.default_ram_size
        self.max_ram_size = 0
        self.memory_slots = 0
        self.memory_backend: str | None = None
        self.memory_path: str | None = None
        self.cpus: list[Cpu] = []
        self.topology: Topology | None = None
        self.cpu_type = self.default_cpu_type or ""
        self.accelerator = "qtest"
        self.clock_sleeps = True
        """Whether the guest's time passes while its CPUs are idle; otherwise it leaps to the next timer."""
        self.rtc_start: int | None = None
        """The clock's time at power-on in seconds since the epoch; None: the host's."""
        self._power_on_ns = 0  # the same in nanoseconds, once there is power
        self._ahead_of_host_ns = 0
        self.rtc_host = True
        """Whether the clock follows the host's rather than the guest's time."""
        self.fw_cfg_files: list[tuple[str, bytes]] = []
        self.users_acpi_tables: list[bytes] = []
        self.smbios = SmbiosSettings()
        self.rom_places: dict[int, str] = {}
        """Where in the boot order the user's option ROMs stand, by their files."""
        self.drives: list[Any] = []
        self.balloon: Any = None
        self.numa = Numa(self)
        self.input = InputHub(tree.machine)
        self.consoles = Consoles(tree)
        self.dumper: Any = None
        self.serial_chardevs: list[str | None] = []
        self.parallel_chardevs: list[str | None] = []
        self.no_defaults = False
        self.graphics_card: str | None = None
        """The type of the graphics card that the board makes itself, where it :attr:`has_place_for_graphics_card`."""
        self.display_options: dict[str, Any] = {"type": "none"}
        """DisplayOptions: pictures are shown to whoever asks."""
        self.boot: dict[str, Any] = {}
        self.floppy_boot_check = True
        """Whether the firmware is to see if a diskette can be booted before it tries."""
        self.only_migratable = False
        """Whether devices are refused whose state no migration can take along."""
        self._globals: list[tuple[str, str, str]] = list(self.compat)
        self.peripheral = Container(tree)
        self.peripheral_anon = Container(tree)
        self.failover = Failover(tree.machine)
        self.anonymous_devices = 0
        """How many devices without an id there have been."""
        self.unattached = Container(tree)
        self.system_bus = SystemBus(tree)
        self.add_child("peripheral", self.peripheral)
        self.add_child("peripheral-anon", self.peripheral_anon)
        self.add_child("unattached", self.unattached)
        self._clock: VirtualClock | None = None
        self._bus_numbers: dict[str, int] = {}

    def default_node(self, index: int, nodes: int) -> int:
        """Which of ``nodes`` NUMA nodes CPU ``index`` is on where nobody says: a socket stays together."""
        place = self.topology.place(index) if self.topology is not None else {}
        return place.get("socket-id", index) % nodes

    def place_of_cpu(self, index: int) -> dict[str, int]:
        """CpuInstanceProperties of CPU ``index``."""
        place = dict(self.topology.place(index)) if self.topology is not None else {}
        node = self.numa.node_of_cpu(index)
        return place if node is None else {"node-id": node} | place

    def next_bus_name(self, bus_type: str) -> str:
        """The name of a bus that has none of its own, the next of its type."""
        number = self._bus_numbers.get(bus_type, 0)
        self._bus_numbers[bus_type] = number + 1
        return f"{bus_type.lower()}.{number}"

    # -- what was asked for, as the properties tell it

    @property
    def first_cpus(self) -> int:
        """How many CPUs the board began with: what a device counts by, so that it is the same after a migration."""
        return self.topology.cpus if self.topology is not None else len(self.cpus)

    def describe_topology(self) -> dict[str, int]:
        """SMPConfiguration."""
        topology = self.topology
        return topology.describe() if topology is not None else {}

    def set_boot_order(self, order: str) -> None:
        """Have the firmware boot from other devices from the next reset on. Raises QobraError."""
        raise QobraError("no function defined to set boot device list for this architecture")

    def describe_boot(self) -> dict[str, Any]:
        """BootConfiguration."""
        return {"order": self.default_boot_order, **self.boot}

    def describe_memory(self) -> dict[str, int]:
        """MemorySizeConfiguration."""
        sizes = {"size": self.ram_size}
        if self.max_ram_size > self.ram_size:
            sizes |= {"max-size": self.max_ram_size, "slots": self.memory_slots}
        return sizes

    def path_of_backend(self) -> str:
        """Where the object is that the memory comes from."""
        backend = self.tree.find(self.memory_backend) if self.memory_backend is not None else None
        return backend.path() if backend is not None else ""

    # -- before the start

    def set_topology(self, options: dict[str, int]) -> None:
        """How many CPUs, from SMPConfiguration. Raises QobraError."""
        from qobra.machine.cpu import Topology

        self.topology = Topology.from_options(
            options, dies_supported=self.dies_supported, limit=self.max_cpus, board=self.machine_name
        )

    def set_cpu_model(self, text: str) -> None:
        """The CPUs' model, ``MODEL[,feature=value...]``. Raises QobraError for a model that there is not."""
        from qobra.machine.cpu import Cpu

        model, _, features = text.partition(",")
        if not model:
            raise QobraError("-cpu option cannot be empty")
        suffix = self.cpu_suffix()
        cls = self.tree.find_type(f"{model}-{suffix}")
        if cls is None or cls.abstract:
            if model == "host" and suffix == "x86_64-cpu":
                raise QobraError("CPU model 'host' requires KVM or HVF")
            raise QobraError(f"unable to find CPU model '{model}'")
        assert issubclass(cls, Cpu)
        for name, value in cls.parse_features(features):
            self.add_global(cls.type_name, name, value)
        self.cpu_type = cls.type_name

    def cpu_suffix(self) -> str:
        """How the types of CPUs end that the board takes."""
        if self.default_cpu_type is None:
            raise QobraError("this machine has no CPUs")
        return self.default_cpu_type.partition("-")[2]

    def set_memory(self, size: int, *, backend: str | None = None, path: str | None = None) -> None:
        """How much RAM there will be: ``size`` bytes, of the memory backend ``backend`` or in the file ``path``."""
        size = (size + 8191) & ~8191
        self.ram_size = size
        self.max_ram_size = max(self.max_ram_size, size)
        self.memory_backend, self.memory_path = backend, path

    def _get_memory(self) -> None:
        from qobra.machine.ram import default_backend

        if not self.ram_size:
            return
        name = self.default_ram_id or "ram"
        if self.numa.backends():
            if self.memory_backend is not None:
                raise QobraError("'-machine memory-backend' and '-numa memdev' properties are mutually exclusive")
            self.ram = Ram(name, self.ram_size)  # the nodes' memory will lie over it
            return
        if self.memory_backend is None:
            self.memory_backend = default_backend(self.tree, name, self.ram_size, self.memory_path)
        self.ram = backend_ram(self.tree, self.memory_backend, self.ram_size)

    @property
    def clock_driven(self) -> bool:
        """Whether the guest's time passes only when a test says so."""
        chosen = accelerator.find(self.accelerator)
        return chosen is not None and chosen.drives_clock

    @property
    def started(self) -> bool:
        """Whether there are devices and time."""
        return self._clock is not None

    @property
    def clock(self) -> VirtualClock:
        """The guest's time."""
        assert self._clock is not None
        return self._clock

    def guest_time_ns(self) -> int:
        """The guest's time, which is 0 as long as there is no guest."""
        return self._clock.now_ns() if self._clock is not None else 0

    def rtc_base_ns(self) -> int:
        """What a real-time clock shows now if no guest has set it, in nanoseconds since the epoch."""
        if self.clock.driven:
            return self._power_on_ns + self.clock.now_ns()
        machine: Machine = self.tree.machine
        return int(machine.clock.time_ns()) + self._ahead_of_host_ns

    def start(self) -> None:
        """Make the devices and the CPUs. The properties are set; users' devices come next."""
        machine: Machine = self.tree.machine
        self._clock = VirtualClock(machine, driven=self.clock_driven, sleeps=self.clock_sleeps)
        host_ns = int(machine.clock.time_ns())
        self._power_on_ns = host_ns if self.rtc_start is None else self.rtc_start * 10**9
        self._ahead_of_host_ns = self._power_on_ns - host_ns
        self.unattached.add_child("sysbus", self.system_bus)
        self.system_bus.bus_name_given = "main-system-bus"
        machine.run_state.on_reset(self.reset_all)
        self.numa.check()
        self._get_memory()
        self.build()
        self._place_numa_memory()

    def _place_numa_memory(self) -> None:
        # The memory of nodes lies over the board's RAM, which then is never touched.
        start = 0
        for name in self.numa.backends():
            backend: Any = self.tree.find(name)
            ram = backend_ram(self.tree, name, backend.size)
            assert self.ram is not None
            for mapping in self.memory.mappings_of(self.ram):
                low = max(start, mapping.offset)
                high = min(start + ram.size, mapping.offset + mapping.size)
                if low < high:
                    base = mapping.base + low - mapping.offset
                    self.memory.map(base, ram, offset=low - start, size=high - low, priority=mapping.priority)
            start += ram.size

    def finish(self) -> None:
        """The devices of the command line are there: load what the guest boots from, and reset for the first time."""
        if self.kernel:
            self._check_kernel(self.kernel)
        self.consoles.settle()
        self.load()
        self.reset_all()
        self.ready = True

    def _check_kernel(self, path: str) -> None:
        if self.kernel_failure is None:
            raise QobraError("The -kernel parameter is not supported (use the generic 'loader' device instead).")
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise QobraError(self.kernel_failure.format(path=path, reason=error.strerror))

    def place(
        self, device: Device, name: str | None = None, *, bus: Any = None, parent: Object | None = None
    ) -> Device:
        """Own and realize a device of the board's own; ``name`` is a child of ``parent``, or of the board."""
        target = self.system_bus if bus is None and device.bus_type == "System" else bus
        if target is not None:
            target.insert(device)
        self.apply_globals(device)
        if name is None:
            self.unattached.add_child("device[*]", device)
        else:
            (parent or self).add_child(name, device)
        device.set_realized(True)
        return device

    def reset_all(self) -> None:
        """Reset every device, those that users plugged into the board itself too."""
        self.system_bus.reset()
        for device in (*self.peripheral.children.values(), *self.peripheral_anon.children.values()):
            if isinstance(device, Device) and device.bus is None and device.realized:
                device.reset_tree()

    def can_hotplug(self, cls: type[Device]) -> bool:
        """Whether the board itself takes devices of this kind while the machine exists (CPUs, memory)."""
        return False

    def request_unplug(self, device: Device) -> None:
        """A user wants out what is plugged into the board itself."""
        raise QobraError(f"Device '{device.type_name}' does not support hotplugging")

    def power_off(self) -> None:
        """Stop all devices and leave the tree; the back ends that they used are free then."""
        self.tree.closing = True
        self.unparent()

    def finalize(self) -> None:
        if self._clock is not None:
            self._clock.close()

    def add_global(self, driver: str, name: str, value: str) -> None:
        """Another default for a property of every device of a type (``-global``)."""
        self._globals.append((driver, name, value))

    def warn_of_globals(self, warn: Callable[[str], None]) -> None:
        """Tell of defaults for types that there are not, and for devices that will not be made."""
        for driver, name, _value in self._globals:
            cls = self.tree.find_type(driver)
            if (cls is None or not issubclass(cls, Device)) and driver not in _KERNEL_DEVICES:
                warn(f"warning: global {driver}.{name} has invalid class name")

    def check_no_global(self, device: Device, name: str, value: str) -> None:
        """Raise QobraError if a default of the user's stands against ``value``, where only one of both can be had."""
        for driver, other, _value in self._globals:
            if other == name and device.implements(driver):
                raise QobraError(f"-global {driver}.{name}=... conflicts with {name}={value}")

    def apply_globals(self, device: Device) -> None:
        """Give ``device``, new and not realized, the defaults that the user set."""
        for driver, name, value in self._globals:
            if device.implements(driver):
                try:
                    device.set(name, value, keyval=True)
                except QobraError as error:
                    raise error.prefixed(f"can't apply global {driver}.{name}={value}: ")
        for child in device.children.values():
            if isinstance(child, Device):
                self.apply_globals(child)

    def find_firmware(self, name: str) -> str | None:
        """Where a file of firmware is: at that path, or in one of the board's directories; None if nowhere."""
        paths = (os.path.join(directory, name) for directory in ("", *self.firmware_directories))
        return next((path for path in paths if os.path.isfile(path)), None)

    # -- for boards to fill in

    def device_tree(self) -> bytes | None:
        """The flattened device tree that the guest is given, where it is given one."""
        return None

    def bridge_added(self, bus: Any) -> None:
        """A bridge has come with ``bus`` behind it: take care of its hot-plug."""

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to the CPUs. Raises QobraError where there is no such thing."""
        raise QobraError("this feature or command is not currently supported")

    def memory_slots_of(self) -> MemorySlots | None:
        """The slots for memory that is plugged in, where the board has such."""
        return None

    def memory_devices(self) -> list[dict[str, Any]]:
        """The memory devices: ``kind`` and ``info`` of MemoryDeviceInfo, and ``size`` in bytes."""
        slots = self.memory_slots_of()
        return slots.describe() if slots is not None else []

    def ospm_status(self) -> list[dict[str, Any]] | None:
        """ACPIOSTInfo of each slot, or None without ACPI."""
        return None

    def plug_drives(self, drives: list[Any]) -> None:
        """Show the drives of the command line that the board has places for; mark those as claimed."""

    def build(self) -> None:
        """Make the board's devices."""

    def load(self) -> None:
        """Put firmware, kernel and tables where the guest finds them."""

"""``virt``: the board of RISC-V that no hardware ever was: CLINT, PLIC, UART, virtio slots, PCI Express."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine import flash_banks
from qobra.machine.board import Board, boards
from qobra.machine.device.cfi_pflash01 import Pflash
from qobra.machine.device.fw_cfg_mem import FwCfgMem
from qobra.machine.device.goldfish_rtc import GoldfishRtc
from qobra.machine.device.gpex import GpexHost
from qobra.machine.device.platform_bus_device import PlatformBus
from qobra.machine.device.riscv_aclint import SWI_SIZE, AclintSwi, AclintTimer
from qobra.machine.device.riscv_cpu import RiscvCpu
from qobra.machine.device.riscv_sifive_plic import Plic
from qobra.machine.device.riscv_sifive_test import SifiveTest
from qobra.machine.device.serial_mm import SerialMm
from qobra.machine.memory import Ram
from qobra.machine.virtio.mmio import VirtioMmio
from qobra.object.property import Bool
from qobra.object.qom import Container

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qobra.machine.fw_cfg import FwCfg
    from qobra.machine.irq import Line
    from qobra.machine.riscv.boot import BootImages

MROM, TEST, RTC, CLINT, SSWI, PIO, PLIC = 0x1000, 0x100000, 0x101000, 0x2000000, 0x2F00000, 0x3000000, 0xC000000
CLINT_SIZE, SSWI_SIZE, PLIC_SIZE = 0x10000, SWI_SIZE, 0x600000
"""A socket's. Those of the next one come directly after."""
UART, VIRTIO, FW_CFG, FLASH = 0x10000000, 0x10001000, 0x10100000, 0x20000000
PLATFORM_BUS, PLATFORM_BUS_SIZE = 0x4000000, 32 << 20
ECAM, PCI_MEMORY, RAM = 0x30000000, 0x40000000, 0x80000000
MROM_SIZE, FLASH_SIZE, PCI_MEMORY_SIZE, PCI_HIGH_SIZE = 0xF000, 32 << 20, 0x40000000, 0x400000000
VIRTIO_COUNT, SOURCES, MAX_SOCKETS = 8, 96, 4
TIME_BASE = 10_000_000
IRQ_VIRTIO, IRQ_UART, IRQ_RTC, IRQ_PCIE, IRQ_PLATFORM_BUS = 1, 10, 11, 32, 64
PLATFORM_BUS_LINES = 32
PLIC_OF_SERIAL, PLIC_OF_VIRTIO, PLIC_OF_PCIE = 0, 1, 2
"""Whose interrupt controller serves what, if there are as many sockets."""


@boards.register("virt")
class Virt(Board):
    """RISC-V VirtIO board."""

    type_name = "virt-machine"
    interfaces = ("hotplug-handler",)
    description = "RISC-V VirtIO board"
    machine_name = "virt"
    architectures = frozenset(("riscv64",))
    max_cpus = 512
    default_cpu_type = "rv64-riscv-cpu"
    default_ram_id = "riscv_virt_board.ram"
    default_drive_interface = "none"
    default_drives = ("cdrom", "floppy", "sd")
    dynamic_devices = frozenset(("ramfb", "tpm-tis-device"))
    numa_mem_supported = True
    numa_supported = True
    firmware_directories = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/opensbi/generic", "/usr/lib/ipxe/qemu")
    kernel_failure = "could not load kernel '{path}'"

    hmat = Bool(False, description="Set on/off to enable/disable ACPI Heterogeneous Memory Attribute Table (HMAT)")
    pflash0 = flash_banks.bank_property()
    pflash1 = flash_banks.bank_property()
    aclint = Bool(False, description="Set on/off to enable/disable emulating ACLINT devices")

    sockets: list[range]
    """The harts of each socket, which have interrupt controllers of their own."""

    fw_cfg: FwCfg
    images: BootImages | None = None
    flash_images: Mapping[int, str] = {}

    def build(self) -> None:
        self.sockets = self._find_sockets()
        self._build_harts()
        self._plics = [self._build_interrupts(socket) for socket in range(len(self.sockets))]
        self._build_memory()
        self._at(SifiveTest(self.tree), TEST)
        for i in range(VIRTIO_COUNT):
            slot = VirtioMmio(self.tree)
            slot.irq.connect(self._sources(PLIC_OF_VIRTIO)[IRQ_VIRTIO + i])
            slot.bus_below.bus_name_given = f"virtio-mmio-bus.{i}"
            slot.add_child(f"virtio-mmio-bus.{i}", slot.bus_below)
            self._at(slot, VIRTIO + 0x1000 * i)
        host = GpexHost(self.tree)
        host.ecam_base, host.port_window = ECAM, PIO
        host.windows = ((PCI_MEMORY, PCI_MEMORY_SIZE), (self.high_window, PCI_HIGH_SIZE))
        host.lines = self._sources(PLIC_OF_PCIE)[IRQ_PCIE : IRQ_PCIE + 4]
        self.place(host)
        self.pci_root = host.root
        self._build_platform_bus()
        serial = SerialMm(self.tree)
        if self.serial_chardevs:
            serial.values["chardev"] = self.serial_chardevs[0]
        self._at(serial, UART).irq.connect(self._sources(PLIC_OF_SERIAL)[IRQ_UART])
        self._at(GoldfishRtc(self.tree), RTC).irq.connect(self._sources(PLIC_OF_SERIAL)[IRQ_RTC])
        self._build_fw_cfg()
        self._build_flash()

    def _at(self, device: Any, base: int) -> Any:
        device.base = base
        return self.place(device)

    def _find_sockets(self) -> list[range]:
        """The harts of each NUMA node, or all."""
        assert self.topology is not None
        cpus, nodes = self.topology.cpus, self.numa.nodes
        if not nodes:
            return [range(cpus)]
        if len(nodes) > MAX_SOCKETS:
            raise QobraError(f"number of sockets/nodes should be less than {MAX_SOCKETS}")
        found = []
        for number, node in sorted(nodes.items()):
            harts = sorted(hart for hart in node.cpus if hart < cpus)
            if not harts or harts[-1] - harts[0] >= len(harts):
                raise QobraError(f"discontinuous hartids in socket{number}")
            found.append(range(harts[0], harts[-1] + 1))
        return found

    def _build_harts(self) -> None:
        cls: Any = self.tree.find_type(self.cpu_type)
        assert issubclass(cls, RiscvCpu)
        for socket, harts in enumerate(self.sockets):
            array = Container(self.tree)
            self.add_child(f"soc{socket}", array)
            for place, index in enumerate(harts):
                cpu = cls(self.tree)
                cpu.index = index
                self.cpus.append(cpu)
                array.add_child(f"harts[{place}]", cpu)
                cpu.set_realized(True)
        self.cpus.sort(key=lambda cpu: cpu.index)

    def _build_interrupts(self, socket: int) -> Plic:
        harts = self.sockets[socket]
        place = {"hartid-base": harts.start, "num-harts": len(harts)}
        software, timer = AclintSwi(self.tree), AclintTimer(self.tree)
        software.values |= place
        timer.values |= place | {"timebase-freq": TIME_BASE}
        self._at(software, CLINT + CLINT_SIZE * socket)
        self._at(timer, CLINT + CLINT_SIZE * socket + SWI_SIZE)
        if self.aclint:
            supervisors = AclintSwi(self.tree)
            supervisors.values |= place | {"sswi": 1}
            self._at(supervisors, SSWI + SSWI_SIZE * socket)
        plic = Plic(self.tree)
        plic.values |= {"num-sources": SOURCES, "num-priorities": 7, "hartid-base": harts.start}
        plic.values["hart-config"] = ",".join(["MS"] * len(harts))
        self._at(plic, PLIC + PLIC_SIZE * socket)
        return plic

    def socket_of(self, device: int) -> int:
        """The socket whose interrupt controller serves ``device``, such as :data:`PLIC_OF_PCIE`."""
        return min(device, len(self.sockets) - 1)

    def _sources(self, device: int) -> list[Line]:
        return self._plics[self.socket_of(device)].gpio_in[None]

    def _build_memory(self) -> None:
        if self.ram is None:
            raise QobraError("the board 'virt' needs memory")
        self.memory.map(RAM, self.ram)
        self.mrom = Ram("riscv_virt_board.mrom", MROM_SIZE + 0x1000 - MROM_SIZE % 0x1000, readonly=True)
        self.memory.map(MROM, self.mrom, size=MROM_SIZE)
        end = RAM + self.ram_size
        self.high_window = max(PCI_HIGH_SIZE, (end + PCI_HIGH_SIZE - 1) // PCI_HIGH_SIZE * PCI_HIGH_SIZE)

    def _build_platform_bus(self) -> None:
        bus = PlatformBus(self.tree)
        bus.user_id = bus.type_name
        bus.values |= {"num_irqs": PLATFORM_BUS_LINES, "mmio_size": PLATFORM_BUS_SIZE}
        bus.lines = self._sources(PLIC_OF_SERIAL)[IRQ_PLATFORM_BUS : IRQ_PLATFORM_BUS + PLATFORM_BUS_LINES]
        self.platform_bus = self._at(bus, PLATFORM_BUS)

    def _build_fw_cfg(self) -> None:
        from qobra.machine import fw_cfg

        assert self.topology is not None
        device = FwCfgMem(self.tree)
        device.base = FW_CFG
        device.values["data_width"] = 8
        self.fw_cfg = device
        self.place(device, "fw_cfg")
        device.set_number(fw_cfg.NB_CPUS, self.topology.cpus, 2)
        device.add_users_files(self.fw_cfg_files)

    def _build_flash(self) -> None:
        self.flash_images = images = flash_banks.images(self, self.drives)
        for number in range(flash_banks.BANKS):
            flash = Pflash(self.tree)
            flash.values |= {"num-blocks": FLASH_SIZE >> 18, "sector-length": 1 << 18, "id0": 0x89, "id1": 0x18}
            flash.values |= {"width": 4, "device-width": 2, "max-device-width": 2}
            flash.base = FLASH + FLASH_SIZE * number
            self.add_child(f"virt.flash{number}", flash)
            if number in images:
                flash.set("drive", images[number])
            self.system_bus.insert(flash)
            flash.set_realized(True)

    def default_node(self, index: int, nodes: int) -> int:
        cpus = self.topology.cpus if self.topology is not None else 1
        if nodes > cpus:
            raise QobraError(f"Number of NUMA nodes ({nodes}) cannot exceed the number of available CPUs ({cpus}).")
        return min(index // (cpus // nodes), nodes - 1)

    def load(self) -> None:
        from qobra.machine.riscv.boot import BootImages

        self.images = BootImages(self)

    def device_tree(self) -> bytes | None:
        return self.images.tree if self.images is not None else None

    def reset_all(self) -> None:
        for cpu in self.cpus:
            cpu.reset()
        super().reset_all()
        if self.images is not None:
            self.images.write()

    def finalize(self) -> None:
        if "mrom" in self.__dict__:
            self.mrom.close()
        super().finalize()

"""One device on a board of its own, and a guest that does to it whatever can be done."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qobra.machine.cpu import Cpu
from qobra.machine.devices import registry
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.memory import Ram
from qobra.machine.pci import regs
from qobra.machine.pci.bus import PciBus
from qobra.machine.plug import add_device
from qobra.machine.qdev import Device
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.hostile import outside
from qobra.testing.ivshmem import IvshmemServer
from qobra.testing.tpm import TpmEmulator, connect

Access = tuple[int, int, int, int, int]
"""Where, offset there, width in bytes, value, and which act: see :meth:`Target.access`."""

_MEMORY = 8 << 20
_DISK = 1 << 20
Options = dict[str, str]

BOARDS = {"pc": "x86_64", "q35": "x86_64", "virt": "riscv64"}
# Where a device goes, and what has to be there before; what is not named here goes onto `pc` as it is.
_ON: dict[str, str] = dict.fromkeys(
    ("pcie-root-port", "ioh3420", "x3130-upstream", "xio3130-downstream", "pcie-pci-bridge"), "q35"
) | {"tpm-tis-device": "virt"}
_BELOW: dict[str, Options] = {
    "SCSI": {"driver": "virtio-scsi-pci"},
    "IDE": {"driver": "ich9-ahci", "id": "ahci"},
    "virtio-serial-bus": {"driver": "virtio-serial-pci"},
    "usb-bus": {"driver": "qemu-xhci"},
    "HDA": {"driver": "intel-hda"},
    "sd-bus": {"driver": "sdhci-pci"},
    "nvme-bus": {"driver": "nvme", "serial": "fuzz"},
}
_OPTIONS: dict[str, Options] = {
    "pci-bridge": {"chassis_nr": "1"},
    **{name: {"chassis": "1"} for name in ("pcie-root-port", "ioh3420", "xio3130-downstream")},
    "ide-hd": {"bus": "ahci.0"},
    "ide-cd": {"bus": "ahci.0"},
    "nvme": {"serial": "fuzz"},
    "floppy": {"drive-type": "288"},
    **{name: {"tag": "fuzz"} for name in ("vhost-user-fs-device", "vhost-user-fs-pci")},
    "loader": {"addr": "0x1000", "data": "1", "data-len": "8"},
}
_WITH_DRIVE = ("virtio-blk", "scsi-hd", "scsi-cd", "ide-hd", "ide-cd", "nvme", "usb-storage", "sd-card", "floppy")
_WITH_CHARDEV = ("ipmi-bmc-extern", "isa-parallel", "isa-debugcon")
_WITH_NETDEV = ("e1000", "rtl8139", "virtio-net")
_WITH_MEMORY = ("virtio-mem", "virtio-pmem", "pc-dimm", "nvdimm", "ivshmem-plain", "acpi-erst")


def devices() -> list[str]:
    """Every type of device that there is, CPUs aside."""
    return [
        name
        for name, cls in sorted(registry.load_all().items())
        if issubclass(cls, Device) and not cls.abstract and not issubclass(cls, Cpu)
    ]


PLACES: dict[str, tuple[str, Options]] = {
    "root": ("", {}),
    "port": ("q35", {"driver": "pcie-root-port", "id": "above", "chassis": "9"}),
    "bridge": ("pc", {"driver": "pci-bridge", "id": "above", "chassis_nr": "9"}),
}
"""Where a function of PCI may be: the board, and what is above it."""


class Target:
    """A board with one device, and where the guest can reach it. ``place`` is one of :data:`PLACES`."""

    def __init__(self, name: str, directory: Path, place: str = "root") -> None:
        cls: Any = registry.load_all()[name]
        if cls.bus_type == "virtio-bus" and cls.architectures:
            name, cls = f"{name}-pci", registry.find(f"{name}-pci")  # there, no slot takes it as it is
        if cls.pluggable:
            board_name = _ON.get(name, "virt" if cls.bus_type == "virtio-bus" else "pc")
        else:
            board_name = next(each for each in BOARDS if name in own_devices(each))
        self._above: Options = {}
        if place != "root" and cls.pluggable and name not in _ON and (cls.bus_type in ("PCI", "PCIE", *_BELOW)):
            board_name, self._above = PLACES[place]
        self.device: Device | None = None
        self.helpers: list[Any] = []
        """What stands for the world outside: it has a close() each."""
        shared = name.startswith("vhost-user-")
        self.machine = make_machine(board_name, nvdimm=name == "nvdimm", shared_memory=shared)
        self.board: Any = self.machine.board
        self.guest = BoardAccess(self.machine)
        self.directory = directory
        with self.machine.control:
            before = self._ranges()
            if cls.pluggable:
                self._plug(name, cls)
                self._find_functions()
                self.ranges = [each for each in self._ranges() if each not in before] or self._ranges()
            else:
                self._find_functions()
                self.ranges = self._ranges()
        self.queues = self._virtio_devices(self.board)

    def _ranges(self) -> list[tuple[str, int, int]]:
        spaces = {"memory": self.board.memory, "port": self.board.ports}
        return [
            (kind, start, end)
            for kind, space in spaces.items()
            for start, end, region, _offset in space.flat()
            if not isinstance(region, Ram) or region.readonly
        ]

    def _plug(self, name: str, cls: type[Device]) -> None:
        self.board.ready = False  # some cannot be plugged in later
        bus = {}
        if self._above:
            add_device(self.machine, dict(self._above), keyval=True)
            bus = {"bus": "above"}
        if cls.bus_type in _BELOW:
            add_device(self.machine, _BELOW[cls.bus_type] | bus, keyval=True)
            bus = {}
        options = {"driver": name, "id": "it"} | bus | _OPTIONS.get(name, {})
        if name.startswith(_WITH_DRIVE) and name != "nvme-subsys":
            disk = self.directory / name
            disk.write_bytes(random.Random(name).randbytes(_DISK))
            self.machine.block.add_node({"driver": "file", "filename": str(disk), "node-name": "disk"})
            options["drive"] = "disk"
        if name.startswith(_WITH_CHARDEV):
            self.machine.chardevs.create("line", {"type": "null", "data": {}})
            options["chardev"] = "line"
        if name.startswith(_WITH_NETDEV):
            self.machine.netdevs.create({"type": "hubport", "id": "net", "hubid": 0})
            options["netdev"] = "net"
        if name.startswith(_WITH_MEMORY):
            self.machine.objects.create("memory-backend-ram", "ram", {"size": 16 << 20})
            options["memdev"] = "ram"
        if name.startswith("vhost-user-"):
            self.helpers.append(outside.Disk(self.directory))
            address = {"type": "unix", "data": {"path": self.helpers[-1].path}}
            self.machine.chardevs.create("peer", {"type": "socket", "data": {"addr": address, "server": False}})
            options["chardev"] = "peer"
        if cls.implements("ipmi-interface"):
            add_device(self.machine, {"driver": "ipmi-bmc-sim", "id": "bmc"}, keyval=True)
            options["bmc"] = "bmc"
        if name.startswith("tpm-"):
            self.helpers.append(TpmEmulator(self.directory))
            options["tpmdev"] = connect(self.machine, self.helpers[-1].path).id
        if name == "ivshmem-doorbell":
            self.helpers.append(IvshmemServer(self.directory))
            address = {"type": "unix", "data": {"path": self.helpers[-1].path}}
            self.machine.chardevs.create("peer", {"type": "socket", "data": {"addr": address, "server": False}})
            options["chardev"] = "peer"
        if name in ("scsi-generic", "scsi-block"):
            self.helpers.append(outside.ScsiKernel())
            self.machine.block.add_node({"driver": "host_device", "filename": "/dev/null", "node-name": "disk"})
            options["drive"] = "disk"
        self.device = add_device(self.machine, options, keyval=True)
        self.board.ready = True
        if bus:
            self.board.reset_all()  # which gives power to what is in a slot

    def close(self) -> None:
        """End the machine, and what stood for the world outside."""
        self.machine.close()
        for each in self.helpers:
            each.close()

    def _find_functions(self) -> None:
        # All base addresses are set, those behind bridges too as far as their windows let anything through.
        self.functions: list[PciFunction] = []
        memory, ports = 0x50000000 if self.board.alias is None else 0xE0000000, 0xC000
        if not isinstance(getattr(self.board, "pci_root", None), PciBus):
            return
        if self.board.cpus and "riscv64" in self.board.architectures:
            return  # the configuration space is in memory there, and fuzzed like all else
        found = [PciFunction(self.guest, devfn) for devfn in sorted(self.board.pci_root.functions)]
        for function in found:
            function.enable(memory, ports)
            self.functions.append(function)
            memory, ports = memory + 0x200000, ports + 0x100
            if function.config(regs.HEADER_TYPE, 1) & 0x7F == 1 and not function.bdf >> 8:
                memory, ports = (memory + 0xFFFFF) & ~0xFFFFF, (ports + 0xFFF) & ~0xFFF
                found += self._open(function, memory, ports)

    def _open(self, bridge: PciFunction, memory: int, ports: int) -> list[PciFunction]:
        # Number the bus behind, let everything through that comes from here on, and see who is there.
        bridge.set_config(regs.PRIMARY_BUS, 4, 0x010100)
        bridge.set_config(regs.IO_BASE, 2, 0xF000 | ports >> 8 & 0xF0)
        bridge.set_config(regs.MEMORY_BASE, 4, (memory + 0xFF00000) & 0xFFF00000 | memory >> 16 & 0xFFF0)
        behind = [PciFunction(self.guest, 0x100 | devfn) for devfn in range(256)]
        return [function for function in behind if function.config(regs.VENDOR_ID, 2) != 0xFFFF]

    def _virtio_devices(self, start: Any) -> list[Any]:
        found = [start] if hasattr(start, "accept_features") and hasattr(start, "kick") else []
        return found + [each for child in list(start.children.values()) for each in self._virtio_devices(child)]

    def access(self, where: int, offset: int, width: int, value: int, action: int) -> None:
        """One act of the guest."""
        kind, start, end = self.ranges[where % len(self.ranges)]
        address = start + offset % max(end - start - width + 1, 1)
        value &= (1 << 8 * width) - 1
        if action == 0 and self.functions:
            function = self.functions[where % len(self.functions)]
            width, at = min(width, 4), offset % (4096 if where & 0x80 else 256)
            if not 0x04 <= at < 0x28:  # base addresses and command stay, so that there is something to hit
                with self.machine.control:
                    self.board.pci_root.config_write(function.bdf, at & -width, width, value & ((1 << 8 * width) - 1))
                    self.board.pci_root.config_read(function.bdf, at & -width, width)
        elif action == 1:
            self.guest.write(value % (_MEMORY - 4096) + self._ram(), random.Random(value).randbytes(64))
        elif action == 2 and value % 64 == 0:
            with self.machine.control:
                self.board.reset_all()
        elif action == 2 and value % 64 == 1:
            self.unplug()
        elif action == 2 and value % 8 == 2:
            with self.machine.control:
                for console in self.board.consoles:  # somebody looks
                    console.bring_up_to_date()
        elif action == 3:
            self.guest.step(value % 10**9)
        elif action < 7:
            (self.guest.load if kind == "memory" else self.guest.port_in)(
                address, width if kind == "memory" else min(width, 4)
            )
        elif kind == "memory":
            # Often an address: of memory, of a device (of itself), of nothing.
            self.guest.store(address, width, value)
        elif address != 0x514:  # the address of a request to fw_cfg may ask for very much
            width = min(width, 4)
            self.guest.port_out(address, width, value & ((1 << 8 * width) - 1))

    def unplug(self) -> None:
        """The device goes, whatever is under way, if it is one that can."""
        with self.machine.control:
            device, self.device = self.device, None
            if device is not None and device.is_hotpluggable():
                device.unparent()

    def _ram(self) -> int:
        return 0x80000000 if "riscv64" in self.board.architectures else 0

    def garbage_in_queues(self, seed: int) -> None:
        """Queues at known places, full of what no driver would write."""
        generator = random.Random(seed)
        base = self._ram() + 0x100000
        for device in self.queues:
            with self.machine.control:
                device.write_status(0)
                device.write_status(3)
                device.accept_features(1 << 32 | 1 << 28 | generator.getrandbits(2) << 29, modern=True)
                device.write_status(15)
                for queue in device.queues:
                    queue.size = generator.choice((1, 2, 8, queue.max_size))
                    queue.descriptors, queue.driver_area, queue.device_area = base, base + 0x10000, base + 0x20000
                    queue.ready = True
            table = b"".join(
                generator.choice((self._ram() + generator.randrange(_MEMORY), base, 0xFEC00000, 1 << 40)).to_bytes(
                    8, "little"
                )
                + generator.choice((0, 1, 16, 512, 4096, 0xFFFFFFFF)).to_bytes(4, "little")
                + generator.choice((0, 1, 2, 3, 4, 5)).to_bytes(2, "little")
                + generator.choice((generator.randrange(8), 0xFFFF)).to_bytes(2, "little")
                for _ in range(8)
            )
            self.guest.write(base, table)
            self.guest.write(base + 0x10000, generator.randbytes(64))
            self.guest.store(base + 0x10002, 2, generator.choice((1, 2, 8, 0xFFFF)))
            with self.machine.control:
                for number in range(min(len(device.queues), 6)):
                    device.kick(number)

    def attack(self, seed: int, accesses: Iterable[Access]) -> None:
        """Queues full of garbage, then ``accesses``. Raises AssertionError if the monitor does not answer any more."""
        self.garbage_in_queues(seed)
        for each in accesses:
            self.access(*each)
        assert self.alive()

    def alive(self) -> bool:
        """Whether the monitor answers."""
        with self.machine.control:
            return "status" in dispatch.call(self.machine, "query-status", {})


def make_machine(board_name: str, *, nvdimm: bool = False, shared_memory: bool = False) -> Machine:
    """A machine with that board, stopped."""
    architecture = BOARDS[board_name]
    machine = Machine(capabilities=frozenset(("board", architecture)))
    with machine.control:
        board = attach_board(machine, find_board(architecture, board_name))
        if nvdimm:
            board.set("nvdimm", True)
        if architecture == "x86_64":
            board.max_ram_size, board.memory_slots = _MEMORY + (64 << 20), 1
        board.set_topology({"cpus": 1})
        if shared_memory:
            machine.objects.create("memory-backend-memfd", "shared", {"size": _MEMORY})
        board.set_memory(_MEMORY, backend="shared" if shared_memory else None)
        board.start()
        board.finish()
    return machine


def own_devices(board: str) -> set[str]:
    """The types of the devices that a board has by itself."""
    machine = make_machine(board)
    found: set[str] = set()

    def look(start: Any) -> None:
        if isinstance(start, Device):
            found.add(start.type_name)
        for child in start.children.values():
            look(child)

    with machine.control:
        look(machine.board)
    machine.close()
    return found


_INTERESTING = (0, 1, 2, 3, 4, 7, 0x80, 0xFF, 0x100, 0x200, 0xFFFF, 0x10000, 0x100000, 0xE0000000, 0xFFFFFFFF)


def draw(seed: int, count: int) -> list[Access]:
    """``count`` acts; the same for the same seed."""
    generator = random.Random(seed)
    return [
        (
            generator.randrange(256),
            generator.randrange((1 << 16) + 1),
            generator.choice((1, 2, 4, 8)),
            generator.choice((generator.getrandbits(64), generator.choice(_INTERESTING))),
            generator.randrange(13),
        )
        for _ in range(count)
    ]

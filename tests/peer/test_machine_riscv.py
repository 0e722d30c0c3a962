"""The RISC-V board while its harts are idle: the same QMP and qtest scripts on QEMU's program and ours.

Known differences: without a CPU there is no reset vector in the mask ROM and no firmware in memory; a hart has no
thread of its own; QEMU takes more than one device for the one slot of a root port; of the device tree no `pmu` is
there. QEMU 7.2 itself ends with more than two sockets unless the numbers of harts happen to fit,
and keeps the comparators of all sockets but the first beyond the end of their array.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qobra.machine import devicetree
from qobra.testing.guest import Access
from qobra.testing.system import SystemProgram, peer_available, program_command
from qobra.testing.tpm import Swtpm, swtpm_available

pytestmark = pytest.mark.skipif(not peer_available("riscv64"), reason="qemu-system-riscv64 is not installed")

_ARGUMENTS = (
    *("-machine", "virt", "-m", "64", "-smp", "2", "-bios", "none"),
    *("-blockdev", "null-co,node-name=n0,size=1048576,read-zeroes=on"),
    *("-blockdev", "null-co,node-name=n1,read-zeroes=on"),
    *("-device", "virtio-blk-device,drive=n0,id=blk", "-device", "virtio-rng-device,id=rng"),
    *("-device", "pcie-root-port,id=rp,chassis=1,addr=3", "-device", "virtio-scsi-pci,id=scsi,addr=4"),
    *("-chardev", "ringbuf,id=ser,size=256", "-serial", "chardev:ser"),
)
_QUERIES = (
    *("query-status", "query-target", "query-kvm", "query-current-machine", "query-memory-size-summary"),
    *("query-memory-devices", "query-acpi-ospm-status", "query-hotpluggable-cpus", "query-balloon", "query-dump"),
    *("query-iothreads", "query-name", "query-uuid", "query-pci", "inject-nmi", "system_wakeup", "query-mice"),
    *("query-rx-filter", "rtc-reset-reinjection"),
)
_PLUGS: list[dict[str, Any]] = [
    {"driver": "virtio-rng-pci", "bus": "rp", "id": "h1"},
    {"driver": "virtio-rng-pci", "bus": "pcie.0", "id": "h3"},
    {"driver": "virtio-rng-device", "id": "h4"},
    {"driver": "scsi-hd", "drive": "n1", "id": "hd"},
    {"driver": "pc-dimm", "id": "d"},
    {"driver": "nvdimm", "id": "d"},
    {"driver": "virtio-mem-pci", "id": "d", "bus": "rp"},
    {"driver": "rv64-riscv-cpu", "id": "c"},
    {"driver": "isa-serial", "id": "i"},
    {"driver": "vmgenid", "id": "v"},
    {"driver": "virtio-gpu-pci", "id": "g"},
]
_PCI_PORTS, _PLATFORM_BUS = 0x3000000, 0x4000000
_CLINT, _PLIC, _UART, _TEST, _RTC, _FW_CFG = 0x2000000, 0xC000000, 0x10000000, 0x100000, 0x101000, 0x10100000
_VIRTIO, _FLASH, _ECAM, _RAM = 0x10001000, 0x20000000, 0x30000000, 0x80000000

Script = Callable[[SystemProgram, Path], list[Any]]


def _words(guest: Access, base: int, count: int, step: int = 4) -> list[int]:
    return [guest.load(base + step * number, 4) for number in range(count)]


def _timers_and_interrupts(program: SystemProgram, _directory: Path) -> list[Any]:
    guest = program.guest
    guest.store(_CLINT, 4, 1)
    guest.store(_CLINT + 4, 4, 3)
    guest.store(_CLINT + 0x4000, 8, 0x1234567812345678)
    found = [_words(guest, _CLINT, 4), guest.load(_CLINT + 0x4000, 8), guest.load(_CLINT + 0x4004, 4)]
    for source in range(96):
        guest.store(_PLIC + 4 * source, 4, 0xFFFFFFFF)
    for context in range(5):
        guest.store(_PLIC + 0x2000 + 0x80 * context, 4, 0xFFFFFFFF)
        guest.store(_PLIC + 0x200000 + 0x1000 * context, 4, 9)
        found.append(_words(guest, _PLIC + 0x2000 + 0x80 * context, 4))
        found.append(_words(guest, _PLIC + 0x200000 + 0x1000 * context, 2))
    found += [_words(guest, _PLIC, 100), _words(guest, _PLIC + 0x1000, 4)]
    return [*found, _words(guest, _RTC + 8, 5), _words(guest, _TEST, 2)]


def _serial_and_firmware(program: SystemProgram, _directory: Path) -> list[Any]:
    guest = program.guest
    found: list[Any] = [[guest.load(_UART + at, 1) for at in range(8)]]
    for at, value in ((3, 0x80), (0, 3), (3, 3), (7, 0x5A)):
        guest.store(_UART + at, 1, value)
    found.append([guest.load(_UART + at, 1) for at in range(1, 8)])
    for letter in b"hello":
        guest.store(_UART, 1, letter)
    found.append(program.qmp("ringbuf-read", {"device": "ser", "size": 64}))
    found += [guest.load(_FW_CFG + 0x10, 8), guest.load(_FW_CFG + 8, 2)]
    guest.store(_FW_CFG + 8, 2, 0)
    found.append([guest.load(_FW_CFG, 1) for _ in range(6)])
    for command in (0x70, 0x90, 0x98, 0xFF):
        guest.store(_FLASH, 1, command)
        found.append(_words(guest, _FLASH, 0x30))
    return [*found, guest.load(_FLASH + (64 << 20) - 4, 4), guest.load(_RAM + (64 << 20), 4), guest.load(0, 4)]


def _buses(program: SystemProgram, _directory: Path) -> list[Any]:
    guest = program.guest
    slots = [
        [guest.load(_VIRTIO + 0x1000 * slot + at, 4) for at in (0, 4, 8, 12, 0x10, 0x34, 0x70, 0x100, 0x104)]
        for slot in range(9)
    ]
    functions = [_words(guest, _ECAM + (device << 15), 1024) for device in range(5)]
    nothing = [guest.load(address, 4) for address in (_PCI_PORTS + 0x100, 0x40000000, 0x7FFFFFFC, 0x400000000)]
    return [*slots, *functions, *nothing]


def _plugging(program: SystemProgram, _directory: Path) -> list[Any]:
    guest = program.guest

    def port() -> list[int]:
        return _words(guest, _ECAM + (3 << 15) + 0x54, 12)

    found: list[Any] = [program.qmp(query) for query in _QUERIES]
    found += [{key: cpu[key] for key in ("cpu-index", "props", "qom-path")} for cpu in program.qmp("query-cpus-fast")]
    found.append(port())
    for options in _PLUGS:
        found += [program.qmp("device_add", options), port()]
    for id in ("h1", "h1", "blk", "rng", "nope"):
        found += [program.qmp("device_del", {"id": id}), port()]
    return found


def _run_states(program: SystemProgram, directory: Path) -> list[Any]:
    found: list[Any] = []
    program.guest.write(_RAM + 0x1000, b"in memory")
    program.guest.store(_CLINT, 4, 1)
    for command, event in (
        *(("cont", "RESUME"), ("stop", "STOP"), ("cont", "RESUME"), ("system_powerdown", "POWERDOWN")),
        *(("system_reset", "RESET"), ("stop", "STOP"), ("system_reset", "RESET")),
    ):
        found += [program.qmp(command), program.wait_event(event).get("data"), program.qmp("query-status")]
    found.append(program.guest.load(_CLINT, 4))
    for command in ("pmemsave", "memsave"):
        path = directory / command
        found.append(program.qmp(command, {"val": _RAM + 0x1000, "size": 16, "filename": str(path)}))
        found.append(path.read_bytes())
    found.append(program.qmp("memsave", {"val": _RAM, "size": 1, "filename": str(directory / "x"), "cpu-index": 5}))
    return found


@pytest.mark.parametrize(
    "script", [_timers_and_interrupts, _serial_and_firmware, _buses, _plugging, _run_states], ids=lambda s: s.__name__
)
def test_alike(tmp_path: Path, script: Script) -> None:
    answers = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "riscv64", *_ARGUMENTS, peer=peer) as program:
            answers.append(script(program, tmp_path))
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs


_TWO_SOCKETS = ("-smp", "5", "-numa", "node,mem=32M,cpus=0-1", "-numa", "node,mem=32M,cpus=2-4")
_FOUR_SOCKETS = (
    *("-smp", "8", "-numa", "node,mem=16M,cpus=0", "-numa", "node,mem=16M,cpus=1"),
    *("-numa", "node,mem=32M,cpus=2-3", "-numa", "node,mem=0,cpus=4-7"),
)
_SSWI, _CLINT_SIZE, _PLIC_SIZE, _SSWI_SIZE = 0x2F00000, 0x10000, 0x600000, 0x4000


def _controllers(program: SystemProgram) -> list[Any]:
    guest = program.guest
    found: list[Any] = [cpu["qom-path"] for cpu in program.qmp("query-cpus-fast")]
    for socket in range(3):
        clint, sswi = _CLINT + _CLINT_SIZE * socket, _SSWI + _SSWI_SIZE * socket
        plic = _PLIC + _PLIC_SIZE * socket
        for hart in range(4):
            guest.store(clint + 4 * hart, 4, 1)
            guest.store(sswi + 4 * hart, 4, 1)
        found.append([_words(guest, base, 5) for base in (clint, sswi)])
        if socket == 0:
            for hart in range(2):
                guest.store(clint + 0x4000 + 8 * hart, 8, 0x12345678 << 32 | hart)
            found.append(_words(guest, clint + 0x4000, 6))
        guest.store(plic + 4 * (socket + 1), 4, 3)
        for context in range(7):
            guest.store(plic + 0x2000 + 0x80 * context, 4, 0xFFFFFFFF)
            guest.store(plic + 0x200000 + 0x1000 * context, 4, context)
        found.append([_words(guest, plic, 4), _words(guest, plic + 0x2000, 8, 0x80)])
        found.append(_words(guest, plic + 0x200000, 8, 0x1000))
    return found


@pytest.mark.parametrize("nodes", [_TWO_SOCKETS, _FOUR_SOCKETS], ids=["two", "four"])
@pytest.mark.parametrize("aclint", ["off", "on"])
def test_sockets(tmp_path: Path, nodes: tuple[str, ...], aclint: str) -> None:
    answers = []
    for peer in (False, True):
        arguments = ("-machine", f"virt,aclint={aclint}", "-m", "64", "-bios", "none", *nodes)
        with SystemProgram(tmp_path, "riscv64", *arguments, peer=peer) as program:
            answers.append(_controllers(program))
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs


def _described(path: Path, peer: bool, machine: str, *arguments: str) -> dict[str, Any]:
    options = ("-machine", f"{machine},dumpdtb={path}", "-m", "64", "-bios", "none", "-display", "none", *arguments)
    command = [*program_command("riscv64", peer=peer), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    found: dict[str, Any] = {}

    def visit(name: str, node: devicetree.Node) -> None:
        found[name] = node.properties
        for child_name, child in node.children.items():
            visit(f"{name}/{child_name}", child)

    visit("", devicetree.load(str(path)))
    assert len(found["/chosen"].pop("rng-seed")) == 32
    return found


@pytest.mark.parametrize("machine", ["virt", "virt,aclint=on"])
@pytest.mark.parametrize(
    "nodes",
    [("-smp", "4"), ("-smp", "4", "-numa", "node,mem=64M"), _TWO_SOCKETS, _FOUR_SOCKETS],
    ids=["none", "one", "two", "four"],
)
def test_device_trees(tmp_path: Path, machine: str, nodes: tuple[str, ...]) -> None:
    own = _described(tmp_path / "own", False, machine, *nodes)
    theirs = _described(tmp_path / "theirs", True, machine, *nodes)
    assert theirs.keys() - own.keys() == {"/pmu"}
    assert own == {name: theirs[name] for name in theirs if name in own}


def _tpm(program: SystemProgram) -> list[Any]:
    guest = program.guest
    found: list[Any] = []
    registers = (*range(0, 0x28, 4), 0x30, 0x80, 0xF00, 0xF04)

    def look() -> None:
        found.append([guest.load(_PLATFORM_BUS + (n << 12) + at, 4) for n in range(6) for at in registers])
        found.append(_words(guest, _PLIC + 0x1000, 3))

    look()
    guest.store(_PLATFORM_BUS, 1, 0x02)
    guest.store(_PLATFORM_BUS + 0x08, 4, 0x80000087)
    look()
    guest.store(_PLATFORM_BUS + 0x18, 4, 0x40)
    look()
    guest.store(_PLIC + 4 * 64, 4, 1)
    guest.store(_PLIC + 0x2000 + 8, 4, 1)
    guest.store(_PLATFORM_BUS + 0x10, 4, 0x80)
    look()
    for _ in range(2):
        number = guest.load(_PLIC + 0x200004, 4)
        found.append(number)
        guest.store(_PLIC + 0x200004, 4, number)
    look()
    found += [program.qmp("query-tpm"), program.qmp("query-tpm-models"), program.qmp("query-tpm-types")]
    found.append(program.qmp("device_del", {"id": "tpm"}))
    found.append(program.qmp("device_add", {"driver": "tpm-tis-device", "tpmdev": "t"}))
    return found


@pytest.mark.skipif(not swtpm_available(), reason="swtpm is not installed")
@pytest.mark.parametrize("irq", [5, 20])
def test_tpm(tmp_path: Path, irq: int) -> None:
    answers = []
    for peer in (False, True):
        directory = tmp_path / str(peer)
        directory.mkdir()
        with Swtpm(directory) as swtpm:
            options = [*swtpm.arguments(), "-device", f"tpm-tis-device,tpmdev=t,id=tpm,irq={irq}"]
            with SystemProgram(directory, "riscv64", *_ARGUMENTS[:8], *options, peer=peer) as program:
                answers.append(_tpm(program))
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs


@pytest.mark.parametrize(
    ("machine", "device"), [("none", "ramfb"), ("none", "tpm-tis-device"), ("virt", "tpm-tis-device")]
)
def test_devices_of_the_board_itself(machine: str, device: str) -> None:
    said = []
    for peer in (False, True):
        command = [*program_command("riscv64", peer=peer), "-machine", machine, "-display", "none", "-device", device]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        said.append((result.returncode, result.stderr.partition(": ")[2]))
    assert said[0] == said[1]

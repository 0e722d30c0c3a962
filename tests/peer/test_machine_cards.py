"""Small devices: registers that are written at random, and what comes out of them, as with QEMU."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.guest import PciFunction
from qobra.testing.ivshmem import IvshmemServer
from qobra.testing.system import SystemProgram, peer_available, program_command

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")


def test_a_parallel_port(tmp_path: Path) -> None:
    rnd = random.Random("parallel")
    seen: list[list[Any]] = []
    steps = []
    for _ in range(300):
        value = rnd.choice((rnd.getrandbits(8), 0x0C, 0x0D, 0x1C, 0x1D, 0x04, 0x05))
        steps.append((rnd.choice((0, 1, 2, 2, 2, 2)), value, rnd.choice(((0, 2), (1,), (0, 1, 2), (1, 1)))))
    for peer in (False, True):
        output = tmp_path / f"printed-{peer}"
        arguments = ("-chardev", f"file,id=r,path={output}", "-device", "isa-parallel,chardev=r")
        with SystemProgram(tmp_path, "x86_64", "-machine", "pc", *arguments, peer=peer) as program:
            guest = program.guest
            guest.command("irq_intercept_in /machine/i440fx/ioapic")
            seen.append([])
            for register, value, looked_at in steps:
                guest.port_out(0x378 + register, 1, value)
                seen[-1].append([guest.port_in(0x378 + offset, 1) for offset in looked_at])
                seen[-1].append([line for line in guest.interrupts if line.split()[1] == "7"])
                guest.interrupts.clear()
            seen[-1].append(output.read_bytes())
    assert seen[0] == seen[1]
    assert len(seen[0][-1]) > 10


def _each(tmp_path: Path, device: str) -> Any:
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", "-machine", "pc", "-device", f"{device},addr=5", peer=peer) as program:
            function = PciFunction(program.guest, 5 << 3)
            function.enable()
            yield program.guest, function


def test_the_registers_of_edu(tmp_path: Path) -> None:
    seen = []
    for guest, function in _each(tmp_path, "edu"):
        rnd, base = random.Random("edu"), function.bars[0]
        found: list[Any] = []
        for _ in range(200):
            register = rnd.choice((0x00, 0x04, 0x20, 0x24, 0x60, 0x64, 0x64, 0x68, 0x80, 0x84, 0x88, 0x90, 0x98))
            width = 4 if register < 0x80 else rnd.choice((4, 8))
            value = rnd.choice((rnd.getrandbits(8 * width), 1, 0, 0xFFFFFFFF))
            if register == 0x98:
                value &= ~1  # it would run
            guest.store(base + register, width, value)
            found += [guest.load(base + at, 4) for at in (0, 4, 8, 0x24, 0x60, 0x80, 0x84, 0x88, 0x98, 0x40000)]
            found += [guest.load(base + at, 8) for at in (0, 0x80, 0x88, 0x90)] + [guest.load(base + 4, 2)]
            found.append(function.config(4))
        seen.append(found)
    assert seen[0] == seen[1]


def test_the_tests_of_pci_testdev(tmp_path: Path) -> None:
    seen = []
    for guest, function in _each(tmp_path, "pci-testdev,membar=1M"):
        found: list[Any] = []
        memory, ports = (guest.load, guest.store, function.bars[0]), (guest.port_in, guest.port_out, function.bars[1])
        for load, store, base in (memory, ports):
            for number in (0, 1, 2, 3, 0x80, 0xFF):
                store(base, 1, number)
                found.append([load(base + at, 1) for at in range(64)])
                found += [load(base, 4), load(base + 2, 2), load(base + 4, 4)]
                place, data = load(base + 4, 4), load(base + 8, 4)
                for width, value in ((1, data), (1, data + 1), (2, data), (2, data << 8), (4, data * 0x01010101)):
                    if place:
                        store(base + place, width, value & ((1 << 8 * width) - 1))
                        found += [load(base + 12, 4), load(base + place, width)]
        guest.store(function.bars[2], 4, 0x12345678)
        found.append(guest.load(function.bars[2], 4))
        seen.append(found)
    assert seen[0] == seen[1]


def test_serial_ports_of_a_pci_function(tmp_path: Path) -> None:
    seen = []
    for guest, function in _each(tmp_path, "pci-serial-2x,prog_if=5"):
        base, found = function.bars[0], [function.config(8)]
        for port in (0, 8):
            guest.port_out(base + port + 4, 1, 0x10)  # in a loop
            guest.port_out(base + port + 1, 1, 1)
            guest.port_out(base + port, 1, 0x41)
            found += [guest.port_in(base + at, 1) for at in (5, 13, 2, 10)] + [function.config(4)]
            found += [guest.port_in(base + port, 1), function.config(4)]
        seen.append(found)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "options",
    [
        "loader",
        "loader,addr=0x100",
        "loader,addr=0,data=1",
        "loader,data=1,data-len=9",
        "loader,data=1,data-len=4,file=/dev/null",
        "loader,data=1,data-len=4,force-raw=on",
        "loader,data=1,data-len=4,cpu-num=7",
        "loader,file=/nonexistent",
        "isa-parallel",
        "isa-parallel,chardev=x",
        "isa-parallel,chardev=c,index=3",
        "isa-debugcon",
        "isa-debugcon,chardev=x",
        "pci-serial,chardev=x",
        "pci-serial-4x,chardev3=x",
    ],
)
def test_refusals(options: str) -> None:
    texts = []
    for peer in (False, True):
        command = [*program_command("x86_64", peer=peer), "-nodefaults", "-display", "none", "-S"]
        done = subprocess.run(
            [*command, "-chardev", "null,id=c", "-device", options], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        texts.append(
            {line.split(": ", 1)[-1].removeprefix(f"-device {options}: ") for line in done.stderr.splitlines()}
        )
    assert texts[0] == texts[1]


def test_numbers_and_files_in_memory(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(random.Random("loader").randbytes(5000))
    arguments = [
        "-device",
        f"loader,file={image},addr=0x200100",
        "-device",
        "loader,addr=0x100000,data=0x11223344,data-len=4",
    ]
    arguments += ["-device", "loader,addr=0x100008,data=0x1122334455,data-len=3,data-be=on,cpu-num=0"]
    seen = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            guest = program.guest
            found = [guest.read(0x100000, 16), guest.read(0x2000F0, 5100)]
            guest.write(0x100000, bytes(16))
            guest.write(0x200100, bytes(100))
            program.qmp("system_reset")
            program.wait_event("RESET")
            seen.append([*found, guest.read(0x100000, 16), guest.read(0x2000F0, 5100)])
    assert seen[0] == seen[1]
    assert seen[0][1][16:5016] == image.read_bytes()


def test_a_doorbell(tmp_path: Path) -> None:
    server = IvshmemServer(tmp_path)
    seen = []
    chardev = ("-chardev", f"socket,id=c,path={server.path}")
    for peer in (False, True):
        device = "ivshmem-doorbell,chardev=c,vectors=2,addr=5"
        with SystemProgram(tmp_path, "x86_64", "-machine", "pc", *chardev, "-device", device, peer=peer) as program:
            function = PciFunction(program.guest, 5 << 3)
            found = [function.config(offset) for offset in range(0, 256, 4)]
            for number in range(6):
                function.set_config(0x10 + 4 * number, 4, 0xFFFFFFFF)
                found.append(function.config(0x10 + 4 * number))
            function.enable()
            found.append(program.guest.load(function.bars[0] + 8, 4) - peer)
            seen.append(found)
    server.close()
    assert seen[0] == seen[1]


_NET = ("-netdev", "hubport,id=h,hubid=0")
_RINGS = [base + at for base in (0x2800, 0x3800, 0x3900) for at in (0, 4, 8, 0x28)]
_REGISTERS: dict[str, tuple[int, int, list[int]]] = {
    # The base address, how wide accesses are, and where: nothing is switched on.
    "e1000e,netdev=h,mac=52:54:00:12:34:56": (
        0,
        4,
        [0x18, 0x38, 0x40, 0xC8, 0xD0, 0xD8, 0xE0, 0xE4, 0x110, 0x410, 0x428, 0xE00, 0xF00, 0x1008, 0x1030, 0x2160]
        + [0x2170, 0x3410, 0x5008, 0x5200, 0x5404, 0x5600, 0x5818, 0x5880, 0x5B00, 0x5B68, 0x5F00, 0x8010, 0x9000]
        + _RINGS,
    ),
    "rtl8139,netdev=h,mac=52:54:00:12:34:56": (
        1,
        2,
        [0x00, 0x04, 0x08, 0x0E, 0x38, 0x3C, 0x3E, 0x50, 0x52, 0x58, 0x5A, 0x5C, 0x62, 0x66, 0x68, 0xE0],
    ),
    "lsi53c895a": (
        1,
        1,
        [0x00, 0x02, 0x03, 0x04, 0x06, 0x07, 0x08, 0x0C, 0x10, 0x16, 0x18, 0x1A, 0x1B, 0x24, 0x30, 0x34, 0x39, 0x40]
        + [0x44, 0x4A, 0x4D, 0x52, 0x56, 0x5C, 0x9F, 0xC0, 0xD4, 0xE0],
    ),
}


@pytest.mark.parametrize("device", _REGISTERS, ids=lambda each: each.partition(",")[0])
def test_registers_of_cards(tmp_path: Path, device: str) -> None:
    bar, width, offsets = _REGISTERS[device]
    seen = []
    for peer in (False, True):
        rnd = random.Random(device)
        arguments = ("-machine", "pc", *_NET, "-device", f"{device},addr=5")
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            function = PciFunction(program.guest, 5 << 3)
            function.enable()
            base = function.bars[bar]
            found = [program.guest.load(base + offset, width) for offset in offsets]
            for _ in range(150):
                offset = rnd.choice(offsets)
                value = rnd.choice((rnd.getrandbits(8 * width), 0, (1 << 8 * width) - 1))
                program.guest.store(base + offset, width, value)
                found += [offset, program.guest.load(base + offset, width)]
            seen.append(found + [program.guest.load(base + offset, width) for offset in offsets])
    assert seen[0] == seen[1]

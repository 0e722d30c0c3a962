"""A kernel for a PC: what the firmware is given of it, and which files are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack, pack_into, unpack_from
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine import fw_cfg
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.testing import elf


def _image(protocol: int = 0x20C) -> bytes:
    setup = bytearray(2 * 512)
    setup[0x1F1], setup[0x211], setup[0x202:0x206] = 1, 1, b"HdrS"
    pack_into("<H", setup, 0x206, protocol)
    pack_into("<I", setup, 0x22C, 0x7FFFFFFF)
    return bytes(setup) + b"kernel"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[Machine] = []

    def start(image: bytes | None, *, directory: str = "", **properties: str) -> Any:
        path = tmp_path / "kernel"
        if image is not None:
            path.write_bytes(image)
        machine = Machine(capabilities=frozenset(("board", "x86_64")))
        made.append(machine)
        with machine.control:
            board = attach_board(machine, find_board("x86_64", "pc"))
            for name, value in ({"kernel": str(path)} | properties).items():
                board.set(name, value)
            board.firmware_directories = (directory,)
            board.set_topology({"cpus": 1})
            board.set_memory(16 << 20)
            board.start()
            board.finish()
        return board

    yield start
    for each in made:
        each.close()


def test_kernel_command_line_and_ram_disk(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"disk" * 100)
    items = start(_image(), append="quiet vga=ext", initrd=str(tmp_path / "initrd")).fw_cfg._items
    assert items[fw_cfg.KERNEL_DATA] == b"kernel"
    assert items[fw_cfg.CMDLINE_DATA] == b"quiet vga=ext\0"
    assert items[fw_cfg.INITRD_DATA] == b"disk" * 100
    setup = items[fw_cfg.SETUP_DATA]
    address, size = unpack_from("<II", setup, 0x218)
    assert address.to_bytes(4, "little") == items[fw_cfg.INITRD_ADDR] and size == 400
    assert address + size <= (16 << 20) - 0x28000
    assert unpack_from("<I", setup, 0x228)[0] == int.from_bytes(items[fw_cfg.CMDLINE_ADDR], "little")
    assert unpack_from("<H", setup, 0x1FA)[0] == 0xFFFE


def test_the_rom_that_loads_it_comes_first(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "linuxboot_dma.bin").write_bytes(b"rom")
    board = start(_image(), directory=str(tmp_path))
    assert board.fw_cfg.file("genroms/linuxboot_dma.bin") == b"rom"
    assert board.fw_cfg.file("bootorder") == b"/rom@genroms/linuxboot_dma.bin\0"


@pytest.mark.parametrize("bits", [32, 64])
def test_an_uncompressed_kernel_is_in_memory(start: Callable[..., Any], tmp_path: Path, bits: int) -> None:
    (tmp_path / "pvh.bin").write_bytes(b"rom")
    (tmp_path / "initrd").write_bytes(b"disk" * 100)
    image = elf.program(b"code", 1 << 20, bits=bits, entry=0x100002, zeroes=4)
    board = start(image, directory=str(tmp_path), append="quiet", initrd=str(tmp_path / "initrd"))
    items = board.fw_cfg._items
    numbers = [int.from_bytes(items[key], "little") for key in (fw_cfg.KERNEL_ADDR, fw_cfg.KERNEL_ENTRY)]
    assert numbers == [0x100000, 0x100002]
    assert items[fw_cfg.CMDLINE_DATA] == b"quiet\0" and items[fw_cfg.INITRD_DATA] == b"disk" * 100
    assert items[fw_cfg.SETUP_DATA] == image.ljust(8192, b"\0")
    assert board.fw_cfg.file("bootorder") == b"/rom@genroms/pvh.bin\0"
    assert board.memory.read(1 << 20, 8) == b"code" + bytes(4)
    board.memory.write(1 << 20, b"overwritten")
    with board.machine.control:
        board.machine.run_state.request_reset()
    assert board.memory.read(1 << 20, 11) == b"code" + bytes(4) + b"ten"


_MULTIBOOT = pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("image", "initrd", "reason"),
    [
        (elf.program(b"code", 1 << 20), "", "Error loading uncompressed kernel without PVH ELF Note"),
        (elf.program(b"code", 1 << 20, entry=1, note_type=17), "", "without PVH ELF Note"),
        (elf.program(b"code", 1 << 20, entry=1, machine=40), "", "Error while loading elf kernel"),
        (elf.program(b"code", 1 << 20, entry=1, zeroes=1 << 40), "", "Error while loading elf kernel"),
        (elf.program(b"code", 1 << 20, entry=1)[:-40], "", "Error while loading elf kernel"),
        (elf.program(_MULTIBOOT, 1 << 20, entry=1, bits=32), "", "Error while loading elf kernel"),
        (None, "", "could not open kernel file"),
        (b"abc", "", "invalid kernel header"),
        (_image()[:600], "", "invalid kernel header"),
        (b"\x7fELF" + bytes(9000), "", "Error while loading elf kernel"),
        (bytes(9000), __file__, "kernel too old to load a ram disk"),
        (_image(), "/nowhere", "error reading initrd /nowhere: No such file or directory"),
    ],
)
def test_refusals(start: Callable[..., Any], image: bytes | None, initrd: str, reason: str) -> None:
    with pytest.raises(QobraError, match=reason):
        start(image, **({"initrd": initrd} if initrd else {}))

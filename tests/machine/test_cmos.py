"""What a PC's firmware finds in the CMOS memory, and the drives that are there although nobody named them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.cli._system import table
from qobra.cli._system.build import Builder
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess

Build = Callable[..., Machine]


@pytest.fixture
def build() -> Iterator[Build]:
    builders: list[Builder] = []

    def make(*arguments: str, architecture: str = "x86_64") -> Machine:
        builder = Builder(architecture, table.scan(["-display", "none", "-accel", "qtest", "-m", "32", *arguments]))
        builders.append(builder)
        with builder.machine.control:
            builder.build_early()
            builder.build_board()
        return builder.machine

    yield make
    for builder in builders:
        builder.machine.close()
        builder.close()


def _cells(machine: Machine, first: int, count: int = 1) -> list[int]:
    access = BoardAccess(machine)
    found = []
    for index in range(first, first + count):
        access.port_out(0x70, 1, index)
        found.append(access.port_in(0x71, 1))
    return found


def _drives(machine: Machine) -> list[str]:
    with machine.control:
        return [each["device"] for each in dispatch.call(machine, "query-block", {})]


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        ("x86_64", ["-M", "pc"], ["ide1-cd0", "floppy0", "sd0"]),
        ("x86_64", ["-M", "q35"], ["ide2-cd0", "sd0"]),
        ("x86_64", ["-M", "pc", "-nodefaults"], []),
        ("x86_64", ["-M", "none"], []),
        ("riscv64", ["-M", "virt"], ["none2", "floppy0", "sd0"]),
        ("x86_64", ["-M", "pc", "-device", "floppy,id=own"], ["ide1-cd0", "sd0", ""]),
        ("x86_64", ["-M", "pc", "-device", '{"driver": "ide-cd"}'], ["floppy0", "sd0", ""]),
        ("x86_64", ["-M", "pc", "-drive", "if=ide,index=2,media=cdrom,id=mine"], ["mine", "floppy0", "sd0"]),
    ],
)
def test_drives_that_nobody_named(build: Build, architecture: str, arguments: list[str], expected: list[str]) -> None:
    assert _drives(build(*arguments, architecture=architecture)) == expected


def test_drives_of_an_adapter_with_one_device_to_a_bus(build: Build) -> None:
    drive = ("-drive", "file.driver=null-co,format=raw,if=ide")
    machine = build("-M", "q35", "-nodefaults", *drive, *drive)
    assert _drives(machine) == ["ide0-hd0", "ide1-hd0"]


def test_a_third_disk_finds_no_place(build: Build) -> None:
    disk = ("-device", "ide-hd,drive=n")
    nodes = [text for n in range(3) for text in ("-blockdev", f"null-co,node-name=n{n}")]
    with pytest.raises(QobraError, match="IDE unit 1 is in use"):
        build("-nodefaults", *nodes, *(text for n in range(3) for text in (disk[0], f"{disk[1]}{n}")))


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ([], (0x30, 0x12), (0x30, 0x12)),
        (["-no-fd-bootchk"], (0x31, 0x12), (0x31, 0x12)),
        (["-boot", "order="], (0, 0), (0, 0)),
        (["-boot", "once=a,order=c"], (0x00, 0x01), (0x00, 0x02)),
        (["-boot", "once=d", "-boot", "order=nda"], (0x00, 0x03), (0x10, 0x34)),
    ],
)
def test_boot_order(build: Build, options: list[str], first: tuple[int, int], second: tuple[int, int]) -> None:
    machine = build("-nodefaults", *options)
    assert (*_cells(machine, 0x38), *_cells(machine, 0x3D)) == first
    board: Any = machine.board
    with machine.control:
        board.reset_all()
    assert (*_cells(machine, 0x38), *_cells(machine, 0x3D)) == second


def test_wrong_boot_order(build: Build) -> None:
    with pytest.raises(QobraError, match="Invalid boot device 'x'"):
        build("-boot", "once=x")


@pytest.mark.parametrize(
    ("partition", "translation"),
    [
        (None, 0),
        (bytes((0x80, 1, 1, 0, 6, 127, 63, 0)), 2),  # ends at head 127: made with translation
        (bytes((0x80, 1, 1, 0, 6, 15, 63, 7)), 0),
    ],
)
def test_geometry_of_disks(build: Build, tmp_path: Path, partition: bytes | None, translation: int) -> None:
    image = tmp_path / "disk"
    table_of_partitions = bytes(512)
    if partition is not None:
        entry = partition + (63).to_bytes(4, "little") + (8001).to_bytes(4, "little")
        table_of_partitions = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    with image.open("wb") as stream:
        stream.write(table_of_partitions)
        stream.truncate(61440 * 512)
    machine = build("-nodefaults", "-drive", f"file={image},format=raw,index=1")
    assert _cells(machine, 0x12) == [0x0F]
    assert _cells(machine, 0x19, 2) == [0, 47]
    assert _cells(machine, 0x1B, 9) == [0] * 9
    assert _cells(machine, 0x24, 9) == [60, 0, 16, 0xFF, 0xFF, 0xC8, 60, 0, 63]
    assert _cells(machine, 0x39) == [translation << 2]


def test_floppies_and_memory(build: Build) -> None:
    machine = build("-M", "pc")
    assert _cells(machine, 0x10) == [0x50]
    assert _cells(machine, 0x14) == [0x07]
    assert _cells(machine, 0x15, 2) == [0x80, 0x02]
    assert _cells(machine, 0x34, 2) == [0, 1]  # 16 MiB above the first 16, in units of 64 KiB
    machine = build("-M", "q35")
    assert _cells(machine, 0x10) == [0]
    assert _cells(machine, 0x14) == [0x06]


def _numa(build: Build, *options: str) -> str:
    machine = build("-smp", "8,sockets=8", "-object", "memory-backend-ram,id=ram,size=32M", *options)
    with machine.control:
        text: str = dispatch.call(machine, "human-monitor-command", {"command-line": "info numa"})
    return text.replace("\r", "")


def test_cpus_are_spread_over_numa_nodes(build: Build) -> None:
    text = _numa(build, "-numa", "node,memdev=ram", "-numa", "node")
    assert "node 0 cpus: 0 2 4 6\n" in text
    assert "node 1 cpus: 1 3 5 7\n" in text


def test_cpus_that_nobody_placed(build: Build) -> None:
    text = _numa(build, "-numa", "node,nodeid=0,memdev=ram,cpus=0-1", "-numa", "node,nodeid=1,cpus=4-5")
    assert "node 0 cpus: 0 1 2 3 6 7\n" in text
    assert "node 1 cpus: 4 5\n" in text


def test_firmware_in_flash(build: Build, tmp_path: Path) -> None:
    image = tmp_path / "flash"
    image.write_bytes(bytes(n % 256 for n in range(65536)))
    variables = tmp_path / "variables"
    variables.write_bytes(b"\x5a" * 8192)
    flash = "if=pflash,format=raw,file="
    machine = build("-nodefaults", "-drive", f"{flash}{image}", "-drive", f"{flash}{variables}")
    access = BoardAccess(machine)
    assert access.read((1 << 32) - 65536, 65536) == image.read_bytes()
    assert access.read((1 << 20) - 65536, 65536) == image.read_bytes()
    assert access.read((1 << 32) - 65536 - 8192, 8192) == b"\x5a" * 8192
    image.unlink()  # gone while it is open: the machine ends all the same


def test_flash_of_a_wrong_size(build: Build) -> None:
    with pytest.raises(QobraError, match="system firmware block device pflash0 has invalid size 1000"):
        build("-drive", "if=pflash,file.driver=null-co,file.size=1000,format=raw,id=pflash0")


def test_what_the_firmware_waits_for(build: Build) -> None:
    board: Any = build("-boot", "reboot-timeout=15,splash-time=12").board
    assert board.fw_cfg.file("etc/boot-fail-wait") == b"\x0f\0\0\0"
    assert board.fw_cfg.file("etc/boot-menu-wait") == b"\x0c\0"
    board = build().board
    assert board.fw_cfg.file("etc/boot-fail-wait") == b"\xff" * 4
    assert board.fw_cfg.file("etc/boot-menu-wait") is None


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("order=z", "Invalid boot device 'z'"),
        ("order=aa", "Boot device 'a' was given twice"),
        ("reboot-timeout=70000", "reboot timeout is invalid,it should be a value between -1 and 65535"),
        ("splash-time=x", "Parameter 'boot.splash-time' expects integer"),
        ("menu=maybe", "Parameter 'boot.menu' expects 'on' or 'off'"),
        ("tune=1", "Parameter 'boot.tune' is unexpected"),
    ],
)
def test_boot_options_that_cannot_be(build: Build, option: str, text: str) -> None:
    with pytest.raises(QobraError, match=text):
        build("-boot", option)


def test_a_picture_that_is_not_there_is_done_without(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build("-boot", "splash=/nonexistent")
    assert "failed to find file '/nonexistent'" in capsys.readouterr().err


def test_floppy_drives_come_in_order_and_are_listed_as_qemu_does(build: Build) -> None:
    machine = build("-M", "pc", "-drive", "if=floppy,index=1,driver=null-co,read-zeroes=on")
    with machine.control:
        text = dispatch.call(machine, "human-monitor-command", {"command-line": "info qtree"})
    lines = [line.strip() for line in text.splitlines()]
    first, second = (index for index, line in enumerate(lines) if line == 'dev: floppy, id ""')
    expected = ["unit = 1 (0x1)", 'drive = "floppy1"', 'backend_defaults = "auto"', "logical_block_size = 512 (512 B)"]
    assert lines[first + 1 : first + 5] == expected
    assert lines[second + 1 : second + 3] == ["unit = 0 (0x0)", 'drive = "floppy0"']


def test_a_drive_of_the_board_and_one_that_a_global_option_names(build: Build) -> None:
    drives = ["-drive", "if=floppy,driver=null-co", "-drive", "if=none,id=d,driver=null-co"]
    with pytest.raises(QobraError, match=r"-global floppy.drive=... conflicts with drive=floppy0"):
        build("-M", "pc", *drives, "-global", "floppy.drive=d")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-drive", "if=none,id=d,driver=null-co"], "Drive 'd' is already in use by another device"),
        (
            ["-drive", "if=ide,id=d,driver=null-co"],
            "Drive 'd' is already in use because it has been automatically connected",
        ),
    ],
)
def test_a_drive_has_one_device(build: Build, arguments: list[str], text: str) -> None:
    with pytest.raises(QobraError, match=text):
        machine = build("-M", "pc", "-nodefaults", *arguments)
        with machine.control:
            for _ in range(2):
                dispatch.call(machine, "device_add", {"driver": "virtio-blk-pci", "drive": "d"})

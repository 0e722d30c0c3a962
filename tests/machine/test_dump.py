"""Dumps of guest memory, read by real tools and by hand."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.dump.compression import available
from qobra.machine.launch import simple_machine
from qobra.qmp import dispatch
from qobra.testing.waiting import wait_until

_MEMORY = 8 << 20


@pytest.fixture(params=[("x86_64", "pc"), ("riscv64", "virt")])
def machine(request: Any) -> Any:
    machine = simple_machine(*request.param, memory=_MEMORY, cpus=2)
    board: Any = machine.board
    board.ram.view[0x200000:0x200010] = b"a needle in here"
    yield machine
    machine.close()


def _start(machine: Any) -> int:
    return 0x80000000 if "riscv64" in machine.capabilities else 0


def _call(machine: Any, command: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, command, arguments)


def test_elf_is_what_readelf_expects(machine: Any, tmp_path: Path) -> None:
    path = tmp_path / "core"
    events: list[Any] = []
    machine.events.subscribe(events.append)
    _call(machine, "dump-guest-memory", paging=False, protocol=f"file:{path}")
    data = path.read_bytes()
    assert b"a needle in here" in data and len(data) > _MEMORY * 9 // 10
    result = _call(machine, "query-dump")
    assert result["status"] == "completed" and result["completed"] == result["total"] > 0
    assert [event["event"] for event in events] == ["DUMP_COMPLETED"]
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    text = subprocess.run(["readelf", "-aW", str(path)], capture_output=True, text=True, check=True)
    assert "CORE (Core file)" in text.stdout and text.stderr == ""
    assert text.stdout.count("NT_PRSTATUS") == 2
    assert f"0x{_start(machine):016x}" in text.stdout


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_a_debugger_finds_cpus_and_memory(tmp_path: Path) -> None:
    machine = simple_machine("x86_64", "pc", memory=_MEMORY, cpus=2)
    board: Any = machine.board
    board.ram.view[0x1000:0x1010] = b"a needle in here"
    path = tmp_path / "core"
    _call(machine, "dump-guest-memory", paging=False, protocol=f"file:{path}")
    machine.close()
    command = ["gdb", "-batch", "-nx", "-ex", f"core-file {path}", "-ex", "info threads", "-ex", "x/s 0x1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "LWP 1" in done.stdout and "LWP 2" in done.stdout
    assert '0x1000:\t"a needle in here"' in done.stdout


def test_a_part_of_memory(machine: Any, tmp_path: Path) -> None:
    path = tmp_path / "core"
    begin = _start(machine) + 0x200000
    _call(machine, "dump-guest-memory", paging=False, protocol=f"file:{path}", begin=begin, length=4096)
    data = path.read_bytes()
    assert data[-4096:-4080] == b"a needle in here"


def _unpack(form: str, data: bytes) -> bytes:
    if form == "kdump-zlib":
        return zlib.decompress(data)
    out, length, size = ctypes.create_string_buffer(4096), ctypes.c_size_t(4096), ctypes.c_size_t(len(data))
    if form == "kdump-lzo":
        assert ctypes.CDLL("liblzo2.so.2").lzo1x_decompress_safe(data, size, out, ctypes.byref(length), None) == 0
    else:
        assert ctypes.CDLL("libsnappy.so.1").snappy_uncompress(data, size, out, ctypes.byref(length)) == 0
    return out.raw[: length.value]


def test_the_formats_are_those_that_can_be_written(machine: Any, tmp_path: Path) -> None:
    served = _call(machine, "query-dump-guest-memory-capability")["formats"]
    assert served == ["elf", *available()]
    for form in {"kdump-lzo", "kdump-snappy"} - set(served):
        with pytest.raises(QobraError, match=f"{form} is not available now"):
            _call(machine, "dump-guest-memory", paging=False, protocol=f"file:{tmp_path}/core", format=form)


@pytest.mark.parametrize(("form", "flag"), [("kdump-zlib", 1), ("kdump-lzo", 2), ("kdump-snappy", 4)])
def test_kdump_pages_can_be_found_and_unpacked(machine: Any, tmp_path: Path, form: str, flag: int) -> None:
    if form not in available():
        pytest.skip(f"the library of {form} is not installed")
    path = tmp_path / "core"
    _call(machine, "dump-guest-memory", paging=False, protocol=f"file:{path}", format=form)
    flat = path.read_bytes()
    assert flat.startswith(b"makedumpfile\0") and len(flat) < _MEMORY // 4
    image = bytearray()
    at = 4096
    while True:
        offset, size = (
            int.from_bytes(flat[at : at + 8], "big", signed=True),
            int.from_bytes(flat[at + 8 : at + 16], "big"),
        )
        if offset < 0:
            break
        image.extend(bytes(max(0, offset + size - len(image))))
        image[offset : offset + size] = flat[at + 16 : at + 16 + size]
        at += 16 + size
    assert image[:8] == b"KDUMP   "
    block_size, sub_blocks, bitmap_blocks = (
        int.from_bytes(image[428 + 4 * i : 432 + 4 * i], "little") for i in range(3)
    )
    assert block_size == 4096
    bitmap_at = 4096 * (1 + sub_blocks)
    table = bitmap_at + 4096 * bitmap_blocks
    wanted = (_start(machine) + 0x200000) // 4096
    second = image[bitmap_at + 4096 * bitmap_blocks // 2 : table]
    index = (
        sum(second[i].bit_count() for i in range(wanted // 8))
        + (second[wanted // 8] & ((1 << wanted % 8) - 1)).bit_count()
    )
    entry = table + 24 * index
    where, length, flags = (
        int.from_bytes(image[entry : entry + 8], "little"),
        int.from_bytes(image[entry + 8 : entry + 12], "little"),
        int.from_bytes(image[entry + 12 : entry + 16], "little"),
    )
    assert flags == flag
    assert int.from_bytes(image[424:428], "little") == flag
    assert _unpack(form, bytes(image[where : where + length])).startswith(b"a needle in here")


def test_in_the_background(machine: Any, tmp_path: Path) -> None:
    events: list[Any] = []
    machine.events.subscribe(events.append)
    with machine.control:
        machine.run_state.start()
    _call(machine, "dump-guest-memory", paging=False, protocol=f"file:{tmp_path}/core", detach=True)
    wait_until(lambda: machine.run_state.running)
    assert [event["event"] for event in events] == ["RESUME", "STOP", "DUMP_COMPLETED", "RESUME"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"protocol": "ftp:x"}, "Invalid parameter 'protocol'"),
        ({"protocol": "file:/nowhere/x"}, "Could not open '/nowhere/x': No such file or directory"),
        ({"protocol": "fd:x"}, "x"),
        ({"begin": 0}, "Parameter 'length' is missing"),
        ({"length": 1}, "Parameter 'begin' is missing"),
        ({"begin": 1 << 40, "length": 1}, "dump: no guest memory to dump"),
        ({"begin": 0, "length": 0}, "Invalid parameter 'length'"),
        ({"format": "kdump-zlib", "paging": True}, "kdump-compressed format doesn't support paging or filter"),
        ({"format": "win-dmp"}, "win-dmp is not available now"),
    ],
)
def test_refusals(machine: Any, tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    full = {"paging": False, "protocol": f"file:{tmp_path}/core"} | arguments
    with pytest.raises(QobraError) as caught:
        _call(machine, "dump-guest-memory", **full)
    assert text in caught.value.desc


_OF_A_PC = [(0, 0xC0000), (0xC0000, 0x20000), (0xE0000, 0x20000), (0x100000, 0x100000), (0xFFFC0000, 0x40000)]


@pytest.mark.parametrize(
    ("architecture", "board", "ranges"),
    [
        ("x86_64", "pc", _OF_A_PC),
        ("x86_64", "q35", _OF_A_PC),
        ("riscv64", "virt", [(0x1000, 0xF000), (0x80000000, 0x200000)]),
    ],
)  # fmt: skip
def test_rom_is_dumped_too_and_all_lies_where_it_is(
    tmp_path: Path, architecture: str, board: str, ranges: list[tuple[int, int]]
) -> None:
    machine = simple_machine(architecture, board, memory=2 << 20)
    try:
        with machine.control:
            dispatch.call(machine, "dump-guest-memory", {"paging": False, "protocol": f"file:{tmp_path}/core"})
    finally:
        machine.close()
    core = (tmp_path / "core").read_bytes()
    count = int.from_bytes(core[56:58], "little")
    headers = [struct.unpack_from("<II6Q", core, 64 + 56 * number) for number in range(count)]
    assert [(each[3], each[4], each[5]) for each in headers if each[0] == 1] == [(a, a, size) for a, size in ranges]


def test_a_pc_has_memory_where_a_graphics_card_would_be_and_its_option_roms_cannot_be_written() -> None:
    machine = simple_machine("x86_64", "pc", memory=2 << 20)
    try:
        for address, kept in ((0xA0000, b"\x55\xaa"), (0xBFFFE, b"\x55\xaa"), (0xC0000, bytes(2))):
            machine.board.memory.write(address, b"\x55\xaa")
            assert machine.board.memory.read(address, 2) == kept
    finally:
        machine.close()

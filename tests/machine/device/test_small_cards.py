"""Ports, test devices and the loader, as a guest uses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.chardev.backend.parallel import ParallelChardev
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, PciFunction


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = simple_machine(memory=16 << 20)
    yield made
    made.close()


def _plug(machine: Machine, driver: str, **options: Any) -> Any:
    board: Any = machine.board
    with machine.control:
        board.ready = False
        device = add_device(machine, {"driver": driver} | options, keyval=True)
        board.ready = True
    return device


def _file(machine: Machine, path: Path) -> str:
    with machine.control:
        machine.chardevs.create("out", {"type": "file", "data": {"out": str(path)}})
    return "out"


def test_a_printer_takes_each_byte_that_is_strobed(machine: Machine, tmp_path: Path) -> None:
    _plug(machine, "isa-parallel", chardev=_file(machine, tmp_path / "out"))
    guest = BoardAccess(machine)
    for byte in b"Hi":
        guest.port_out(0x378, 1, byte)
        guest.port_out(0x37A, 1, 0x0D)
        assert guest.port_in(0x379, 1) & 0x80 == 0
        guest.port_out(0x37A, 1, 0x0C)
        seen = [guest.port_in(0x379, 1) & 0xC0 for _ in range(3)]
        assert seen == [0x40, 0x00, 0xC0]
    assert (tmp_path / "out").read_bytes() == b"Hi"


class _HostPort:
    """The kernel's side of ppdev."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes]] = []

    def __call__(self, _fd: int, request: int, value: bytes = b"") -> Any:
        self.calls.append((request & 0xFF, value))
        return {0x81: b"\xd8", 0x83: b"\x0c", 0x85: b"\x5a"}.get(request & 0xFF, value)


def test_a_parallel_port_of_the_host(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = _HostPort()
    monkeypatch.setattr("fcntl.ioctl", host)
    path = tmp_path / "parport0"
    path.touch()
    with machine.control:
        device = machine.chardevs.create("port", {"type": "parallel", "data": {"device": str(path)}})
    assert isinstance(device, ParallelChardev)
    _plug(machine, "isa-parallel", chardev="port")
    guest = BoardAccess(machine)
    assert [guest.port_in(0x378 + offset, 1) for offset in range(4)] == [0x5A, 0xD8, 0xCC, 0xFF]
    guest.port_out(0x378, 1, 0x41)
    guest.port_out(0x37A, 1, 0x2D)
    assert host.calls[-3:] == [(0x86, b"\x41"), (0x90, b"\x01\0\0\0"), (0x84, b"\x0d")]


def test_what_is_no_parallel_port_is_refused(machine: Machine) -> None:
    with machine.control, pytest.raises(QobraError, match="not a parallel port: Inappropriate ioctl for device"):
        machine.chardevs.create("port", {"type": "parallel", "data": {"device": "/dev/null"}})


def test_a_debug_console(machine: Machine, tmp_path: Path) -> None:
    _plug(machine, "isa-debugcon", chardev=_file(machine, tmp_path / "out"), iobase="0x402", readback="0x55")
    guest = BoardAccess(machine)
    assert guest.port_in(0x402, 1) == 0x55
    guest.port_out(0x402, 1, 0x21)
    assert (tmp_path / "out").read_bytes() == b"!"


def _edu(machine: Machine) -> tuple[BoardAccess, PciFunction]:
    _plug(machine, "edu", addr="5")
    guest = BoardAccess(machine)
    function = PciFunction(guest, 5 << 3)
    function.enable()
    return guest, function


@pytest.mark.parametrize(("number", "factorial"), [(0, 1), (5, 120), (13, 1932053504), (33, 1 << 31), (0xFFFFFFFF, 0)])
def test_edu_computes_factorials(machine: Machine, number: int, factorial: int) -> None:
    guest, function = _edu(machine)
    base = function.bars[0]
    guest.store(base + 0x20, 4, 0x80)
    guest.store(base + 8, 4, number)
    assert (guest.load(base + 8, 4), guest.load(base + 0x20, 4), guest.load(base + 0x24, 4)) == (factorial, 0x80, 1)
    assert function.config(6, 2) & 8
    guest.store(base + 0x64, 4, 1)
    assert not function.config(6, 2) & 8


def test_edu_copies_to_its_buffer_and_back(machine: Machine) -> None:
    guest, function = _edu(machine)
    base = function.bars[0]
    guest.write(0x100000, b"0123456789abcdef")

    def copy(source: int, destination: int, count: int, command: int) -> None:
        for register, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command)):
            guest.store(base + register, 8, value)
        guest.store(base + 0x90, 8, 1)  # too late
        guest.step(200_000_000)

    copy(0x100000, 0x40FF0, 16, 1)
    copy(0x40FF8, 0x200000, 8, 7)
    assert guest.read(0x200000, 16) == b"89abcdef" + bytes(8)
    assert guest.load(base + 0x24, 4) == 0x100
    copy(0x100000, 0x40FF8, 16, 1)  # over the end: nothing
    copy(0x40FF8, 0x300000, 8, 3)
    assert guest.read(0x300000, 8) == b"89abcdef"


def test_a_program_goes_where_it_says(machine: Machine, tmp_path: Path) -> None:
    import struct

    code = b"\x90" * 32
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 120, 0, 0x300000, 32, 64, 4096)
    image = tmp_path / "program"
    image.write_bytes(header + segment + code)
    _plug(machine, "loader", file=str(image), addr="0x100000")
    _plug(machine, "loader", **{"file": str(image), "addr": "0x200000", "force-raw": "on"})
    guest = BoardAccess(machine)
    guest.write(0x300000, b"\xaa" * 80)
    board: Any = machine.board
    with machine.control:
        board.reset_all()
    assert guest.read(0x300000, 80) == code + bytes(32) + b"\xaa" * 16
    assert (guest.read(0x100000, 4), guest.read(0x200000, 4)) == (bytes(4), b"\x7fELF")
    image.write_bytes(header + segment[:40] + struct.pack("<QQ", 1 << 62, 4096) + code)
    with pytest.raises(QobraError, match="^Cannot load specified image"):
        _plug(machine, "loader", file=str(image))

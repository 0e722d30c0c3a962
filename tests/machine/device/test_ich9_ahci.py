"""SATA through AHCI, from the guest's side: frames, command slots, queued commands, packets; and hostile lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.waiting import wait_until

_LISTS, _FRAMES, _TABLES, _BUFFER = 0x100000, 0x110000, 0x120000, 0x200000
_IS, _IE, _CMD, _TFD, _SIG, _SCTL, _SACT, _CI = 0x10, 0x14, 0x18, 0x20, 0x24, 0x2C, 0x34, 0x38
_D2H, _PIO, _SET_BITS, _OVERFLOW, _TASK_FILE = 1, 2, 8, 1 << 24, 1 << 30


class Guest:
    """A q35 with a disk of 1 MiB at the first port and a CD drive at the second; ports running."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        (directory / "cd").write_bytes(b"".join(bytes([n]) * 2048 for n in range(64)))
        self.machine = simple_machine("x86_64", "q35", memory=32 << 20)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            board.ready = False
            for port, (name, driver) in enumerate((("disk", "ide-hd"), ("cd", "ide-cd"))):
                node = {"driver": "file", "filename": str(directory / name), "node-name": name}
                self.machine.block.add_node(node | ({"read-only": True} if name == "cd" else {}))
                options = {"driver": driver, "bus": f"ide.{port}", "drive": name, "id": name}
                add_device(self.machine, options, keyval=True)
            board.ready = True
        self.function = PciFunction(self.access, 0x1F << 3 | 2)
        self.function.enable()
        self.base = self.function.bars[5]
        self.access.store(self.base + 4, 4, 2)
        for port in (0, 1):
            self.port(port, 0x00, _LISTS + 0x8000 * port)
            self.port(port, 0x08, _FRAMES + 0x8000 * port)
            self.port(port, _IE, 0xFFFFFFFF)
            self.port(port, _CMD, 0x11)
            self.acknowledge(port)

    def port(self, number: int, offset: int, value: int | None = None) -> int:
        address = self.base + 0x100 + 0x80 * number + offset
        if value is not None:
            self.access.store(address, 4, value)
            return value
        return self.access.load(address, 4)

    def acknowledge(self, port: int) -> None:
        self.port(port, _IS, 0xFFFFFFFF)
        self.access.store(self.base + 8, 4, 0xFFFFFFFF)

    def command(
        self,
        code: int,
        sector: int = 0,
        count: int = 0,
        *,
        feature: int = 0,
        port: int = 0,
        slot: int = 0,
        ranges: list[tuple[int, int]] | None = None,
        write: bool = False,
        packet: bytes = b"",
        queued: bool = False,
    ) -> int:
        """One command; the port's interrupt bits."""
        self.acknowledge(port)
        at = sector.to_bytes(6, "little")
        frame = bytes(
            (0x27, 0x80, code, feature & 0xFF, *at[:3], 0x40, *at[3:], feature >> 8, count & 0xFF, count >> 8)
        )
        table = _TABLES + 0x8000 * port + 0x400 * slot
        pieces = ranges or []
        entries = b"".join(a.to_bytes(8, "little") + bytes(4) + (n - 1).to_bytes(4, "little") for a, n in pieces)
        self.access.write(table, frame.ljust(64, b"\0") + packet.ljust(64, b"\0") + entries)
        flags = 5 | (0x40 if write else 0) | (0x20 if packet else 0)
        header = flags.to_bytes(2, "little") + len(pieces).to_bytes(2, "little") + bytes(4)
        self.access.write(_LISTS + 0x8000 * port + 32 * slot, header + table.to_bytes(8, "little"))
        if queued:
            self.port(port, _SACT, 1 << slot)
        self.port(port, _CI, 1 << slot)
        end = _SET_BITS | _TASK_FILE if queued else _D2H | _TASK_FILE
        wait_until(lambda: bool(self.port(port, _IS) & end))
        return self.port(port, _IS)

    def moved(self, port: int = 0, slot: int = 0) -> int:
        return self.access.load(_LISTS + 0x8000 * port + 32 * slot + 4, 4)


@pytest.fixture
def guest(tmp_path: Path) -> Any:
    guest = Guest(tmp_path)
    yield guest
    guest.machine.close()


def test_signatures(guest: Guest) -> None:
    assert guest.port(0, _SIG) == 0x101
    assert guest.port(1, _SIG) == 0xEB140101
    assert guest.port(2, 0x28) == 0 and guest.port(0, 0x28) == 0x113


def test_dma_and_pio(guest: Guest) -> None:
    assert guest.command(0x25, 1, 3, ranges=[(_BUFFER, 512), (_BUFFER + 0x1000, 1024)]) & _D2H
    assert guest.access.read(_BUFFER, 512) == bytes([1]) * 512
    assert guest.access.read(_BUFFER + 0x1000, 1024) == bytes([2]) * 512 + bytes([3]) * 512
    assert guest.moved() == 1536
    assert guest.command(0x20, 4, 2, ranges=[(_BUFFER, 1024)]) & _PIO
    assert guest.access.read(_BUFFER, 1024) == bytes([4]) * 512 + bytes([5]) * 512
    guest.access.write(_BUFFER, b"w" * 1024)
    guest.command(0x35, 8, 2, ranges=[(_BUFFER, 1024)], write=True)
    assert guest.image.read_bytes()[8 * 512 : 10 * 512] == b"w" * 1024


def test_a_frame_has_sixteen_bits_for_the_count_of_any_command(guest: Guest) -> None:
    ranges = [(_BUFFER, 512 * 0x200)]
    for read, write in ((0x20, 0x30), (0xC8, 0xCA)):  # PIO and DMA of 28 bits
        guest.command(read, 0, 0x200, ranges=ranges)
        assert guest.moved() == 512 * 0x200
        assert guest.access.read(_BUFFER + 512 * 0x1FF, 4) == bytes([0x1FF % 251]) * 4
        guest.command(write, 0, 0x200, ranges=ranges, write=True)
        assert guest.moved() == 512 * 0x200
        guest.command(read, 0, 0, ranges=ranges)
        assert guest.moved() == 512 * 0x100


def test_queued_commands(guest: Guest) -> None:
    guest.access.write(_BUFFER, b"n" * 1024)
    ranges = [(_BUFFER, 1024)]
    assert guest.command(0x61, 20, 3 << 3, feature=2, slot=3, ranges=ranges, write=True, queued=True) == _SET_BITS
    assert guest.port(0, _SACT) == 0
    assert guest.image.read_bytes()[20 * 512 : 22 * 512] == b"n" * 1024
    assert guest.command(0x60, 1 << 40, 4 << 3, feature=2, slot=4, ranges=ranges, queued=True) & _TASK_FILE
    assert guest.port(0, _SACT) == 1 << 4
    assert guest.command(0x60, 0, 5 << 3, feature=8, slot=5, ranges=ranges, queued=True) & _OVERFLOW


def test_a_failed_command_stays_issued_until_the_port_stops(guest: Guest) -> None:
    assert guest.command(0x25, 1 << 40, 1, slot=2, ranges=[(_BUFFER, 512)]) & _TASK_FILE
    assert guest.port(0, _CI) == 1 << 2
    assert not guest.command(0xEA) & _TASK_FILE
    guest.port(0, _CMD, 0x10)
    assert guest.port(0, _CI) == 0


def test_packets(guest: Guest) -> None:
    read = b"\x28\0\0\0\0\5\0\0\2"
    for feature in (0, 1):
        guest.access.write(_BUFFER, bytes(4096))
        guest.command(0xA0, 0xFFFE00, feature=feature, port=1, ranges=[(_BUFFER, 4096)], packet=read)
        assert guest.access.read(_BUFFER, 4096) == bytes([5]) * 2048 + bytes([6]) * 2048
        assert guest.moved(1) == 4096


def test_an_answer_in_many_small_blocks(guest: Guest) -> None:
    # Two bytes at a time: thousands of blocks, none of which may call the next.
    read = b"\x28\0\0\0\0\5\0\0\4"
    guest.command(0xA0, 0x000200, port=1, ranges=[(_BUFFER, 8192)], packet=read)
    assert guest.moved(1) == 8192
    assert guest.access.read(_BUFFER + 8190, 2) == bytes([8, 8])


def test_interrupt_line_and_reset(guest: Guest) -> None:
    guest.command(0xEC, ranges=[(_BUFFER, 512)])
    assert guest.access.load(guest.base + 8, 4) == 1
    assert guest.function.config(6, 2) & 8
    guest.acknowledge(0)
    assert not guest.function.config(6, 2) & 8
    guest.port(0, _SCTL, 1)
    guest.port(0, _SCTL, 0)
    assert guest.port(0, _TFD) == 0x130
    guest.access.store(guest.base + 4, 4, 1)
    assert guest.access.load(guest.base + 4, 4) == 0x80000000
    assert guest.port(0, _CMD) == 6


def test_lists_outside_of_memory_and_in_registers(guest: Guest) -> None:
    for place in (0xFFFFFFFFFFFFFC00, guest.base, 0xFEE00000):
        guest.port(0, 0x00, place & 0xFFFFFFFF)
        guest.port(0, 0x04, place >> 32)
        guest.port(0, _CI, 0xFFFFFFFF)
    guest.port(0, 0x00, _LISTS)
    guest.port(0, 0x04, 0)
    # The disk's data go to the adapter's own registers: nothing happens to them.
    guest.command(0x25, 1, 1, ranges=[(guest.base, 512)])
    assert guest.access.load(guest.base, 4) == 0xC0141F05


_WRITE = st.tuples(
    st.sampled_from([*range(0x00, 0x2C, 4), *range(0x100, 0x140, 4), *range(0x180, 0x1C0, 4)]),
    st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([1, 0x11, 0xFFFFFFFF, _LISTS, _FRAMES])),
)


@given(st.lists(_WRITE, max_size=40), st.binary(max_size=256), st.binary(max_size=160))
def test_hostile_writes(tmp_path_factory: Any, writes: list[tuple[int, int]], lists: bytes, table: bytes) -> None:
    guest = Guest(tmp_path_factory.mktemp("ahci"))
    try:
        header = (5 | 1 << 16).to_bytes(4, "little") + bytes(4) + _TABLES.to_bytes(8, "little")
        guest.access.write(_LISTS, header + bytes(16) + lists)
        guest.access.write(_TABLES, b"\x27\x80" + table)
        for offset, value in writes:
            guest.access.store(guest.base + offset, 4, value)
            guest.access.load(guest.base + offset, 4)
        guest.access.store(guest.base + 4, 4, 1)
        guest.port(0, 0x04, 0)
        guest.port(0, 0x0C, 0)
        guest.port(0, 0x00, _LISTS)
        guest.port(0, 0x08, _FRAMES)
        guest.port(0, _IE, 0xFFFFFFFF)
        guest.port(0, _CMD, 0x11)
        assert guest.command(0xEC, ranges=[(_BUFFER, 512)]) & _PIO
    finally:
        guest.machine.close()

"""SATA through AHCI, from the guest's side: frames, command slots, queued commands, packets; and hostile lists."""

from __future__ import annotations

import os
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

    def __init__(self, directory: Path, sectors: int = 2048) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        os.truncate(self.image, sectors * 512)
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


def test_registers_can_be_read_in_pieces(guest: Guest) -> None:
    implemented, version = guest.access.load(guest.base + 0x0C, 4), guest.access.load(guest.base + 0x10, 4)
    assert (implemented, version) == (0x3F, 0x10000)
    for at in range(0x00, 0x14, 4):
        whole = guest.access.load(guest.base + at, 4).to_bytes(4, "little")
        assert bytes(guest.access.load(guest.base + at + byte, 1) for byte in range(4)) == whole
        assert b"".join(guest.access.load(guest.base + at + half, 2).to_bytes(2, "little") for half in (0, 2)) == whole
    # Lists lie at a multiple of 1 KiB, frames at one of 256 bytes.
    guest.port(2, 0x00, 0x1234_5FFF)
    guest.port(2, 0x08, 0x1234_5FFF)
    assert guest.port(2, 0x00) == 0x1234_5C00 and guest.port(2, 0x08) == 0x1234_5F00
    guest.port(2, 0x08, 0x6789_AB00)
    assert guest.port(2, 0x08) == 0x6789_AB00


def test_a_frame_tells_how_a_command_ended(guest: Guest) -> None:
    frame_at = _FRAMES + 0x40
    guest.access.write(frame_at, b"\xee" * 20)
    assert guest.command(0x25, 1, 3, ranges=[(_BUFFER, 1536)]) & _D2H
    frame = guest.access.read(frame_at, 20)
    assert frame[:4] == bytes((0x34, 0x40, 0x50, 0)) and frame[14:20] == bytes(6)
    assert guest.port(0, _TFD) & 0xFFFF == 0x50
    assert guest.command(0x25, 2047, 2, ranges=[(_BUFFER, 1024)]) & _TASK_FILE
    frame = guest.access.read(frame_at, 20)
    assert frame[:2] == b"\x34\x40" and frame[2] & 1 and frame[3]
    assert guest.port(0, _TFD) & 0xFFFF == frame[2] | frame[3] << 8
    # The register of an error is of the last command alone.
    assert guest.command(0xE7) & _D2H
    assert guest.access.read(frame_at, 20)[:4] == bytes((0x34, 0x40, 0x50, 0))


def test_a_queued_command_that_fails_stays_under_way(guest: Guest) -> None:
    """The driver finds by the bit that is left which of those that it queued it was."""
    assert guest.command(0x60, 1, 5 << 3, feature=2, slot=5, ranges=[(_BUFFER, 1024)], queued=True) & _SET_BITS
    assert not guest.port(0, _SACT)
    assert guest.command(0x60, 2047, 5 << 3, feature=2, slot=5, ranges=[(_BUFFER, 1024)], queued=True) & _TASK_FILE
    assert guest.port(0, _SACT) == 1 << 5 and guest.port(0, _TFD) & 1


def test_a_pair_of_ports_gets_at_the_registers_too(guest: Guest) -> None:
    ports = guest.function.bars[4]
    index, data = ports + 0x10, ports + 0x14

    def register(offset: int, value: int | None = None) -> int:
        guest.access.port_out(index, 4, offset)
        assert guest.access.port_in(index, 4) == offset & 0xFFC
        if value is not None:
            guest.access.port_out(data, 4, value)
        return guest.access.port_in(data, 4)

    assert register(0x10) == register(0x13) == 0x10000
    assert register(0x100 + 0x80 * 2 + 0x08, 0xABCDEF12) == 0xABCDEF00 == guest.port(2, 0x08)
    assert register(0x100 + 0x80 * 6) == 0
    assert guest.access.port_in(ports, 4) == 0


def test_what_a_disk_says_of_itself(guest: Guest) -> None:
    guest.command(0xEC, ranges=[(_BUFFER, 512)])
    words = [int.from_bytes(guest.access.read(_BUFFER + at, 2), "little") for at in range(0, 512, 2)]
    texts = b"".join(word.to_bytes(2, "big") for word in words)
    assert (words[0], words[1], words[3], words[6]) == (0x40, 2, 16, 63)  # a fixed disk, and its geometry
    assert texts[20:40].startswith(b"QM0000") and texts[46:54] == b"2.5+    "
    assert texts[54:94] == b"QEMU HARDDISK".ljust(40)
    assert words[49] & 0x300 == 0x300  # DMA, LBA
    assert words[60] | words[61] << 16 == 2048
    assert [words[at] for at in range(100, 104)] == [2048, 0, 0, 0]
    assert words[75] == 31 and words[76] & 0x100  # commands are queued
    # 48-bit addresses, caches that are flushed; words that count are marked as such.
    assert words[82] & 0x20 and words[83] & 0xC000 == 0x4000 and words[83] & 0x3400 == 0x3400
    assert words[84] & 0xC000 == 0x4000 == words[87] & 0xC000
    assert words[106] & 0xC000 == 0x4000


def test_sectors_past_32_bits(tmp_path: Path) -> None:
    sectors = (1 << 32) + 8
    guest = Guest(tmp_path, sectors)
    try:
        guest.access.write(_BUFFER, b"h" * 512)
        assert guest.command(0x35, sectors - 1, 1, ranges=[(_BUFFER, 512)], write=True) & _D2H
        with open(guest.image, "rb") as file:
            file.seek(-512, os.SEEK_END)
            assert file.read() == b"h" * 512
        for queued in (False, True):
            where: dict[str, Any] = (
                {"count": 3 << 3, "feature": 1, "slot": 3, "queued": True} if queued else {"count": 1}
            )
            guest.access.write(_BUFFER, bytes(512))
            code = 0x60 if queued else 0x25
            assert not guest.command(code, sectors - 1, ranges=[(_BUFFER, 512)], **where) & _TASK_FILE
            assert guest.access.read(_BUFFER, 512) == b"h" * 512
        assert guest.command(0x25, sectors, 1, ranges=[(_BUFFER, 512)]) & _TASK_FILE
        guest.command(0xEC, ranges=[(_BUFFER, 512)])
        assert guest.access.read(_BUFFER + 200, 8) == sectors.to_bytes(8, "little")
        assert guest.access.read(_BUFFER + 120, 4) == ((1 << 28) - 1).to_bytes(4, "little")
    finally:
        guest.machine.close()


def test_a_queued_command_moves_as_much_as_its_sixteen_bits_say(guest: Guest) -> None:
    assert guest.command(0x60, 2, feature=0x101, slot=0, ranges=[(_BUFFER, 0x101 * 512)], queued=True) & _SET_BITS
    assert guest.access.read(_BUFFER, 0x101 * 512) == guest.image.read_bytes()[1024 : 1024 + 0x101 * 512]

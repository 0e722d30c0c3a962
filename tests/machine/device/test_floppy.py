"""The floppy controller of the pc board and its drives, from the guest's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.block import media
from qobra.errors import QobraError
from qobra.machine.fdc.formats import find
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess
from qobra.testing.waiting import wait_until

_DOR, _STATUS, _FIFO, _CHANGE = 0x3F2, 0x3F4, 0x3F5, 0x3F7
_BUFFER = 0x120000
_READ, _WRITE = 0xE6, 0xC5


class Guest:
    """A pc with one diskette of 1.44 MB, whose sectors are numbered."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "diskette"
        self.image.write_bytes(b"".join(n.to_bytes(2, "little") * 256 for n in range(2880)))
        self.machine = simple_machine(memory=32 << 20)
        self.events: list[Any] = []
        self.machine.events.subscribe(self.events.append)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(self.image), "node-name": "disk"})
            board.ready = False
            self.drive: Any = add_device(self.machine, {"driver": "floppy", "drive": "disk", "id": "fd"}, keyval=True)
            board.ready = True
        self.command(0x03, 0xAF, 0x03)  # the host moves the data

    def status(self) -> int:
        return self.access.port_in(_STATUS, 1)

    def send(self, *values: int) -> None:
        for value in values:
            self.access.port_out(_FIFO, 1, value)

    def result(self) -> list[int]:
        wait_until(lambda: bool(self.status() & 0x80))
        found = []
        while self.status() & 0xD0 == 0xD0 and len(found) < 20:
            found.append(self.access.port_in(_FIFO, 1))
        return found

    def command(self, *values: int) -> list[int]:
        self.send(*values)
        return self.result()

    def read(self, track: int, head: int, sector: int, last: int, code: int = _READ) -> tuple[bytes, list[int]]:
        self.send(code, head << 2, track, head, sector, 2, last, 0x1B, 0xFF)
        wait_until(lambda: bool(self.status() & 0x80))
        data = bytearray()
        while self.status() & 0xE0 == 0xE0:
            data.append(self.access.port_in(_FIFO, 1))
        return bytes(data), self.result()

    def set_dma(self, mode: int, count: int) -> None:
        for port, value in (
            (0x0A, 6), (0x0C, 0), (0x0B, mode), (0x04, _BUFFER & 0xFF), (0x04, _BUFFER >> 8 & 0xFF),
            (0x81, _BUFFER >> 16), (0x0C, 0), (0x05, count - 1 & 0xFF), (0x05, count - 1 >> 8), (0x0A, 2),
        ):  # fmt: skip
            self.access.port_out(port, 1, value)
        self.command(0x03, 0xAF, 0x02)


@pytest.fixture
def guest(tmp_path: Path) -> Any:
    guest = Guest(tmp_path)
    yield guest
    guest.machine.close()


def _numbers(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 512)]


def test_seeking(guest: Guest) -> None:
    guest.command(0x0F, 0, 5)
    assert guest.command(0x08) == [0x20, 5]
    guest.command(0xCF, 0, 3)
    assert guest.command(0x08) == [0x20, 8]
    guest.command(0x8F, 0, 20)
    assert guest.command(0x08) == [0x20, 0]
    guest.command(0x0F, 0, 200)
    assert guest.command(0x08) == [0x20, 0]
    assert guest.command(0x08) == [0x80]


def test_a_reset_interrupts_once_for_each_drive(guest: Guest) -> None:
    guest.access.port_out(_DOR, 1, 0)
    guest.access.port_out(_DOR, 1, 0x0C)
    assert [guest.command(0x08)[0] for _ in range(5)] == [0xC0, 0xC1, 0xC2, 0xC3, 0x80]


def test_reading_by_the_host(guest: Guest) -> None:
    data, result = guest.read(0, 0, 3, 4, code=0x66)
    assert _numbers(data) == [2, 3] and result == [0, 0, 0, 0, 0, 4, 2]
    # On both sides the track ends where the command says.
    data, result = guest.read(2, 0, 17, 18)
    first = 2 * 36
    assert _numbers(data) == [first + 16, first + 17, *(first + 18 + n for n in range(18))]
    assert result[3:6] == [2, 1, 18]


@pytest.mark.parametrize(("track", "sector", "first"), [(0, 19, [0x40, 0x80]), (90, 1, [0x40, 0x00])])
def test_sectors_that_are_not_there(guest: Guest, track: int, sector: int, first: list[int]) -> None:
    data, result = guest.read(track, 0, sector, sector)
    assert not data and result[:2] == first


def test_writing_by_the_host(guest: Guest) -> None:
    guest.send(0x45, 0, 1, 0, 2, 2, 3, 0x1B, 0xFF)
    wait_until(lambda: guest.status() & 0xE0 == 0xA0)
    for value in b"a" * 512 + b"b" * 512:
        guest.access.port_out(_FIFO, 1, value)
    assert guest.result()[:3] == [0x20, 0, 0]
    assert guest.image.read_bytes()[37 * 512 : 39 * 512] == b"a" * 512 + b"b" * 512


def test_dma(guest: Guest) -> None:
    guest.set_dma(0x46, 1024)
    guest.send(_READ, 0, 1, 0, 1, 2, 18, 0x1B, 0xFF)
    assert guest.result() == [0x20, 0, 0, 1, 0, 3, 2]
    assert _numbers(guest.access.read(_BUFFER, 1024)) == [36, 37]
    guest.access.write(_BUFFER, b"w" * 512)
    guest.set_dma(0x4A, 512)
    guest.send(_WRITE, 0, 1, 0, 4, 2, 18, 0x1B, 0xFF)
    assert guest.result()[:3] == [0, 0, 0]
    assert guest.image.read_bytes()[39 * 512 : 40 * 512] == b"w" * 512


def test_format_and_read_id(guest: Guest) -> None:
    guest.send(0x4D, 0, 2, 18, 0x1B, 0xF6)
    wait_until(lambda: guest.status() & 0xE0 == 0xA0)
    for sector in range(1, 19):
        guest.send(0, 0, sector, 2)
    assert not guest.result()[0] & 0xC0
    assert guest.image.read_bytes()[: 18 * 512] == b"\xf6" * (18 * 512)
    guest.send(0x4A, 0)
    assert guest.status() == 0x10
    guest.access.step(10**9)
    assert guest.result() == [0, 0, 0, 0, 0, 1, 2]


def test_the_change_line(guest: Guest) -> None:
    access, control, layer = guest.access, guest.machine.control, guest.machine.block
    backend = layer.find_qdev("fd")
    assert access.port_in(_CHANGE, 1) == 0x80
    guest.command(0x0F, 0, 1)
    assert access.port_in(_CHANGE, 1) == 0
    with control:
        media.eject(backend, "fd", force=False)
    guest.command(0x0F, 0, 0)
    assert access.port_in(_CHANGE, 1) == 0x80
    assert guest.read(0, 0, 1, 1)[1][0] == 0x60  # the seek has not been asked for
    with control:
        layer.add_node({"driver": "null-co", "node-name": "ro", "size": 737280, "read-only": True})
        media.insert_medium(backend, layer.find_node("ro"))
    assert guest.drive.format.sectors == 9
    guest.command(0x0F, 0, 2)
    assert access.port_in(_CHANGE, 1) == 0
    assert guest.command(0x04, 0)[0] & 0x40  # write-protected
    assert not [event for event in guest.events if event["event"] == "DEVICE_TRAY_MOVED"]


@pytest.mark.parametrize(
    ("length", "drive", "expected"),
    [
        (1474560, "auto", ("144", 18, 80)),
        (2949120, "auto", ("288", 36, 80)),
        (737280, "auto", ("144", 9, 80)),
        (1228800, "auto", ("120", 15, 80)),
        (368640, "auto", ("120", 9, 40)),
        (1474560, "288", ("144", 18, 80)),
        (12345, "auto", ("144", 18, 80)),
        (12345, "120", ("120", 15, 80)),
    ],
)
def test_formats(length: int, drive: str, expected: tuple[str, int, int]) -> None:
    found = find(length, drive)
    assert (found.drive, found.sectors, found.tracks) == expected


def test_refusals(guest: Guest) -> None:
    board: Any = guest.machine.board
    with guest.machine.control:
        board.ready = False
        for options, text in (
            ({"unit": "0"}, "Floppy unit 0 is in use"),
            ({"unit": "2"}, "Can't create floppy unit 2, bus supports only 2 units"),
            ({"logical_block_size": "4096", "physical_block_size": "4096"}, "Physical and logical block size"),
        ):
            with pytest.raises(QobraError, match=text):
                add_device(guest.machine, {"driver": "floppy"} | options, keyval=True)


_ACCESS = st.tuples(
    st.sampled_from([*range(0x3F1, 0x3F6), *[0x3F5] * 4, 0x3F7, 0x04, 0x05, 0x0A, 0x0B, 0x0C, 0x81]),
    st.one_of(st.integers(0, 255), st.sampled_from([0xE6, 0xC5, 0x4D, 0x4A, 0x0F, 0x08, 0x03, 0x11, 0x4E])),
)


@given(st.lists(_ACCESS, max_size=80))
def test_hostile_writes(tmp_path_factory: Any, writes: list[tuple[int, int]]) -> None:
    guest = Guest(tmp_path_factory.mktemp("fdc"))
    try:
        for port, value in writes:
            guest.access.port_out(port, 1, value)
            guest.access.port_in(port, 1)
        guest.access.step(10**9)
        guest.access.port_out(_DOR, 1, 0)
        guest.access.port_out(_DOR, 1, 0x0C)
        assert guest.command(0x10) == [0x90]
    finally:
        guest.machine.close()


def test_a_controller_keeps_what_it_has_been_told_of_drives_over_a_reset(guest: Guest) -> None:
    guest.command(0x13, 0, 0x55, 0x66)
    guest.command(0x12, 0x87)
    guest.access.port_out(_DOR, 1, 0x08)
    guest.access.port_out(_DOR, 1, 0x0C)
    assert guest.command(0x0E)[7:] == [7 << 2, 0x55, 0x66]
    assert guest.access.port_in(_DOR, 1) == 0x0C


def test_a_seek_that_was_not_asked_for_shows_in_the_next_result(guest: Guest) -> None:
    guest.command(0x0F, 0, 3)
    assert guest.read(3, 0, 1, 1, 0x66)[1][0] & 0xF8 == 0x20
    assert guest.read(3, 0, 1, 1, 0x66)[1][0] & 0xF8 == 0


def test_deleted_sectors_are_not_found(guest: Guest) -> None:
    assert guest.command(0x4C, 0, 0, 0, 1, 2, 1, 0x1B, 0xFF) == [0x60, 0, 0, 0, 0, 1, 2]
    assert guest.command(0x49, 0, 0, 0, 1, 2, 1, 0x1B, 0xFF)[0] == 0x60


def test_an_empty_drive_moves_its_head_anywhere_and_reads_nothing(guest: Guest) -> None:
    with guest.machine.control:
        media.eject(guest.machine.block.find_qdev("fd"), "fd", force=False)
    assert guest.read(200, 0, 36, 36)[1] == [0x40, 0, 0, 200, 0, 36, 2]
    assert guest.command(0x0E)[0] == 200


def test_verifying_moves_no_data_and_a_track_cannot_end_before_it_begins(guest: Guest) -> None:
    assert guest.command(0x56, 0, 2, 0, 3, 2, 4, 0x1B, 0xFF) == [0x20, 0, 0, 3, 0, 1, 2]
    assert guest.read(2, 0, 9, 3)[1][:2] == [0x60, 1]


def test_the_tape_register_exchanges_the_drives(guest: Guest) -> None:
    guest.command(0x0F, 0, 5)
    guest.access.port_out(0x3F3, 1, 4)
    assert guest.command(0x0E)[:2] == [0, 5]
    assert guest.read(0, 0, 1, 1)[1][:2] == [0x40, 0x80]

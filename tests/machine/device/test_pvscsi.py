"""The paravirtual SCSI adapter from its driver's side: rings, lists of memory, events, and drivers that go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.machine.plug import add_device
from qobra.migration import machine_state
from qobra.testing.pci_guest import AdapterGuest
from qobra.testing.waiting import wait_until

_STATE, _REQUESTS, _COMPLETIONS, _MESSAGES = 0x100000, 0x101000, 0x102000, 0x103000
_BUFFER, _SENSE, _LIST = 0x200000, 0x180000, 0x190000
_COMMAND, _DATA, _STATUS, _INTERRUPTS, _MASK, _KICK = 0x0, 0x4, 0x8, 0x100C, 0x2010, 0x3014
_SG_LIST, _NO_DATA, _TO_HOST, _TO_DEVICE = 1, 4, 8, 16


class Guest(AdapterGuest):
    def __init__(self, directory: Path | None = None) -> None:
        super().__init__("pvscsi", 0, directory)
        self.sent = 0
        self.seen = 0

    def write(self, offset: int, value: int) -> None:
        self.access.store(self.base + offset, 4, value)

    def command(self, number: int, *words: int) -> int:
        self.write(_COMMAND, number)
        for word in words:
            self.write(_DATA, word)
        return self.access.load(self.base + _STATUS, 4)

    def set_up(self) -> None:
        pages = [_STATE >> 12, _REQUESTS >> 12] + [0] * 31 + [_COMPLETIONS >> 12] + [0] * 31
        assert self.command(3, 1, 1, *(half for page in pages for half in (page & 0xFFFFFFFF, page >> 32))) == 0
        self.write(_MASK, 0xF)

    def put(
        self, cdb: bytes, *, address: int = 0, length: int = 0, flags: int = _NO_DATA, target: int = 3, lun: int = 0
    ) -> None:
        units = bytes((0, lun)) + bytes(6)
        request = pack(
            "<QQQQII16sB8sBBBB59x",
            *(0x1000 + self.sent, address, length, _SENSE, 96, flags, cdb, len(cdb), units, 0x20, 0, target, 0),
        )
        self.access.write(_REQUESTS + 128 * (self.sent % 32), request)
        self.sent += 1
        self.access.store(_STATE, 4, self.sent)
        self.write(_KICK, 0)

    def end(self) -> tuple[int, ...]:
        """Context, bytes moved, bytes of sense, the adapter's status, the unit's."""
        wait_until(lambda: self.access.load(_STATE + 12, 4) > self.seen)
        values = unpack("<QQIHH", self.access.read(_COMPLETIONS + 32 * (self.seen % 128), 24))
        self.seen += 1
        return values

    def run(self, cdb: bytes, **options: Any) -> tuple[int, ...]:
        self.put(cdb, **options)
        return self.end()[1:]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    guest.set_up()
    assert guest.run(bytes(6))[2:] == (0, 2)  # told of the reset
    yield guest
    guest.machine.close()


def _read(block: int, count: int) -> bytes:
    return bytes((0x28, 0)) + block.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def test_the_rings_are_told_of(guest: Guest) -> None:
    assert (guest.access.load(_STATE + 8, 4), guest.access.load(_STATE + 20, 4)) == (5, 7)
    assert guest.access.load(_STATE + 4, 4) == 1


def test_reading_and_writing(guest: Guest) -> None:
    assert guest.run(_read(5, 2), address=_BUFFER, length=1024, flags=_TO_HOST) == (1024, 0, 0, 0)
    assert guest.access.read(_BUFFER, 1024) == bytes([5]) * 512 + bytes([6]) * 512
    assert guest.function.config(6, 2) & 8
    guest.write(_INTERRUPTS, 1)
    assert not guest.function.config(6, 2) & 8
    guest.access.write(_BUFFER, b"w" * 512)
    assert guest.run(b"\x2a" + _read(9, 1)[1:], address=_BUFFER, length=512, flags=_TO_DEVICE) == (512, 0, 0, 0)
    assert guest.image.read_bytes()[9 * 512 : 10 * 512] == b"w" * 512


def test_a_list_that_goes_on_elsewhere(guest: Guest) -> None:
    guest.access.write(_LIST, pack("<QII", _BUFFER, 512, 0) + pack("<QII", _LIST + 0x800, 0, 1))
    guest.access.write(_LIST + 0x800, pack("<QII", _BUFFER + 0x5000, 9999, 0))
    assert guest.run(_read(7, 2), address=_LIST, length=1024, flags=_TO_HOST | _SG_LIST) == (1024, 0, 0, 0)
    assert guest.access.read(_BUFFER, 512) == bytes([7]) * 512
    assert guest.access.read(_BUFFER + 0x5000, 512) == bytes([8]) * 512
    guest.access.write(_LIST, pack("<QII", _LIST, 0, 1))  # leads to itself
    assert guest.run(_read(7, 2), address=_LIST, length=1024, flags=_TO_HOST | _SG_LIST)[2] == 0


def test_what_goes_wrong(guest: Guest) -> None:
    moved, sense, adapter, unit = guest.run(_read(200, 1), address=_BUFFER, length=512, flags=_TO_HOST)
    assert (moved, adapter, unit) == (0, 0, 2)
    assert guest.access.read(_SENSE, sense)[2] & 15 == 5
    assert guest.run(bytes(6), target=9)[2] == 0x11
    units = b"\xa0" + bytes(8) + b"\x40" + bytes(2)  # there is one to be reported
    assert guest.run(units, address=_BUFFER, length=64, flags=_TO_HOST) == (16, 0, 0x0C, 0)
    assert guest.run(b"\x2a" + _read(9, 1)[1:], address=_BUFFER, length=100, flags=_TO_DEVICE)[2] == 0x12
    assert guest.run(_read(0, 1), address=_BUFFER, length=1 << 40, flags=_TO_HOST)[2] == 0x14


def test_commands_in_registers(guest: Guest) -> None:
    assert guest.command(2) == guest.command(99) == 0xFFFFFFFF
    assert guest.command(3, 1) == 0xFFFFFFFE
    assert guest.command(3, *[0] * 132) == 0xFFFFFFFF
    assert guest.command(5, 3, 0, 0) == 0
    assert guest.command(5, 4, 0, 0) == 0xFFFFFFFF
    assert guest.run(bytes(6))[3] == 2
    assert guest.command(1) == 0
    assert guest.access.load(guest.base + _MASK, 4) == 0


def test_units_that_come_are_told_of(guest: Guest) -> None:
    assert guest.command(8, 1, 0, _MESSAGES >> 12, 0, *[0] * 30) == 34
    guest.write(_INTERRUPTS, 0xF)
    with guest.machine.control:
        guest.machine.block.add_node({"driver": "null-co", "node-name": "more", "size": 1 << 20})
        options = {"driver": "scsi-hd", "drive": "more", "bus": "s.0", "scsi-id": "7", "id": "new"}
        device = add_device(guest.machine, options, keyval=True)
    assert unpack("<III", guest.access.read(_MESSAGES, 12)) == (0, 0, 7)
    assert guest.access.load(guest.base + _INTERRUPTS, 4) == 4
    assert guest.run(bytes(6), target=7)[2] == 0
    with guest.machine.control:
        device.unparent()
    assert unpack("<III", guest.access.read(_MESSAGES + 128, 12)) == (1, 0, 7)
    assert guest.access.load(_STATE + 128, 4) == 2


def test_its_state_moves(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    there = Guest(tmp_path / "there")
    with guest.machine.control:
        guest.machine.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(guest.machine, "paused")
    with there.machine.control:
        there.machine.board.ram.view[:] = guest.machine.board.ram.view  # type: ignore[union-attr]
        machine_state.load_devices(there.machine, bytes(head), [bytes(payload) for _kind, payload in sections])
    there.sent, there.seen = guest.sent, guest.seen
    assert there.run(_read(5, 1), address=_BUFFER, length=512, flags=_TO_HOST) == (512, 0, 0, 0)
    there.machine.close()


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 0, 4, 4, 4, 8, 0x100C, 0x2010, 0x3014, 0x4018]), st.integers(0, 0xFFFFFFFF))
    ),
    st.binary(min_size=128, max_size=512),
)
def test_the_driver_may_write_anything(writes: list[tuple[int, int]], ring: bytes) -> None:
    guest = Guest()
    guest.set_up()
    guest.access.write(_REQUESTS, ring)
    guest.access.store(_STATE, 4, 0xFFFFFFFF)
    guest.write(_KICK, 0)
    for offset, value in writes:
        guest.write(offset, value & 15 if offset == 0 else value)
    guest.machine.close()

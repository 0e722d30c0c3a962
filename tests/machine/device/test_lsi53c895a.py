"""LSI's adapter: SCRIPTS that compute, jump and move, and SCSI commands that they carry through all phases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.migration import machine_state
from qobra.testing.pci_guest import AdapterGuest
from qobra.testing.waiting import wait_until

_SCRIPT, _TABLE, _MESSAGE, _CDB, _DATA, _REPLY = 0x100000, 0x110000, 0x120000, 0x121000, 0x200000, 0x122000
_ISTAT, _DSTAT, _SIST0, _SIST1, _DSA, _DSP, _DSPS = 0x14, 0x0C, 0x42, 0x43, 0x10, 0x2C, 0x30
_SCRATCH, _SFBR, _DBC = 0x34, 0x08, 0x24
_OUT, _IN, _COMMAND, _STATUS, _MSG_OUT, _MSG_IN = 0, 1, 2, 3, 6, 7


def _interrupt(number: int) -> tuple[int, int]:
    return 0x98080000, number


def _move(phase: int, count: int, address: int) -> tuple[int, int]:
    return 0x08000000 | phase << 24 | count, address


def _unless(phase: int, target: int) -> tuple[int, int]:
    """Jump unless the target is in ``phase``, once it says."""
    return 0x80030000 | phase << 24, target


class Guest(AdapterGuest):
    def __init__(self, directory: Path | None = None) -> None:
        super().__init__("lsi53c895a", 1, directory)

    def read(self, offset: int, width: int = 1) -> int:
        return self.access.load(self.base + offset, width)

    def write(self, offset: int, value: int, width: int = 1) -> None:
        self.access.store(self.base + offset, width, value)

    def start(self, *instructions: tuple[int, ...]) -> None:
        words = [word for instruction in instructions for word in instruction]
        self.access.write(_SCRIPT, b"".join(word.to_bytes(4, "little") for word in words))
        self.write(_DSP, _SCRIPT, 4)

    def stopped(self) -> tuple[int, int, int]:
        """SIST0, SIST1 and what the script says, once it has stopped."""
        wait_until(lambda: bool(self.read(_ISTAT) & 3))
        found = self.read(_SIST0), self.read(_SIST1), self.read(_DSPS, 4)
        self.read(_DSTAT)
        return found

    def run(self, *instructions: tuple[int, ...]) -> tuple[int, int, int]:
        self.start(*instructions)
        return self.stopped()

    def command(self, cdb: bytes, phase: int = _IN, length: int = 0, target: int = 3) -> tuple[int, int]:
        """A command through all phases: what the script said at the end, and the status."""
        self.access.write(_MESSAGE, b"\x80")
        self.access.write(_CDB, cdb)
        script = [
            (0x41000000 | target << 16, 0),
            _move(_MSG_OUT, 1, _MESSAGE),
            _move(_COMMAND, len(cdb), _CDB),
            _unless(phase, _SCRIPT + 5 * 8),
            _move(phase, length, _DATA),
            _move(_STATUS, 1, _REPLY),
            _move(_MSG_IN, 1, _REPLY + 1),
            (0x60000040, 0),
            (0x48000000, 0),
            _interrupt(0x600D),
        ]
        first, second, said = self.run(*script)
        assert (first, second) == (0, 0)
        assert not self.read(_ISTAT) & 8
        return said, self.access.load(_REPLY, 1)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    assert guest.command(bytes(6)) == (0x600D, 2)  # told of the reset
    yield guest
    guest.machine.close()


def _read(block: int, count: int) -> bytes:
    return bytes((0x28, 0)) + block.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def test_reading_and_writing(guest: Guest) -> None:
    assert guest.command(_read(5, 2), length=1024) == (0x600D, 0)
    assert guest.access.read(_DATA, 1024) == bytes([5]) * 512 + bytes([6]) * 512
    assert guest.access.load(_REPLY + 1, 1) == 0
    guest.access.write(_DATA, b"w" * 512)
    assert guest.command(b"\x2a" + _read(9, 1)[1:], _OUT, 512) == (0x600D, 0)
    assert guest.image.read_bytes()[9 * 512 : 10 * 512] == b"w" * 512
    assert guest.command(_read(500, 1), length=512) == (0x600D, 2)
    assert guest.command(b"\x03\0\0\0\x12\0", length=18) == (0x600D, 0)
    assert guest.access.read(_DATA, 3)[2] & 15 == 5


def test_a_target_that_is_not_there(guest: Guest) -> None:
    first, second, _said = guest.run((0x41020000, 0), _interrupt(1))
    assert (first, second) == (0, 4)


def test_a_target_that_sends_less(guest: Guest) -> None:
    guest.access.write(_MESSAGE, b"\x80")
    guest.access.write(_CDB, _read(5, 1))
    begin = [(0x41030000, 0), _move(_MSG_OUT, 1, _MESSAGE), _move(_COMMAND, 10, _CDB)]
    assert guest.run(*begin, _move(_IN, 2000, _DATA), _interrupt(1))[0] == 0x80
    assert guest.read(_DBC, 4) & 0xFFFFFF == 2000 - 512
    finish = [_move(_STATUS, 1, _REPLY), _move(_MSG_IN, 1, _REPLY + 1), (0x48000000, 0), _interrupt(2)]
    assert guest.run(*finish) == (0, 0, 2)
    guest.write(0x56, 0xC0)  # jumps instead, by the direction
    guest.write(0xC4, _SCRIPT + 5 * 8, 4)
    script = [*begin, _move(_IN, 2000, _DATA), _interrupt(3), _interrupt(4)]
    assert guest.run(*script) == (0, 0, 4)
    assert guest.read(0xC8, 4) & 0xFFFFFF == 2000 - 512
    assert guest.read(0xCC, 4) == _DATA + 512
    assert guest.run(*finish) == (0, 0, 2)


def test_tables(guest: Guest) -> None:
    guest.access.write(_MESSAGE, b"\x80")
    guest.access.write(_CDB, _read(7, 1))
    entries = ((1, _MESSAGE), (10, _CDB), (512, _DATA), (1, _REPLY), (1, _REPLY + 1))
    guest.access.write(_TABLE, (3 << 16).to_bytes(4, "little") * 2)
    for number, (count, address) in enumerate(entries):
        guest.access.write(_TABLE + 8 + 8 * number, count.to_bytes(4, "little") + address.to_bytes(4, "little"))
    guest.write(_DSA, _TABLE, 4)
    phases = (_MSG_OUT, _COMMAND, _IN, _STATUS, _MSG_IN)
    moves = [(0x18000000 | phase << 24, 8 + 8 * number) for number, phase in enumerate(phases)]
    assert guest.run((0x43000000, 0), *moves, (0x48000000, 0), _interrupt(5)) == (0, 0, 5)
    assert guest.access.read(_DATA, 512) == bytes([7]) * 512


def test_computing_and_jumping(guest: Guest) -> None:
    assert guest.run((0x78340500, 0), (0x7E340300, 0), (0x7C340600, 0), (0x7A340100, 0), _interrupt(1)) == (0, 0, 1)
    assert guest.read(_SCRATCH) == 1
    assert guest.run((0x80880000, 8), _interrupt(1), _interrupt(2)) == (0, 0, 2)
    assert guest.run((0x88080000, _SCRIPT + 16), _interrupt(3), (0x90080000, 0)) == (0, 0, 3)
    # A byte that is the first one's, with some of its bits left out; and one that is not.
    assert guest.run((0x72340000, 0), (0x800C00F1 | 0xF000, _SCRIPT + 24), _interrupt(4), _interrupt(5)) == (0, 0, 5)
    assert guest.run((0x72340000, 0), (0x800C0002, _SCRIPT + 24), _interrupt(4), _interrupt(5)) == (0, 0, 4)
    guest.access.write(_DATA, bytes(range(16)))
    guest.write(_DSA, _DATA, 4)
    load, store = (0xE1340004, _DATA + 4), (0xF0340004, 0x20)
    assert guest.run(load, store, (0xC0000008, _DATA, _DATA + 0x40), _interrupt(6)) == (0, 0, 6)
    assert guest.access.read(_DATA + 0x20, 4) == bytes((4, 5, 6, 7))
    assert guest.access.read(_DATA + 0x40, 8) == bytes(range(8))


def test_scripts_in_the_memory_of_the_adapter(guest: Guest) -> None:
    place = guest.function.bars[2] + 0x100
    guest.access.write(place, b"".join(word.to_bytes(4, "little") for word in _interrupt(77)))
    guest.write(_DSP, place, 4)
    assert guest.stopped() == (0, 0, 77)


def test_who_waits_can_be_called(guest: Guest) -> None:
    guest.start((0x50000000, _SCRIPT + 16), _interrupt(1), _interrupt(2))
    assert not guest.read(_ISTAT) & 3
    guest.write(_ISTAT, 0x20)
    assert guest.stopped() == (0, 0, 2)
    assert guest.read(0x1A) & 0x40 and not guest.read(_ISTAT) & 0x20


def test_interrupts(guest: Guest) -> None:
    guest.write(0x39, 0x04)
    guest.start((0x98180000, 9), _interrupt(1))
    assert guest.read(_ISTAT) & 5 == 5
    assert guest.function.config(6, 2) & 8
    guest.read(_DSTAT)
    guest.write(_ISTAT, 0x04)
    assert not guest.read(_ISTAT) & 5
    assert not guest.function.config(6, 2) & 8
    guest.write(0x40, 0x02)
    guest.write(0x01, 0x08)  # the bus is reset
    assert guest.function.config(6, 2) & 8
    assert guest.read(_SIST0) == 2 and not guest.function.config(6, 2) & 8
    assert guest.command(bytes(6))[1] == 2


def test_a_script_that_never_ends(guest: Guest) -> None:
    guest.start((0x80080000, _SCRIPT))
    guest.access.step(10_000_000)
    assert guest.read(_ISTAT) & 3 == 0
    guest.write(_ISTAT, 0x80)
    assert guest.read(_DSTAT) & 0x10
    guest.write(_ISTAT, 0)
    assert guest.run(_interrupt(8)) == (0, 0, 8)


def test_its_state_moves(guest: Guest, tmp_path: Path) -> None:
    guest.start((0x50000000, _SCRIPT + 16), _interrupt(1), _interrupt(2))
    (tmp_path / "there").mkdir()
    there = Guest(tmp_path / "there")
    with guest.machine.control:
        guest.machine.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(guest.machine, "paused")
    with there.machine.control:
        there.machine.board.ram.view[:] = guest.machine.board.ram.view  # type: ignore[union-attr]
        machine_state.load_devices(there.machine, bytes(head), [bytes(payload) for _kind, payload in sections])
    there.write(_ISTAT, 0x20)
    assert there.stopped() == (0, 0, 2)
    there.machine.close()


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=20),
    st.lists(
        st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0x41030000, 0x0E000001, 0x0A00000A, _SCRIPT])),
        max_size=40,
    ),
)
def test_the_driver_may_write_anything(writes: list[tuple[int, int]], words: list[int]) -> None:
    guest = Guest()
    guest.start(tuple(words))
    for offset, value in writes:
        guest.write(offset, value)
        guest.read(offset)
    guest.write(_DSP, _SCRIPT, 4)
    guest.machine.close()

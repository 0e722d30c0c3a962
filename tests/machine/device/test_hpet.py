"""The high precision event timer: comparators against the machine's clock, and the lines that they drive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.testing.guest import BoardAccess

_BASE = 0xFED00000
_CONFIGURATION, _STATUS, _COUNTER, _TIMER = 0x10, 0x20, 0xF0, 0x100
_INTERRUPT, _LEVEL, _PERIODIC, _SET_VALUE, _NARROW, _MESSAGE = 0x04, 0x02, 0x08, 0x40, 0x100, 0x4000


class _Timers:
    def __init__(self, board: str) -> None:
        self.machine = simple_machine("x86_64", board)
        self.guest = BoardAccess(self.machine)
        self.lines: list[tuple[int, int]] = []
        ioapic: Any = self.guest.board.ioapic
        for number, line in enumerate(ioapic.gpio_in[None]):
            line.intercept(lambda level, number=number: self.lines.append((number, level)))

    def get(self, offset: int) -> int:
        return self.guest.load(_BASE + offset, 4)

    def put(self, offset: int, value: int) -> None:
        self.guest.store(_BASE + offset, 4, value)

    def set_timer(self, number: int, configuration: int, *comparators: int) -> None:
        self.put(_TIMER + 0x20 * number, configuration)
        if not configuration & _NARROW:
            self.put(_TIMER + 0x20 * number + 0x0C, 0)
        for value in comparators:
            self.put(_TIMER + 0x20 * number + 0x08, value)

    def raised(self) -> list[int]:
        """The lines that went up since this was asked last; the PIT's aside."""
        found = [number for number, level in self.lines if level and number]
        self.lines.clear()
        return found


@pytest.fixture(name="timers")
def _timers(request: pytest.FixtureRequest) -> Iterator[_Timers]:
    timers = _Timers(getattr(request, "param", "q35"))
    yield timers
    timers.machine.close()


def test_the_counter_counts_while_it_is_on(timers: _Timers) -> None:
    assert timers.get(4) == 10_000_000  # femtoseconds a tick
    timers.guest.step(1000)
    assert timers.get(_COUNTER) == 0
    timers.put(_COUNTER, 5)
    timers.put(_CONFIGURATION, 1)
    timers.guest.step(1000)
    assert timers.get(_COUNTER) == 105
    timers.put(_CONFIGURATION, 0)
    timers.guest.step(1000)
    assert timers.get(_COUNTER) == 105


def test_a_level_stays_until_it_is_seen_to(timers: _Timers) -> None:
    timers.set_timer(1, _INTERRUPT | _LEVEL | 20 << 9, 100)
    timers.put(_CONFIGURATION, 1)
    timers.guest.step(999)
    assert not timers.raised()
    timers.guest.step(1)
    assert timers.lines == [(20, 1)]
    assert timers.get(_STATUS) == 2
    timers.put(_STATUS, 2)
    assert timers.lines[-1] == (20, 0)
    assert timers.get(_STATUS) == 0


def test_a_periodic_timer_goes_on(timers: _Timers) -> None:
    timers.set_timer(0, _INTERRUPT | _PERIODIC | _SET_VALUE | _NARROW | 21 << 9, 3000, 5000)
    timers.put(_CONFIGURATION, 1)
    timers.guest.step(30_000)
    assert timers.raised() == [21]
    timers.guest.step(100_000)
    assert timers.raised() == [21, 21]
    assert timers.get(_TIMER + 8) == 18_000


def test_one_of_32_bits_interrupts_at_the_wrap_too(timers: _Timers) -> None:
    timers.put(_COUNTER, 0xFFFFFF00)
    timers.set_timer(2, _INTERRUPT | _NARROW | 22 << 9, 0x100)
    timers.put(_CONFIGURATION, 1)
    timers.guest.step(0x100 * 10)
    assert timers.raised() == [22]
    timers.guest.step(0x100 * 10)
    assert timers.raised() == [22]
    timers.guest.step(10**9)
    assert not timers.raised()


def test_a_message_is_a_write_to_memory(timers: _Timers) -> None:
    timers.put(_TIMER + 0x10, 0x12345678)
    timers.put(_TIMER + 0x14, 0x300000)
    timers.set_timer(0, _INTERRUPT | _MESSAGE, 10)
    timers.put(_CONFIGURATION, 1)
    timers.guest.step(100)
    assert timers.guest.load(0x300000, 4) == 0x12345678
    assert not timers.raised()


def test_legacy_mode_takes_the_place_of_pit_and_clock(timers: _Timers) -> None:
    guest = timers.guest
    guest.port_out(0x70, 1, 0x0B)
    guest.port_out(0x71, 1, 0x42)  # a periodic interrupt of the clock
    guest.step(10**7)
    assert 8 in timers.raised()
    timers.set_timer(0, _INTERRUPT | _PERIODIC | _SET_VALUE | _NARROW, 10**5, 10**5)
    timers.put(_CONFIGURATION, 3)
    timers.lines.clear()
    guest.step(10**7)
    assert [line for line in timers.lines if line[1]] == [(0, 1)] * 10  # every millisecond, and no other
    timers.put(_CONFIGURATION, 0)
    timers.lines.clear()
    guest.step(10**8)
    assert sum(number == 0 and level == 1 for number, level in timers.lines) == 2  # the PIT's, 18.2 times a second


def test_no_guest_keeps_the_host_busy(timers: _Timers) -> None:
    timers.set_timer(0, _INTERRUPT | _PERIODIC | _SET_VALUE | _NARROW | 21 << 9, 1, 1)
    timers.put(_CONFIGURATION, 1)
    timers.guest.step(10**6)
    assert len(timers.raised()) <= 101
    assert timers.get(_TIMER + 8) > 10**5 - 2000


def test_a_board_without_it(tmp_path: Any) -> None:
    from qobra.machine.launch import attach_board, find_board
    from qobra.machine.machine import Machine

    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    board: Any = attach_board(machine, find_board("x86_64", "pc"))
    board.set("hpet", False)
    board.set("pit", "off")
    board.set_topology({"cpus": 1})
    board.set_memory(64 << 20)
    board.start()
    board.finish()
    guest = BoardAccess(machine)
    assert guest.load(_BASE, 4) == 0
    assert guest.port_in(0x40, 1) == 0xFF
    assert guest.port_in(0x61, 1) == 0xFF
    assert b"PNP0103" not in board.fw_cfg.file("etc/acpi/tables")
    machine.close()

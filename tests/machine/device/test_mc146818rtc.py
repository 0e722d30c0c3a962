"""The clock of PCs: what the date becomes when its registers are written, whatever was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.testing.guest import BoardAccess

_SECONDS, _MINUTES, _HOURS, _DAY, _MONTH, _YEAR, _B, _CENTURY = 0, 2, 4, 7, 8, 9, 0x0B, 0x32
_SET, _BINARY, _24H = 0x80, 0x04, 0x02


class Clock:
    """The clock at 12:30:15 on the 5th of February 2004."""

    def __init__(self) -> None:
        self.machine = simple_machine()
        self._guest = BoardAccess(self.machine)
        self.put(_B, _SET | _24H)
        for register, value in zip(self._ORDER, (0x20, 0x04, 0x02, 0x05, 0x12, 0x30, 0x15), strict=True):
            self.put(register, value)
        self.put(_B, _24H)

    _ORDER = (_CENTURY, _YEAR, _MONTH, _DAY, _HOURS, _MINUTES, _SECONDS)

    def get(self, register: int) -> int:
        self._guest.port_out(0x70, 1, register)
        return self._guest.port_in(0x71, 1)

    def put(self, register: int, value: int) -> None:
        self._guest.port_out(0x70, 1, register)
        self._guest.port_out(0x71, 1, value)

    @property
    def date(self) -> str:
        """The registers in hexadecimal, from century to minute."""
        return bytes(self.get(register) for register in self._ORDER[:-1]).hex()


@pytest.fixture(name="clock")
def _clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.machine.close()


@pytest.mark.parametrize(
    ("register", "value", "date"),
    [
        (_CENTURY, 0x21, "210402051230"),
        (0x37, 0x19, "190402051230"),
        (_MINUTES, 0x75, "200402051315"),
        (_HOURS, 0x27, "200402060330"),
        (_DAY, 0x30, "200403011230"),  # 2004 has a 29th of February
        (_DAY, 0, "200401311230"),
        (_MONTH, 0x13, "200501051230"),
        (_MONTH, 0xFF, "200311051230"),  # any month: the one before the first of none
    ],
)
def test_what_no_calendar_has_carries_over(clock: Clock, register: int, value: int, date: str) -> None:
    assert clock.date == "200402051230"
    clock.put(register, value)
    assert clock.date == date


def test_a_date_is_taken_in_the_form_in_which_it_was_set(clock: Clock) -> None:
    clock.put(_B, _SET)
    clock.put(_HOURS, 0x87)  # seven in the evening
    clock.put(_B, _BINARY | _24H)
    assert clock.date == bytes((20, 4, 2, 5, 19, 30)).hex()


def test_times_that_no_counter_holds_wrap_and_move_with_the_machine(clock: Clock) -> None:
    clock.put(_CENTURY, 0x75)
    board: Any = clock.machine.board
    assert -(1 << 63) <= board.rtc._base_ns < 1 << 63
    assert clock.get(_CENTURY) in (0x17, 0x18, 0x19, 0x20, 0x21, 0x22)


def test_offsets_count_from_what_the_clock_would_show(clock: Clock) -> None:
    machine: Any = clock.machine
    seen: list[int] = []
    machine.events.subscribe(lambda event: seen.append(event["data"]["offset"]))
    clock.put(_B, _SET | _24H)
    machine.board.clock.step(3 * 10**9)
    clock.put(_B, _24H)
    clock.put(_SECONDS, 0x18)
    clock.put(_SECONDS, 0x15)
    assert [offset - seen[0] for offset in seen] == [0, 3, 0]
    machine.board.clock.step(60 * 10**9)
    clock.put(_B, _SET | _24H)
    clock.put(_B, _24H)
    assert seen[-1] == seen[0]


def test_registers_tell_the_time_before_they_are_looked_at() -> None:
    machine = simple_machine()
    guest = BoardAccess(machine)
    guest.port_out(0x70, 1, _CENTURY)
    guest.port_out(0x71, 1, 0x21)
    guest.port_out(0x70, 1, _MONTH)
    assert guest.port_in(0x71, 1) in {*range(0x01, 0x0A), 0x10, 0x11, 0x12}
    guest.port_out(0x70, 1, _YEAR)
    assert guest.port_in(0x71, 1) >= 0x24
    machine.close()

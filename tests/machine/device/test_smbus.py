"""The System Management Bus of PCs: commands of the host controller, and the EEPROMs that answer them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.testing.guest import BoardAccess, PciFunction

_BYTE, _BYTE_DATA, _WORD_DATA, _PROCESS_CALL, _BLOCK = (protocol << 2 for protocol in (1, 2, 3, 4, 5))
_START, _INTERRUPT, _LAST = 0x40, 0x01, 0x20
_DONE, _ERROR = 0x02, 0x04


class _Driver:
    def __init__(self, guest: BoardAccess, base: int) -> None:
        self.guest = guest
        self._base = base

    def get(self, offset: int) -> int:
        return self.guest.port_in(self._base + offset, 1)

    def put(self, offset: int, value: int) -> None:
        self.guest.port_out(self._base + offset, 1, value)

    def command(self, protocol: int, address: int, command: int, *data: int) -> int:
        """Carry a command out; its status."""
        self.put(0, 0xFF)
        for offset, value in enumerate((command, address, *data), start=3):
            self.put(offset, value)
        self.put(2, protocol | _START)
        assert self.get(0) == 0x01  # under way when it is looked at for the first time
        return self.get(0)


@pytest.fixture(name="driver", params=["pc", "q35"])
def _driver(request: pytest.FixtureRequest) -> Iterator[_Driver]:
    machine = simple_machine("x86_64", request.param)
    guest, base = BoardAccess(machine), 0xB100
    if request.param == "q35":
        function = PciFunction(guest, 0x1F << 3 | 3)
        function.enable()
        base = function.bars[4]
        assert guest.port_in(base + 2, 1) == 0xFF  # off
        function.set_config(0x40, 1, 1)
    yield _Driver(guest, base)
    machine.close()


def test_bytes_and_words(driver: _Driver) -> None:
    assert driver.command(_BYTE_DATA, 0xA0, 7, 0x5A) == _DONE
    assert driver.command(_WORD_DATA, 0xA0, 8, 0x11, 0x22) == _DONE
    assert driver.command(_WORD_DATA, 0xA1, 7) == _DONE
    assert (driver.get(5), driver.get(6)) == (0x5A, 0x11)
    assert driver.command(_BYTE, 0xA1, 0) == _DONE  # from where the last one ended
    assert driver.get(5) == 0x22
    assert driver.command(_BYTE_DATA, 0xA3, 7) == _DONE  # another module's
    assert driver.get(5) == 0


def test_what_is_not_there_and_what_cannot_be_done(driver: _Driver) -> None:
    assert driver.command(_BYTE_DATA, 0x61, 0) == _ERROR
    assert driver.command(_PROCESS_CALL, 0xA0, 0) == _ERROR


def test_a_block_through_the_buffer(driver: _Driver) -> None:
    driver.put(0x0D, 2)
    driver.get(2)
    for value in (1, 2, 3):
        driver.put(7, value)
    assert driver.command(_BLOCK, 0xA0, 0x20, 3) == _DONE
    assert driver.command(_BLOCK, 0xA1, 0x20) == _DONE
    assert driver.get(5) == 3
    assert [driver.get(7) for _ in range(3)] == [1, 2, 3]


def test_a_block_byte_by_byte(driver: _Driver) -> None:
    for offset, value in enumerate((2, 0x33, 0x44)):
        driver.command(_BYTE_DATA, 0xA0, 0x20 + offset, value)
    driver.put(0x0D, 0)
    assert driver.command(_BLOCK, 0xA1, 0x20) == 0x81
    assert (driver.get(5), driver.get(7)) == (2, 0x33)
    driver.put(0, 0x80)
    assert (driver.get(0), driver.get(7)) == (0x81, 0x44)
    driver.put(2, _BLOCK | _LAST)
    driver.put(0, 0x80)
    assert driver.get(0) == _DONE


def test_a_driver_that_waits_for_the_interrupt(driver: _Driver) -> None:
    driver.put(4, 0xA1)
    driver.put(2, _BYTE | _INTERRUPT | _START)
    assert driver.get(0) == _DONE


def test_a_q35_without_it() -> None:
    from qobra.machine.launch import attach_board, find_board
    from qobra.machine.machine import Machine

    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    board: Any = attach_board(machine, find_board("x86_64", "q35"))
    board.set("smbus", False)
    board.set_topology({"cpus": 1})
    board.set_memory(64 << 20)
    board.start()
    board.finish()
    assert PciFunction(BoardAccess(machine), 0x1F << 3 | 3).config(0) == 0xFFFFFFFF
    machine.close()

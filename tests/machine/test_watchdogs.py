"""Watchdogs of the chipset and of the ISA bus, the debug exit, and memory of system management mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, PciFunction

_SECOND, _TICK = 10**9, 600_000_000
_TCO, _CHIPSET = 0xB060, 0xFED1C000
Make = Callable[..., tuple[Any, list[Any]]]


@pytest.fixture
def make() -> Iterator[Make]:
    machines: list[Machine] = []

    def build(board: str, *devices: str) -> tuple[Any, list[Any]]:
        machine = simple_machine("x86_64", board, memory=128 << 20)
        machines.append(machine)
        events: list[Any] = []
        machine.events.subscribe(events.append)
        with machine.control:
            board_made: Any = machine.board
            board_made.ready = False
            for device in devices:
                add_device(machine, {"driver": device}, keyval=True)
            board_made.ready = True
        return BoardAccess(machine), events

    yield build
    for machine in machines:
        machine.close()


def _barks(events: list[Any]) -> int:
    return sum(event["event"] == "WATCHDOG" for event in events)


def test_ib700(make: Make) -> None:
    access, events = make("pc", "ib700")
    access.machine.run_state.watchdog_action = "none"
    access.step(60 * _SECOND)
    access.port_out(0x443, 1, 14)  # two seconds
    access.step(_SECOND)
    access.port_out(0x443, 1, 14)
    access.step(2 * _SECOND - 1)
    assert not _barks(events)
    access.step(1)
    assert _barks(events) == 1
    access.port_out(0x443, 1, 13)
    access.port_out(0x441, 1, 0)
    access.step(60 * _SECOND)
    assert _barks(events) == 1


def test_debug_exit(make: Make) -> None:
    access, _events = make("pc", "isa-debug-exit")
    access.port_out(0x501, 1, 0x10)
    assert access.machine.wait_for_exit(0)
    assert access.machine.run_state.exit_status == 0x21


def _start_tco(access: Any, ticks: int) -> None:
    bridge = PciFunction(access, 0x1F << 3)
    bridge.set_config(0x40, 4, 0xB001)
    bridge.set_config(0x44, 1, 0x80)
    bridge.set_config(0xF0, 4, _CHIPSET | 1)
    access.port_out(_TCO + 8, 2, 0x0800)
    access.port_out(_TCO + 0x12, 2, ticks)
    access.port_out(_TCO, 2, 1)
    access.port_out(_TCO + 8, 2, 0)


def test_tco_counts_down_twice(make: Make) -> None:
    access, events = make("q35")
    board: Any = access.machine.board
    access.machine.run_state.watchdog_action = "none"
    _start_tco(access, 10)
    access.step(3 * _TICK)
    assert access.port_in(_TCO, 2) == 7
    access.port_out(_TCO + 8, 2, 0x0800)  # halted
    access.step(30 * _TICK)
    assert access.port_in(_TCO, 2) == 7
    access.port_out(_TCO + 8, 2, 0)
    access.step(7 * _TICK)
    assert access.port_in(_TCO + 4, 2) == 8
    access.port_out(_TCO + 4, 2, 8)
    access.step(10 * _TICK)
    assert access.port_in(_TCO + 4, 4) == 8 | 6 << 16
    assert not _barks(events)  # a strap and the chipset forbid it
    board.lpc.values["noreboot"] = False
    access.store(_CHIPSET + 0x3410, 4, 0)
    access.step(20 * _TICK)
    assert _barks(events) == 1


def test_tco_stays_locked(make: Make) -> None:
    access, _events = make("q35")
    _start_tco(access, 4)
    access.port_out(_TCO + 8, 2, 0x1000)
    access.port_out(_TCO + 8, 2, 0)
    assert access.port_in(_TCO + 8, 2) == 0x1000
    with access.machine.control:
        access.board.reset_all()
    _start_tco(access, 4)
    assert access.port_in(_TCO + 8, 2) == 0


def test_memory_of_system_management_mode(make: Make) -> None:
    access, _events = make("q35")
    controller = PciFunction(access, 0)
    top = 128 << 20
    access.store(top - 1, 1, 7)
    controller.set_config(0x9E, 1, 0x39)  # one MiB at the top
    assert access.load(top - 1, 1) == 7
    controller.set_config(0x9D, 1, 0x0A)
    assert access.load(top - 1, 1) == 0xFF
    assert access.load(top - (1 << 20) - 1, 1) == 0
    # No graphics card covers the memory below, so it shows in any case.
    access.store(0xA0000, 1, 5)
    assert access.load(0xA0000, 1) == 5
    controller.set_config(0x9D, 1, 0x42)
    assert access.load(0xA0000, 1) == 5
    controller.set_config(0x9D, 1, 0x52)  # locked, and so closed
    controller.set_config(0x9D, 1, 0x42)
    assert controller.config(0x9D, 1) & 0x70 == 0x10
    assert access.load(0xA0000, 1) == 5


def test_memory_where_cpus_look_first(make: Make) -> None:
    access, _events = make("q35")
    controller = PciFunction(access, 0)
    access.store(0x30000, 1, 9)
    controller.set_config(0x9C, 1, 2)
    assert controller.config(0x9C, 1) == 0
    controller.set_config(0x9C, 1, 0xFF)
    assert controller.config(0x9C, 1) == 1
    controller.set_config(0x9C, 1, 2)
    controller.set_config(0x9C, 1, 0)
    assert (controller.config(0x9C, 1), access.load(0x30000, 1)) == (2, 0xFF)
    with access.machine.control:
        access.board.reset_all()
    assert (controller.config(0x9C, 1), access.load(0x30000, 1)) == (0, 9)
    old, _events = make("pc-q35-4.1")
    controller = PciFunction(old, 0)
    controller.set_config(0x9C, 1, 0x77)
    assert controller.config(0x9C, 1) == 0x77


@given(st.lists(st.tuples(st.integers(0, 31), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFFFFFF)), max_size=30))
def test_tco_takes_any_write(writes: list[tuple[int, int, int]]) -> None:
    machine = simple_machine("x86_64", "q35", memory=1 << 20)
    access = BoardAccess(machine)
    machine.run_state.watchdog_action = "none"
    _start_tco(access, 2)
    for offset, width, value in writes:
        access.port_out(_TCO + offset, width, value & (1 << 8 * width) - 1)
        access.port_in(_TCO + offset, width)
        access.step(_TICK)
    machine.close()

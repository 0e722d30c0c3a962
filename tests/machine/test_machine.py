"""The owner of everything: how it ends."""

from __future__ import annotations

from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine


def test_devices_end_in_the_strand() -> None:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "none"))
    held = []
    board.power_off = lambda: held.append(machine.control.held())  # type: ignore[method-assign]
    machine.close()
    assert held == [True]

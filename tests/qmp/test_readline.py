"""The human monitor as it is typed at."""

from __future__ import annotations

import threading
from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp.readline import PROMPT, ReadlineMonitor


class _Terminal:
    """A character device that keeps what is written to it."""

    def __init__(self) -> None:
        self.shown = b""

    def write_all(self, data: bytes) -> None:
        self.shown += data

    def take_fds(self) -> list[int]:
        return []


def _monitor(machine: Machine) -> tuple[ReadlineMonitor, _Terminal]:
    terminal: Any = _Terminal()
    monitor = ReadlineMonitor(machine, terminal)
    monitor.event("opened")
    assert terminal.shown.endswith(PROMPT.encode())
    terminal.shown = b""
    return monitor, terminal


def test_what_is_typed_early_shows_once_the_machine_is_there() -> None:
    machine = Machine()
    try:
        monitor, terminal = _monitor(machine)
        with machine.control:
            machine.setting_up = True
            typing = threading.Thread(target=monitor.receive, args=(b"inf",))
            typing.start()
            typing.join(0.05)
            assert terminal.shown == b""
            machine.setting_up = False
        typing.join(10)
        assert terminal.shown == b"inf"
    finally:
        machine.close()


def test_nothing_shows_where_the_machine_could_not_be_set_up() -> None:
    machine = Machine()
    try:
        monitor, terminal = _monitor(machine)
        machine.setting_up = True
        monitor.receive(b"quit\n")
        assert terminal.shown == b"" and not machine.is_ending
    finally:
        machine.close()

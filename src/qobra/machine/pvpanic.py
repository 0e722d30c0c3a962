"""The panic device: a byte by which a guest says that it panicked, or loaded its crash kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

PANICKED, CRASHLOADED = 1, 2
ALL_EVENTS = PANICKED | CRASHLOADED


def write(machine: Machine, events: int, value: int) -> None:
    """The guest writes ``value``; only ``events`` count."""
    if value & events & PANICKED:
        machine.run_state.guest_panicked()
    elif value & events & CRASHLOADED:
        machine.run_state.guest_crashloaded()

"""What follows when a watchdog of the guest expires (WATCHDOG)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.run_state import RunState

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

ACTIONS = ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi")


def set_action(state: RunState, action: str) -> None:
    """Choose what follows."""
    state.watchdog_action = action


def expired(machine: Machine) -> None:
    """A watchdog has expired: say so, and do what is set."""
    state = machine.run_state
    action = state.watchdog_action
    machine.events.emit("WATCHDOG", {"action": action})
    if action == "reset":
        state.request_reset("guest-reset")
    elif action == "shutdown":
        state.request_powerdown()
    elif action == "poweroff":
        state.request_quit("guest-reset")
    elif action == "pause":
        state.stop("watchdog")
    elif action == "inject-nmi" and machine.board is not None:
        machine.board.inject_nmi()

"""The human monitor's commands for the run state."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command


@hmp_command("info status", help="whether the machine runs, or why it does not")
def info_status(machine: Machine, args: dict[str, Any]) -> str:
    """What the machine is doing."""
    status = machine.run_state.query()
    step = " (single step mode)" if status["singlestep"] else ""
    reason = f" ({status['status']})" if not status["running"] and status["status"] != "paused" else ""
    return f"VM status: {'running' if status['running'] else 'paused'}{step}{reason}\n"


@hmp_command("stop|s", help="halt the machine")
def stop(machine: Machine, args: dict[str, Any]) -> None:
    """Stop the guest."""
    dispatch.call(machine, "stop", {})


@hmp_command("cont|c", help="let the machine run")
def cont(machine: Machine, args: dict[str, Any]) -> None:
    """Let the guest run."""
    dispatch.call(machine, "cont", {})


@hmp_command("system_reset", help="press the reset button", needs="board")
def system_reset(machine: Machine, args: dict[str, Any]) -> None:
    """Press the reset button."""
    dispatch.call(machine, "system_reset", {})


@hmp_command("system_powerdown", help="press the power button", needs="board")
def system_powerdown(machine: Machine, args: dict[str, Any]) -> None:
    """Press the power button."""
    dispatch.call(machine, "system_powerdown", {})


@hmp_command("system_wakeup", help="wake a guest that sleeps", needs="board")
def system_wakeup(machine: Machine, args: dict[str, Any]) -> None:
    """Wake a suspended guest."""
    dispatch.call(machine, "system_wakeup", {})

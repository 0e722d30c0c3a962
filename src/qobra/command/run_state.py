"""The run state over QMP: what the machine is doing, and requests to do something else."""

from __future__ import annotations

from typing import Any

from qobra.machine import watchdog
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("query-status")
def query_status(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Running or not, and why not."""
    return machine.run_state.query()


@command("stop")
def stop(machine: Machine, args: dict[str, Any]) -> None:
    """Stop the guest; its disks are written out, also those of one that stood still before."""
    machine.run_state.stop()
    machine.run_state.write_out()


@command("cont")
def cont(machine: Machine, args: dict[str, Any]) -> None:
    """Let the guest run."""
    machine.run_state.cont()


@command("system_reset", needs="board")
def system_reset(machine: Machine, args: dict[str, Any]) -> None:
    """Press the reset button."""
    machine.run_state.request_reset()


@command("system_powerdown", needs="board")
def system_powerdown(machine: Machine, args: dict[str, Any]) -> None:
    """Press the power button."""
    machine.run_state.request_powerdown()


@command("system_wakeup", needs="board")
def system_wakeup(machine: Machine, args: dict[str, Any]) -> None:
    """Wake a suspended guest."""
    machine.run_state.wake_up()


@command("watchdog-set-action", needs="board")
def watchdog_set_action(machine: Machine, args: dict[str, Any]) -> None:
    """What follows when a watchdog expires."""
    watchdog.set_action(machine.run_state, args["action"])


@command("set-action", needs="board")
def set_action(machine: Machine, args: dict[str, Any]) -> None:
    """What follows a guest's reset, shutdown, panic and expired watchdog."""
    state = machine.run_state
    for key in ("reboot", "shutdown", "panic"):
        if key in args:
            setattr(state, f"{key}_action", args[key])
    if "watchdog" in args:
        watchdog.set_action(state, args["watchdog"])


@command("inject-nmi", needs="board")
def inject_nmi(machine: Machine, args: dict[str, Any]) -> None:
    """Send a non-maskable interrupt."""
    assert machine.board is not None
    machine.board.inject_nmi()


@command("x-exit-preconfig", needs="board")
def x_exit_preconfig(machine: Machine, args: dict[str, Any]) -> None:
    """Make the board, and go on."""
    from qobra.errors import QobraError

    if not machine.preconfig or machine.exit_preconfig is None:
        raise QobraError("The command is permitted only before machine initialization")
    machine.exit_preconfig()

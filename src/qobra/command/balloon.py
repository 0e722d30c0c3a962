"""The balloon over QMP."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("balloon", needs="board")
def balloon(machine: Machine, args: dict[str, Any]) -> None:
    """Ask the guest to keep ``value`` bytes of its memory."""
    device = _find(machine)
    if args["value"] <= 0:
        raise QobraError("Parameter 'target' expects a size")
    device.set_target(args["value"])


@command("query-balloon", needs="board")
def query_balloon(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """How many bytes the guest has."""
    return {"actual": _find(machine).actual}


def _find(machine: Machine) -> Any:
    found = machine.board.balloon if machine.board is not None else None
    if found is None:
        raise QobraError("No balloon device has been activated", "DeviceNotActive")
    return found

"""Trace events over QMP. There are none: any pattern matches nothing, and no name is known."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("trace-event-get-state")
def trace_event_get_state(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of the events that a name or pattern means."""
    _check(args["name"])
    return []


@command("trace-event-set-state")
def trace_event_set_state(machine: Machine, args: dict[str, Any]) -> None:
    """Switch the events that a name or pattern means."""
    _check(args["name"])


def _check(name: str) -> None:
    if "*" not in name and "?" not in name:
        raise QobraError(f'unknown event "{name}"')

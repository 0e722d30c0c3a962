"""ACPI over QMP: what the guest's operating system reported of events that it was sent."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("query-acpi-ospm-status", needs="board")
def query_acpi_ospm_status(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The status of each memory slot and CPU."""
    assert machine.board is not None
    status = machine.board.ospm_status()
    if status is None:
        raise QobraError("command is not supported, missing ACPI device")
    return status

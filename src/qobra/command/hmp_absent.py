"""Lists for people of what a machine may have, and this one has none of."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command


@hmp_command("info tpm", help="TPM devices", needs="board")
@hmp_command("info usernet", help="connections of networks that are emulated in this process", needs="board")
@hmp_command("info capture", help="sound that is being recorded", needs="board")
def info_absent(machine: Machine, args: dict[str, Any]) -> str:
    """There are no such devices, networks and recordings, so that the lists are empty."""
    return ""


@hmp_command("info replay", help="whether an execution is recorded or replayed", needs="board")
def info_replay(machine: Machine, args: dict[str, Any]) -> str:
    """Executions cannot be recorded."""
    return "Record/replay is not active\n"

"""Dumps of guest memory over QMP."""

from __future__ import annotations

from typing import Any

from qobra.command.machine import architecture
from qobra.machine.dump.dumper import Dumper, formats
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("dump-guest-memory", needs="board")
def dump_guest_memory(machine: Machine, args: dict[str, Any]) -> None:
    """Write the guest's memory to a file, for a debugger."""
    _dumper(machine).start(args)


@command("query-dump", needs="board")
def query_dump(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """How far the dump is."""
    return _dumper(machine).query()


@command("query-dump-guest-memory-capability", needs="board")
def query_capability(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """The formats there are."""
    return {"formats": formats()}


def _dumper(machine: Machine) -> Dumper:
    board = machine.board
    assert board is not None
    if board.dumper is None:
        board.dumper = Dumper(machine, architecture(machine))
    dumper: Dumper = board.dumper
    return dumper

"""PCI over QMP: what is on the buses."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.machine.pci import query
from qobra.qmp.registry import command


@command("query-pci", needs="board")
def query_pci(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """Every root bus with its functions."""
    assert machine.board is not None
    return [query.bus_info(bus) for bus in query.root_buses(machine.board)]

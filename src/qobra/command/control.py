"""The monitor itself: negotiation, version, what is served, the end."""

from __future__ import annotations

from qobra.errors import COMMAND_NOT_FOUND, QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command
from qobra.qmp.version import version_info

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@command("qmp_capabilities")
def qmp_capabilities(machine: Machine, args: dict[str, Any]) -> None:
    """Refuse: the session itself serves this command, once, before there are others."""
    raise QobraError("Capabilities negotiation is already complete, command ignored", COMMAND_NOT_FOUND)


@command("query-version")
def query_version(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """The version of QEMU that this is compatible with, and what it really is."""
    return version_info()


@command("quit")
def quit_(machine: Machine, args: dict[str, Any]) -> None:
    """End the program."""
    machine.run_state.request_quit()

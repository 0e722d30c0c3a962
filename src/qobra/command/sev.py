"""AMD's encrypted machines over QMP: what is true of a machine that is not encrypted."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command


@command("query-sev", needs="x86_64")
def query_sev(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Whether the guest's memory is encrypted."""
    return {
        "enabled": False,
        "api-major": 0,
        "api-minor": 0,
        "build-id": 0,
        "policy": 0,
        "state": "uninit",
        "handle": 0,
    }


@hmp_command("info sev", help="whether the guest's memory is encrypted", needs="x86_64")
def info_sev(machine: Machine, args: dict[str, Any]) -> str:
    """That it is not."""
    return "SEV is not enabled\n"


@command("query-sev-capabilities", needs="x86_64")
def query_sev_capabilities(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """What the host's processor could encrypt."""
    raise QobraError("KVM not enabled")


@command("query-sev-launch-measure", needs="x86_64")
def query_sev_launch_measure(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """The measurement of an encrypted machine."""
    raise QobraError("SEV launch measurement is not available")

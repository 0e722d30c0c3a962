"""TPM: the reference's section of that name, and what people are told of it."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command
from qobra.tpm import tpms


@command("query-tpm", needs="board")
def query_tpm(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The TPM devices of the machine."""
    return machine.tpms.describe()


@command("query-tpm-models", needs="board")
def query_tpm_models(machine: Machine, args: dict[str, Any]) -> list[str]:
    """The interfaces of TPM devices there are for the machine's architecture."""
    from qobra.machine.tpm.front_end import INTERFACE

    types = machine.objects.all_types().values()
    devices: list[Any] = [cls for cls in types if cls.implements(INTERFACE) and not cls.abstract]
    return sorted({cls.tpm_model for cls in devices})


@command("query-tpm-types", needs="board")
def query_tpm_types(machine: Machine, args: dict[str, Any]) -> list[str]:
    """The kinds of back ends of TPM devices there are."""
    return tpms.kinds()


@hmp_command("info tpm", help="the TPM device, and what carries out its commands", needs="board")
def info_tpm(machine: Machine, args: dict[str, Any]) -> str:
    """Each device with its back end and the settings of that."""
    found = machine.tpms.describe()
    lines = []
    for number, each in enumerate(found):
        kind, data = each["options"]["type"], each["options"]["data"]
        settings = "".join(f",{name}={value}" for name, value in data.items())
        lines.append(f" tpm{number}: model={each['model']}\n  \\ {each['id']}: type={kind}{settings}\n")
    return "TPM device:\n" + "".join(lines) if found else ""

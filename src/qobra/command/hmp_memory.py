"""Memory and the machine's state for people: plugged modules, the generation id, dumps."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command

# Of each kind of device: what is shown, in order, and which values are addresses.
_SHOWN = {
    "dimm": ("addr", "slot", "node", "size", "memdev", "hotplugged", "hotpluggable"),
    "virtio-pmem": ("memaddr", "size", "memdev"),
    "virtio-mem": ("memaddr", "node", "requested-size", "size", "max-size", "block-size", "memdev"),
}
_ADDRESSES = ("addr", "memaddr")


@hmp_command("info memory-devices", help="DIMMs and the like", needs="board")
def info_memory_devices(machine: Machine, args: dict[str, Any]) -> str:
    """Each memory device."""
    lines = []
    for device in dispatch.call(machine, "query-memory-devices", {}):
        kind, data = device["type"], device["data"]
        lines.append(f'Memory device [{kind}]: "{data.get("id", "")}"')
        for name in _SHOWN.get(kind, _SHOWN["dimm"]):
            value = data[name]
            shown = f"0x{value:x}" if name in _ADDRESSES else str(value).lower() if isinstance(value, bool) else value
            lines.append(f"  {name}: {shown}")
    return "".join(f"{line}\n" for line in lines)


@hmp_command("info vm-generation-id", help="the generation ID that the guest sees", needs="board")
def info_generation(machine: Machine, args: dict[str, Any]) -> str:
    """What the guest compares to see if it was cloned."""
    return f"{dispatch.call(machine, 'query-vm-generation-id', {})['guid']}\n"


@hmp_command("info dump", help="how far the last dump is", needs="board")
def info_dump(machine: Machine, args: dict[str, Any]) -> str:
    """How far the last dump is."""
    found = dispatch.call(machine, "query-dump", {})
    text = f"Status: {found['status']}\n"
    if found["status"] == "active":
        text += f"Finished: {100 * found['completed'] / max(found['total'], 1):.2f} %\n"
    return text

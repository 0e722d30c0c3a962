"""The user mode network for people: its connections, and ports of the host that lead to the guest."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.net.netdev import Netdev
from qobra.qmp.hmp import hmp_command


def _backends(machine: Machine) -> list[Any]:
    # By kind: whose class it is need not be loaded, nor the library, where nobody uses it.
    return [each for each in machine.netdevs if each.kind == "user"]


def _backend(machine: Machine, id: str | None) -> Any:
    backends = _backends(machine)
    if id is None:
        if not backends:
            raise QobraError("user mode network stack not in use")
        return backends[0]
    for each in backends:
        if each.id == id:
            return each
    if any(each.id == id for each in machine.netdevs):
        raise QobraError("invalid device specified")
    raise QobraError(f"unrecognized netdev id '{id}'")


def _hub(backend: Netdev) -> int:
    number = backend.peer.hub if isinstance(backend.peer, Netdev) else None
    return -1 if number is None else number


@hmp_command("info usernet", help="connections of user mode networks", needs="board")
def info_usernet(machine: Machine, args: dict[str, Any]) -> str:
    """A table for each."""
    return "".join(f"Hub {_hub(each)} ({each.id}):\n{each.connections()}" for each in _backends(machine))


@hmp_command(
    "hostfwd_add",
    args="arg1:s,arg2:s?",
    params="[netdev_id] [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport",
    help="lead a port of the host's to the guest, through a user mode network",
    needs="board",
)
def hostfwd_add(machine: Machine, args: dict[str, Any]) -> str:
    """Add a rule, to the first such network if none is named. What fails is said without the ``Error:`` of others."""
    *id, rule = args.values()
    try:
        _backend(machine, id[0] if id else None).forward(rule)
    except QobraError as error:
        return f"{error}\n"
    return ""


@hmp_command(
    "hostfwd_remove",
    args="arg1:s,arg2:s?",
    params="[netdev_id] [tcp|udp]:[hostaddr]:hostport",
    help="do so no longer",
    needs="board",
)
def hostfwd_remove(machine: Machine, args: dict[str, Any]) -> str:
    """Remove a rule; connections that are there go on."""
    from qobra.net.forwarding import host_end

    *id, end = args.values()
    try:
        removed = _backend(machine, id[0] if id else None).forward_no_more(host_end(end))
    except QobraError as error:
        return f"{error}\n"
    return f"host forwarding rule for {end} {'removed' if removed else 'not found'}\n"

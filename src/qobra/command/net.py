"""Networking over QMP: backends, links, receive filters."""

from __future__ import annotations

from typing import Any

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.machine import Machine
from qobra.machine.nic import cards
from qobra.object.tree import is_identifier
from qobra.qmp.registry import command, events

events("FAILOVER_NEGOTIATED", needs="board")


@command("netdev_add", needs="board")
def netdev_add(machine: Machine, args: dict[str, Any]) -> None:
    """Make a network backend."""
    if not is_identifier(args["id"]):
        raise QobraError("Parameter 'id' expects an identifier")
    machine.netdevs.create(args)


@command("netdev_del", needs="board")
def netdev_del(machine: Machine, args: dict[str, Any]) -> None:
    """Remove a network backend."""
    machine.netdevs.remove(args["id"])


@command("set_link", needs="board")
def set_link(machine: Machine, args: dict[str, Any]) -> None:
    """Pull or plug the cable of a backend or a card."""
    name, up = args["name"], args["up"]
    backend = machine.netdevs.find(name)
    if backend is not None:
        backend.link_up = up
        if backend.peer is not None:
            backend.peer.link_changed()
        return
    for nic in cards(machine):
        if name in nic.names():
            nic.link_forced_down = not up
            nic.link_changed()
            return
    raise QobraError(f"Device '{name}' not found", DEVICE_NOT_FOUND)


@command("query-rx-filter", needs="board")
def query_rx_filter(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """What each card receives."""
    wanted, result = args.get("name"), []
    for nic in cards(machine):
        if wanted is not None and wanted not in nic.names():
            continue
        info = nic.rx_filter()
        if info is not None:
            result.append(info)
        elif wanted is not None:
            raise QobraError(f"net client({wanted}) doesn't support rx-filter querying")
    if wanted is not None and not result:
        if machine.netdevs.find(wanted) is not None:
            raise QobraError(f"net client({wanted}) isn't a NIC")
        raise QobraError(f"invalid net client name: {wanted}")
    return result


@command("announce-self", needs="board")
def announce_self(machine: Machine, args: dict[str, Any]) -> None:
    """Have the cards make themselves known to the network, as after a move."""
    machine.announce(args)

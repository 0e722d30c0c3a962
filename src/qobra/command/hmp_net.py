"""The network for people: what is plugged into what, backends that come and go, links."""

from __future__ import annotations

from typing import Any

from qobra.chardev.options import pairs
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.machine.nic import Nic, cards
from qobra.net.netdev import Netdev, help_text, with_lists
from qobra.object.help import asks_help
from qobra.object.tree import is_identifier
from qobra.qapi.contract import contract
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command


@hmp_command("info network", help="network cards and backends, and which are connected", needs="board")
def info_network(machine: Machine, args: dict[str, Any]) -> str:
    """Hubs with their ports, cards with their backends, and backends that are plugged into nothing."""
    lines: list[str] = []
    of_hubs: set[Netdev] = set()
    for number, ports in reversed(machine.netdevs.hubs.items()):
        lines.append(f"hub {number}")
        for port in reversed(ports):
            of_hubs.add(port)
            lower = getattr(port, "lower", None)
            if lower is not None:
                of_hubs.add(lower)
                lines.append(f" \\ {port.id}: {_backend_line(lower)}")
            elif isinstance(port.peer, Nic):
                lines.append(f" \\ {port.id}: {_card_line(port.peer)}")
            else:
                lines.append(f" \\ {port.id}")
    for nic in cards(machine):
        if nic.backend not in of_hubs:
            lines.append(_card_line(nic))
            if nic.backend is not None:
                lines.append(f" \\ {_backend_line(nic.backend)}")
    lines += [_backend_line(each) for each in machine.netdevs if each not in of_hubs and each.peer is None]
    return "".join(f"{line}\n" for line in lines)


def _card_line(nic: Nic) -> str:
    return f"{nic.client_name}: index=0,type=nic,model={nic.model},macaddr={nic.address.hex(':')}"


def _backend_line(backend: Netdev) -> str:
    line = f"{backend.id}: index=0,type={backend.describe()}"
    if backend.filters:
        line += "\nfilters:" + "".join(f"\n  - {each.id}: {each.description()}" for each in backend.filters)
    return line


@hmp_command(
    "netdev_add",
    args="netdev:O",
    params="TYPE,id=str[,prop=value][,...]",
    help="make a network backend, with -netdev's options",
    needs="board",
)
def netdev_add(machine: Machine, args: dict[str, Any]) -> str | None:
    """Make a network backend, as -netdev does."""
    given = pairs(args["netdev"], "type")
    options = dict(given)
    if asks_help(options.get("type", "")):
        return help_text()
    if "id" not in options:
        raise QobraError("Parameter 'id' is missing")
    if not is_identifier(options["id"]) or machine.netdevs.find(options["id"]) is not None:
        return 'Try "help netdev_add" for more information\n'  # as QEMU, which says no more here
    dispatch.call(machine, "netdev_add", contract().check("Netdev", with_lists(options, given), keyval=True))
    return None


@hmp_command("netdev_del", args="id:s", params="id", help="delete a network backend", needs="board")
def netdev_del(machine: Machine, args: dict[str, Any]) -> None:
    """Remove a network backend."""
    dispatch.call(machine, "netdev_del", {"id": args["id"]})


@hmp_command(
    "set_link",
    args="name:s,up:b",
    params="name on|off",
    help="plug a network card's cable in, or pull it",
    needs="board",
)
def set_link(machine: Machine, args: dict[str, Any]) -> None:
    """Pull or plug a cable."""
    dispatch.call(machine, "set_link", {"name": args["name"], "up": args["up"]})


@hmp_command(
    "announce_self",
    args="interfaces:s?,id:s?",
    params="[interfaces] [id]",
    help="tell the network again where the guest's cards are",
    needs="board",
)
def announce_self(machine: Machine, args: dict[str, Any]) -> None:
    """Have the cards, or those named, make themselves known."""
    options: dict[str, Any] = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
    if "interfaces" in args:
        options["interfaces"] = args["interfaces"].split(",")
    if "id" in args:
        options["id"] = args["id"]
    dispatch.call(machine, "announce-self", options)

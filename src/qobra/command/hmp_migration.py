"""The human monitor's commands for migration."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.migration.settings import CAPABILITIES, DEFAULTS
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command
from qobra.units import UINT64_MAX, NotANumber, OutOfRange, integer, not_a_size, parse_size

_UNITS = {
    "announce-initial": " ms",
    "announce-max": " ms",
    "announce-step": " ms",
    "max-bandwidth": " bytes/second",
    "downtime-limit": " ms",
    "x-checkpoint-delay": " ms",
    "xbzrle-cache-size": " bytes",
}
_SIZES = (
    "announce-initial",
    "announce-max",
    "announce-rounds",
    "announce-step",
    "downtime-limit",
    "max-postcopy-bandwidth",
    "xbzrle-cache-size",
)
"""Numbers that take the suffixes of sizes, though few of them count bytes."""
_NOT_SHOWN = ("multifd-zlib-level", "multifd-zstd-level")


@hmp_command(
    "migrate",
    args="detach:-d,blk:-b,inc:-i,resume:-r,uri:s",
    params="[-d] [-b] [-i] [-r] uri",
    help="send the machine to a URI (-d: do not wait for it)",
    needs="board",
)
def migrate(machine: Machine, args: dict[str, Any]) -> None:
    """Send the machine to another."""
    dispatch.call(machine, "migrate", args)


@hmp_command("migrate_cancel", help="give up the migration that runs", needs="board")
def migrate_cancel(machine: Machine, args: dict[str, Any]) -> None:
    """Give the migration up."""
    dispatch.call(machine, "migrate_cancel", {})


@hmp_command(
    "migrate_continue",
    args="state:s",
    params="state",
    help="let a migration go on that waits in a state",
    needs="board",
)
def migrate_continue(machine: Machine, args: dict[str, Any]) -> None:
    """Go on with a migration that waits."""
    dispatch.call(machine, "migrate-continue", args)


@hmp_command(
    "migrate_incoming",
    args="uri:s",
    params="uri",
    help="take a machine in from a URI, after -incoming defer",
    needs="board",
)
def migrate_incoming(machine: Machine, args: dict[str, Any]) -> None:
    """Wait for a migration."""
    dispatch.call(machine, "migrate-incoming", args)


@hmp_command(
    "migrate_start_postcopy",
    help="let the machine run at the destination at once, and send what memory is left after it",
    needs="board",
)
def migrate_start_postcopy(machine: Machine, args: dict[str, Any]) -> None:
    """Let the machine go on at the other side now."""
    dispatch.call(machine, "migrate-start-postcopy", {})


@hmp_command("migrate_pause", help="break a migration off while memory follows the machine", needs="board")
def migrate_pause(machine: Machine, args: dict[str, Any]) -> None:
    """Break off while memory follows the machine."""
    dispatch.call(machine, "migrate-pause", {})


@hmp_command(
    "migrate_recover",
    args="uri:s",
    params="uri",
    help="wait for the rest of memory to come from a URI",
    needs="board",
)
def migrate_recover(machine: Machine, args: dict[str, Any]) -> None:
    """Wait for the rest of memory to come another way."""
    dispatch.call(machine, "migrate-recover", args)


@hmp_command(
    "migrate_set_capability",
    args="capability:s,state:b",
    params="capability state",
    help="turn a capability of migration on or off",
    needs="board",
)
def migrate_set_capability(machine: Machine, args: dict[str, Any]) -> None:
    """Switch a capability."""
    if args["capability"] not in CAPABILITIES:
        raise QobraError(f"invalid parameter value: {args['capability']}")
    dispatch.call(machine, "migrate-set-capabilities", {"capabilities": [args]})


@hmp_command(
    "migrate_set_parameter",
    args="parameter:s,value:s",
    params="parameter value",
    help="change a parameter of migration",
    needs="board",
)
def migrate_set_parameter(machine: Machine, args: dict[str, Any]) -> None:
    """Set a parameter; sizes take suffixes, and ``max-bandwidth`` without one is in mebibytes."""
    name, text = args["parameter"].replace("_", "-"), args["value"]
    if name not in DEFAULTS and name != "block-bitmap-mapping":
        raise QobraError(f"invalid parameter value: {args['parameter']}")
    if name == "block-bitmap-mapping":
        raise QobraError("The block-bitmap-mapping parameter can only be set through QMP")
    dispatch.call(machine, "migrate-set-parameters", {name: _value(name, text)})


def _value(name: str, text: str) -> Any:
    default = DEFAULTS[name]
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("on", "off"):
            raise QobraError(f"Parameter '{name}' expects 'on' or 'off'")
        return text == "on"
    if name in _SIZES:
        return _size(name, text)
    if name == "max-bandwidth":
        return _bandwidth(text)
    number = integer(text)
    if number is None or not -(1 << 63) <= number <= UINT64_MAX:
        raise QobraError(f"Parameter '{name}' expects uint64")
    return number


def _size(name: str, text: str) -> int:
    try:
        return parse_size(text)
    except OutOfRange as error:
        raise QobraError(f"Value '{text}' is out of range for parameter '{name}'") from error
    except NotANumber as error:
        raise not_a_size(name) from error


def _bandwidth(text: str) -> int:
    """Bytes; a number alone counts mebibytes."""
    alone = text[-1:].isdigit() and not text.lower().startswith("0x")
    try:
        return parse_size(f"{text}M" if alone else text)
    except (NotANumber, OutOfRange) as error:
        raise QobraError(f"Invalid size {text}") from error


@hmp_command("info migrate_capabilities", help="what migration may do", needs="board")
def info_migrate_capabilities(machine: Machine, args: dict[str, Any]) -> str:
    """Which capabilities are on."""
    found = dispatch.call(machine, "query-migrate-capabilities", {})
    return "".join(f"{each['capability']}: {'on' if each['state'] else 'off'}\n" for each in found)


@hmp_command("info migrate_parameters", help="the limits and settings of migration", needs="board")
def info_migrate_parameters(machine: Machine, args: dict[str, Any]) -> str:
    """All parameters."""
    found = dispatch.call(machine, "query-migrate-parameters", {})
    lines = []
    for name in DEFAULTS:
        value = found[name]
        if name in _NOT_SHOWN:
            continue
        if isinstance(value, bool):
            value = "on" if value else "off"
        elif name.startswith("tls-"):
            value = f"'{value}'"
        lines.append(f"{name}: {value}{_UNITS.get(name, '')}\n")
    if "block-bitmap-mapping" in found:
        lines.append("block-bitmap-mapping:\n")
        for node in found["block-bitmap-mapping"]:
            lines.append(f"  '{node['node-name']}' -> '{node['alias']}'\n")
            lines += [f"    '{each['name']}' -> '{each['alias']}'\n" for each in node["bitmaps"]]
    return "".join(lines)


@hmp_command("info migrate", help="how far the last migration is", needs="board")
def info_migrate(machine: Machine, args: dict[str, Any]) -> str:
    """How the current or the last migration is going."""
    info = dispatch.call(machine, "query-migrate", {})
    lines = []
    if "blocked-reasons" in info:
        lines = ["Outgoing migration blocked:\n", *(f"  {reason}\n" for reason in info["blocked-reasons"])]
    if "status" in info:
        why = f" ({info['error-desc']})" if "error-desc" in info else ""
        lines.append(f"Migration status: {info['status']}{why}\n")
    for key, label in (
        ("total-time", "total time"),
        ("expected-downtime", "expected downtime"),
        ("downtime", "downtime"),
        ("setup-time", "setup"),
    ):
        if key in info:
            lines.append(f"{label}: {info[key]} ms\n")
    if "ram" in info:
        ram = info["ram"]
        lines += [
            f"transferred ram: {ram['transferred'] >> 10} kbytes\n",
            f"throughput: {ram['mbps']:.2f} mbps\n",
            f"remaining ram: {ram['remaining'] >> 10} kbytes\n",
            f"total ram: {ram['total'] >> 10} kbytes\n",
            f"duplicate: {ram['duplicate']} pages\n",
            f"skipped: {ram['skipped']} pages\n",
            f"normal: {ram['normal']} pages\n",
            f"normal bytes: {ram['normal-bytes'] >> 10} kbytes\n",
            f"dirty sync count: {ram['dirty-sync-count']}\n",
            f"page size: {ram['page-size'] >> 10} kbytes\n",
            f"multifd bytes: {ram['multifd-bytes'] >> 10} kbytes\n",
            f"pages-per-second: {ram['pages-per-second']}\n",
        ]
    for key in ("transferred", "remaining", "total") if "disk" in info else ():
        lines.append(f"{key} disk: {info['disk'][key] >> 10} kbytes\n")
    if "socket-address" in info:
        lines += ["socket address: [\n", *(f"\t{_where(address)}\n" for address in info["socket-address"]), "]\n"]
    return "".join(lines)


def _where(address: dict[str, Any]) -> str:
    where = address.get("path") or f"{address.get('host', address.get('cid'))}:{address['port']}"
    return f"{'tcp' if address['type'] == 'inet' else address['type']}:{where}"

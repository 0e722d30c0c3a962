"""VNC servers over QMP and for people: state, passwords."""

from __future__ import annotations

import time
from typing import Any

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command, events

events("VNC_CONNECTED", "VNC_INITIALIZED", "VNC_DISCONNECTED", needs="board")

_KEEP, _FAIL, _DISCONNECT = "keep", "fail", "disconnect"


@command("query-vnc", needs="board")
def query_vnc(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """The first server, by its first socket."""
    server = machine.vnc.first()
    place = server.listens_at() if server is not None else None
    if server is None or place is None:
        return {"enabled": False}
    where = {name: place[name] for name in ("host", "service", "family", "auth")}
    return {"enabled": True, **where, "clients": server.clients()}


@command("query-vnc-servers", needs="board")
def query_vnc_servers(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """All servers, the latest first."""
    return [server.describe() for server in machine.vnc][::-1]


@command("change-vnc-password", needs="board")
def change_vnc_password(machine: Machine, args: dict[str, Any]) -> None:
    """Give the first server another password."""
    set_vnc_password(machine, args["password"])


@command("set_password", needs="board")
def set_password(machine: Machine, args: dict[str, Any]) -> None:
    """The same, with a choice of what becomes of those who are in already."""
    connected = args.get("connected", _KEEP)
    if connected not in (_KEEP, _FAIL, _DISCONNECT):
        raise QobraError("Invalid parameter 'connected'")
    _check_protocol(args["protocol"])
    server = machine.vnc.first()
    if server is not None and server.has_clients and connected == _FAIL:
        raise QobraError("Could not set password")
    set_vnc_password(machine, args["password"])
    if server is not None and connected == _DISCONNECT:
        server.disconnect()


@command("expire_password", needs="board")
def expire_password(machine: Machine, args: dict[str, Any]) -> None:
    """Say until when the first server's password is valid."""
    _check_protocol(args["protocol"])
    server = machine.vnc.first()
    if server is None:
        raise QobraError("Could not set password expire time")
    server.security.expire(_moment(args["time"]))


def set_vnc_password(machine: Machine, password: str | None) -> None:
    """Give the first server another password. Raises QobraError."""
    if password is None:
        raise QobraError("Parameter 'password' is missing")
    server = machine.vnc.first()
    if server is None:
        raise QobraError("Could not set password")
    server.security.set_password(password)


def _check_protocol(name: str) -> None:
    if name == "spice":
        raise QobraError("SPICE is not in use", DEVICE_NOT_FOUND)  # as the manual says
    if name != "vnc":
        raise QobraError("Invalid parameter 'protocol'")


def _moment(text: str) -> float | None:
    """``now``, ``never``, ``+SECONDS`` or seconds since the epoch; None for never."""
    if text == "never":
        return None
    if text == "now":
        return time.time()
    relative = text.startswith("+")
    digits = text[1:] if relative else text
    if not (digits.isascii() and digits.isdigit()):
        raise QobraError("Parameter 'time' expects 'now', 'never', '+INT' or 'INT'")
    return int(digits) + (time.time() if relative else 0)


@hmp_command("info vnc", help="the VNC servers and who looks on", needs="board")
def info_vnc(machine: Machine, args: dict[str, Any]) -> str:
    """All servers with their sockets and clients."""
    text = ""
    for server in query_vnc_servers(machine, {}):
        text += f"{server['id']}:\n"
        for each in server["server"]:
            text += f"  Server: {_address(each)}\n    Auth: {_auth(each)}\n"
        for each in server["clients"]:
            text += f"  Client: {_address(each)}\n    x509_dname: {each.get('x509_dname', 'none')}\n"
            text += f"    sasl_username: {each.get('sasl_username', 'none')}\n"
        if not server["server"]:
            text += f"  Auth: {_auth(server)}\n"
    return text or "None\n"


def _auth(where: dict[str, Any]) -> str:
    return f"{where['auth']} (Sub: {where.get('vencrypt', 'none')})"


def _address(end: dict[str, Any]) -> str:
    return f"{end['host']}:{end['service']} ({end['family']}{' (Websocket)' if end['websocket'] else ''})"


@hmp_command(
    "set_password", args="protocol:s,password:s,connected:s?", params="protocol password [action-if-connected]",
    help="set the password of a VNC server (if clients are connected: keep, fail or disconnect)", needs="board",
)  # fmt: skip
def hmp_set_password(machine: Machine, args: dict[str, Any]) -> None:
    """Set a password."""
    dispatch.call(machine, "set_password", args)


@hmp_command(
    "expire_password", args="protocol:s,time:s", params="protocol time",
    help="set when a VNC server's password ends: now, never, +seconds, or seconds since 1970", needs="board",
)  # fmt: skip
def hmp_expire_password(machine: Machine, args: dict[str, Any]) -> None:
    """Set when a password ends."""
    dispatch.call(machine, "expire_password", args)

"""File descriptors from the peer: by name, and in sets that ``/dev/fdset/N`` opens."""

from __future__ import annotations

import os
from typing import Any

from qobra.errors import DEVICE_NOT_ACTIVE, QobraError
from qobra.machine.machine import Machine
from qobra.qmp.hmp import HmpMonitor, hmp_command
from qobra.qmp.registry import command
from qobra.qmp.session import Session

_DISPLAYS = {"spice": "SPICE", "vnc": "VNC"}


def _received(session: Session | None) -> int:
    fd = session.take_fd() if session is not None else None
    if fd is None:
        raise QobraError("No file descriptor supplied via SCM_RIGHTS")
    return fd


@command("getfd", with_session=True)
def getfd(machine: Machine, args: dict[str, Any], session: Session | None) -> None:
    """Name the descriptor that came along."""
    machine.fdsets.put_named(args["fdname"], _received(session))


@command("closefd")
def closefd(machine: Machine, args: dict[str, Any]) -> None:
    """Close a named descriptor."""
    machine.fdsets.close_named(args["fdname"])


@hmp_command(
    "getfd", args="fdname:s", params="getfd name", help="name the descriptor that came along", with_monitor=True
)
def hmp_getfd(machine: Machine, args: dict[str, Any], monitor: HmpMonitor) -> None:
    """The same, in a human monitor on a socket."""
    fd = monitor.take_fd()
    if fd is None:
        raise QobraError("No file descriptor supplied via SCM_RIGHTS")
    machine.fdsets.put_named(args["fdname"], fd)


@hmp_command("closefd", args="fdname:s", params="closefd name", help="close a named descriptor")
def hmp_closefd(machine: Machine, args: dict[str, Any]) -> None:
    """The same, in a human monitor."""
    closefd(machine, args)


@command("add-fd", with_session=True)
def add_fd(machine: Machine, args: dict[str, Any], session: Session | None) -> dict[str, Any]:
    """Put the descriptor that came along into a set."""
    return machine.fdsets.add(_received(session), args.get("fdset-id"), args.get("opaque"))


@command("remove-fd")
def remove_fd(machine: Machine, args: dict[str, Any]) -> None:
    """Take one descriptor, or all, out of a set."""
    machine.fdsets.remove(args["fdset-id"], args.get("fd"))


@command("query-fdsets")
def query_fdsets(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """All sets."""
    return machine.fdsets.query()


@command("add_client", needs="board")
def add_client(machine: Machine, args: dict[str, Any]) -> None:
    """Hand the named descriptor, a connected socket, to the VNC server, or a socket character device without client."""
    fd = machine.fdsets.take_named(args["fdname"])
    protocol = args["protocol"]
    device = machine.chardevs.find(protocol)
    if device is None:
        if protocol == "vnc" and (server := machine.vnc.first()) is not None:
            server.adopt(fd, known=args.get("skipauth", False))
            return
        os.close(fd)
        if protocol in _DISPLAYS:
            raise QobraError(f"{_DISPLAYS[protocol]} is not in use", DEVICE_NOT_ACTIVE)
        raise QobraError(f"protocol '{protocol}' is invalid")
    if not device.add_client(fd):
        raise QobraError("failed to add client")

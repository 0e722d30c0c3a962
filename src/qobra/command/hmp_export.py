"""The human monitor's commands for the NBD server."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command


@hmp_command(
    "nbd_server_start",
    args="all:-a,writable:-w,uri:s",
    params="nbd_server_start [-a] [-w] host:port",
    help="wait for NBD clients at an address",
)
def nbd_server_start(machine: Machine, args: dict[str, Any]) -> str:
    """Listen; with -a export every device that has a medium."""
    everything, writable = args.get("all", False), args.get("writable", False)
    from qobra.socket_address import parse_socket_address

    if writable and not everything:
        raise QobraError("-w only valid together with -a")
    exports = machine.block.exports
    exports.start_nbd_server(parse_socket_address(args["uri"]))
    if everything:
        try:
            for name, backend in machine.block.backends.items():
                if backend.node is not None:
                    exports.add_nbd({"device": name, "writable": writable})
        except QobraError:
            exports.stop_nbd_server()
            raise
    return ""


@hmp_command(
    "nbd_server_add",
    args="writable:-w,device:B,name:s?",
    params="nbd_server_add [-w] device [name]",
    help="let NBD clients have a device",
)
def nbd_server_add(machine: Machine, args: dict[str, Any]) -> str:
    """Export one device."""
    machine.block.exports.add_nbd(args)
    return ""


@hmp_command(
    "nbd_server_remove",
    args="force:-f,name:s",
    params="nbd_server_remove [-f] name",
    help="take a device away from NBD clients",
)
def nbd_server_remove(machine: Machine, args: dict[str, Any]) -> str:
    """Remove an export, with -f although clients use it."""
    machine.block.exports.remove_nbd(args["name"], "hard" if args.get("force") else "safe")
    return ""


@hmp_command(
    "nbd_server_stop",
    params="nbd_server_stop",
    help="send NBD clients away, and wait for no more",
)
def nbd_server_stop(machine: Machine, args: dict[str, Any]) -> str:
    """Stop the server."""
    machine.block.exports.stop_nbd_server(required=True)
    return ""

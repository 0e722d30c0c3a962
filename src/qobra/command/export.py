"""Exports over QMP: the NBD server, block-export-add and -del, and the older nbd-server-add and -remove."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("nbd-server-start")
def nbd_server_start(machine: Machine, args: dict[str, Any]) -> None:
    """Listen for NBD clients."""
    address = {"type": args["addr"]["type"], **args["addr"]["data"]}  # SocketAddressLegacy wraps what is in it
    machine.block.exports.start_nbd_server(
        address,
        tls_creds=args.get("tls-creds"),
        tls_authz=args.get("tls-authz"),
        max_connections=args.get("max-connections", 0),
    )


@command("nbd-server-stop")
def nbd_server_stop(machine: Machine, args: dict[str, Any]) -> None:
    """Disconnect all NBD clients and drop the NBD exports."""
    machine.block.exports.stop_nbd_server(required=True)


@command("nbd-server-add")
def nbd_server_add(machine: Machine, args: dict[str, Any]) -> None:
    """Export a device or node under a name."""
    machine.block.exports.add_nbd(args)


@command("nbd-server-remove")
def nbd_server_remove(machine: Machine, args: dict[str, Any]) -> None:
    """Remove what nbd-server-add made."""
    machine.block.exports.remove_nbd(args["name"], args.get("mode", "safe"))


@command("block-export-add")
def block_export_add(machine: Machine, args: dict[str, Any]) -> None:
    """Export a node."""
    machine.block.exports.add(args)


@command("block-export-del")
def block_export_del(machine: Machine, args: dict[str, Any]) -> None:
    """Begin to remove an export."""
    machine.block.exports.remove(args["id"], args.get("mode", "safe"))


@command("query-block-exports")
def query_block_exports(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """All exports."""
    return machine.block.exports.query()

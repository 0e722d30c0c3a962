"""Removable media over QMP: trays, eject, and changing what lies in a drive."""

from __future__ import annotations

from typing import Any

from qobra.block import media
from qobra.command.vnc import set_vnc_password
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


def _backend(machine: Machine, args: dict[str, Any]) -> Any:
    return media.find_backend(machine.block, args.get("device"), args.get("id"))


def _called(args: dict[str, Any]) -> str:
    name: str = args["device"] if "device" in args else args["id"]
    return name


@command("blockdev-open-tray")
def blockdev_open_tray(machine: Machine, args: dict[str, Any]) -> None:
    """Open a tray; where the guest has it locked, ask the guest."""
    try:
        media.open_tray(_backend(machine, args), _called(args), force=args.get("force", False))
    except media.TrayLocked:
        pass  # the guest was asked; that is all that was wanted


@command("blockdev-close-tray")
def blockdev_close_tray(machine: Machine, args: dict[str, Any]) -> None:
    """Close a tray."""
    media.close_tray(_backend(machine, args), _called(args))


@command("blockdev-remove-medium")
def blockdev_remove_medium(machine: Machine, args: dict[str, Any]) -> None:
    """Take the medium out."""
    media.remove_medium(machine.block.find_qdev(args["id"]), args["id"])


@command("blockdev-insert-medium")
def blockdev_insert_medium(machine: Machine, args: dict[str, Any]) -> None:
    """Put a node into a drive."""
    _insert(machine, machine.block.find_qdev(args["id"]), args["node-name"])


def _insert(machine: Machine, backend: Any, node_name: str) -> None:
    node = machine.block.graph.find(node_name)
    if node is None:
        raise QobraError(f"Node '{node_name}' not found")
    if machine.block.graph.roots_of(node):
        raise QobraError(f"Node '{node_name}' is already in use")
    media.insert_medium(backend, node)


@command("blockdev-change-medium")
def blockdev_change_medium(machine: Machine, args: dict[str, Any]) -> None:
    """Open an image and put it into a drive."""
    media.change_medium(
        _backend(machine, args),
        _called(args),
        args["filename"],
        format=args.get("format"),
        read_only_mode=args.get("read-only-mode", "retain"),
        force=args.get("force", False),
    )


@command("eject")
def eject(machine: Machine, args: dict[str, Any]) -> None:
    """Open the tray and take the medium out."""
    media.eject(_backend(machine, args), _called(args), force=args.get("force", False))


@command("change")
def change(machine: Machine, args: dict[str, Any]) -> None:
    """Change a drive's medium: the old form of blockdev-change-medium (and for VNC, the password or the address)."""
    if args["device"] == "vnc":
        if args["target"] in ("password", "passwd"):
            set_vnc_password(machine, args.get("arg"))
            return
        machine.vnc.change(args["target"])
        return
    backend = machine.block.find_backend(args["device"])
    media.change_medium(backend, args["device"], args["target"], format=args.get("arg"))


@command("block_passwd")
def block_passwd(machine: Machine, args: dict[str, Any]) -> None:
    """Refused since 2.10: keys are secret objects."""
    raise QobraError("Setting block passwords directly is no longer supported")

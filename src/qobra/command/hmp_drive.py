"""The human monitor's commands that add and take away drives."""

from __future__ import annotations

from typing import Any

from qobra.block.media import leave_throttle
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command

_CLASSES = ("none", "ide", "scsi", "floppy", "pflash", "mtd", "sd", "virtio", "xen")


@hmp_command(
    "drive_add",
    args="node:-n,pci_addr:s,opts:s",
    params="[-n] [[<domain>:]<bus>:]<slot>\n"
    "[file=file][,if=type][,bus=n]\n"
    "[,unit=m][,media=d][,index=i]\n"
    "[,snapshot=on|off][,cache=on|off]\n"
    "[,readonly=on|off][,copy-on-read=on|off]",
    help="make a drive, with -drive's options",
    needs="board",
)
def drive_add(machine: Machine, args: dict[str, Any]) -> str:
    """A drive for a device that is added later, or with ``-n`` a node."""
    if args.get("node"):
        from qobra.qapi.contract import contract
        from qobra.qapi.keyval import parse

        try:
            options = parse(args["opts"], "driver")
            if "node-name" not in options:
                return "'node-name' needs to be specified\n"
            machine.block.add_node(contract().check("BlockdevOptions", options, keyval=True))
        except QobraError as error:
            return f"{error}\n"
        return ""
    from qobra.machine.drive import DriveInfo, Drives

    assert machine.board is not None
    drives = Drives(machine, default_interface=machine.board.default_drive_interface)
    # Those that are there have their numbers, from which names are made.
    for unit, backend in enumerate(machine.block.backends.values()):
        drives.drives.append(DriveInfo(backend, "none", 0, unit, "disk"))
    try:
        drive = drives.add_text(args["opts"])
    except QobraError as error:
        return f"{error}\n"
    if drive.interface != "none":
        machine.block.backends.pop(drive.backend.name)
        drive.backend.remove()
        return f"Can't hot-add drive to type {_CLASSES.index(drive.interface)}\n"
    return "OK\n"


@hmp_command("drive_del", args="id:B", params="device", help="take a drive away from under its device", needs="board")
def drive_del(machine: Machine, args: dict[str, Any]) -> str:
    """Take a drive from under its device, whose requests fail from then on; or let go of a node."""
    name = args["id"]
    layer = machine.block
    backend = layer.backends.get(name)
    try:
        if layer.graph.find(name) is not None:
            layer.delete_node(name)
            return ""
        if backend is None:
            return f"Device '{name}' not found\n"
        if backend.node is not None:
            layer.check_blockers(backend.node)
    except QobraError as error:
        return f"{error}\n"
    leave_throttle(backend)
    backend.remove()
    # The device keeps the backend, but nobody can name it any more.
    del layer.backends[name]
    backend.name = ""
    if backend.policy is not None:
        backend.policy.report_all()
    return ""

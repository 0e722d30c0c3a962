"""The human monitor's commands for media, statistics, limits and the commit of all that a snapshot holds."""

from __future__ import annotations

import os
from typing import Any

from qobra.block.job.chain import skip_implicit
from qobra.command.vnc import set_vnc_password
from qobra.errors import QobraError, errno_of
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command

_STATS = ("rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "flush_operations") + (
    *("wr_total_time_ns", "rd_total_time_ns", "flush_total_time_ns", "rd_merged", "wr_merged", "idle_time_ns"),
)


@hmp_command(
    "commit",
    args="device:B",
    params="device|all",
    help="write what a drive's overlay holds into its backing file",
)
def commit(machine: Machine, args: dict[str, Any]) -> str:
    """Put what an image holds into its backing file, at once."""
    name = args["device"]
    layer = machine.block
    if name == "all":
        for backend in list(layer.backends.values()):
            if backend.node is not None and skip_implicit(backend.node).backing is not None:
                try:
                    _commit(machine, backend.node)
                except (OSError, QobraError) as error:
                    return f"'commit' error for 'all': {os.strerror(errno_of(error))}\n"
        return ""
    found = layer.backends.get(name)
    if found is None:
        return f"Device '{name}' not found\n"
    if found.node is None:
        return f"Device '{name}' has no medium\n"
    try:
        _commit(machine, found.node)
    except (OSError, QobraError) as error:
        return f"'commit' error for '{name}': {os.strerror(errno_of(error))}\n"
    return ""


def _commit(machine: Machine, node: Any) -> None:
    from qobra.block.commit_image import commit_image

    commit_image(machine.block, skip_implicit(node))


@hmp_command(
    "eject",
    args="force:-f,device:B",
    params="[-f] device",
    help="open a drive's tray and take the medium out (-f: although the guest locked it)",
)
def eject(machine: Machine, args: dict[str, Any]) -> None:
    """Take a medium out."""
    dispatch.call(machine, "eject", {"device": args["device"], "force": args.get("force", False)})


@hmp_command(
    "change",
    args="device:B,force:-f,target:F,arg:s?,read-only-mode:s?",
    params="device [-f] filename [format [read-only-mode]]",
    help="put another medium into a drive (-f: although the guest locked it)",
)
def change(machine: Machine, args: dict[str, Any]) -> str | None:
    """Put another medium in; or change the password of the VNC server."""
    if args["device"] == "vnc":
        if args["target"] not in ("password", "passwd"):
            return "Expected 'password' after 'vnc'\n"
        set_vnc_password(machine, args.get("arg"))
        return None
    arguments = {"device": args["device"], "filename": args["target"]}
    if "arg" in args:
        arguments["format"] = args["arg"]
    if "read-only-mode" in args:
        arguments["read-only-mode"] = args["read-only-mode"]
    dispatch.call(machine, "blockdev-change-medium", arguments)
    return None


@hmp_command(
    "block_set_io_throttle",
    args="device:B,bps:l,bps_rd:l,bps_wr:l,iops:l,iops_rd:l,iops_wr:l",
    params="device bps bps_rd bps_wr iops iops_rd iops_wr",
    help="limit a drive's bytes and requests in a second",
)
def block_set_io_throttle(machine: Machine, args: dict[str, Any]) -> None:
    """Limit a drive, or a device by its id."""
    limits = dict(args)
    name = limits.pop("device")
    key = "device" if name in machine.block.backends else "id"
    dispatch.call(machine, "block_set_io_throttle", {key: name, **limits})


@hmp_command("info blockstats", help="what devices have read and written")
def info_blockstats(machine: Machine, args: dict[str, Any]) -> str:
    """What block devices have done so far."""
    text = ""
    for device in dispatch.call(machine, "query-blockstats", {}):
        if "device" not in device:
            continue
        stats = device["stats"]
        text += f"{device['device']}: {' '.join(f'{name}={stats.get(name, 0)}' for name in _STATS)}\n"
    return text

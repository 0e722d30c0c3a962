"""The human monitor's commands that start jobs and take snapshots."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command

Args = dict[str, Any]


def _given(args: Args, **names: str) -> Args:
    """The arguments that were given, under the names that QMP has for them."""
    return {name.replace("_", "-"): args[key] for name, key in names.items() if args.get(key) is not None}


def _target(args: Args) -> Args:
    return {
        "device": args["device"],
        "target": args["target"],
        "sync": "full" if args.get("full") else "top",
        "mode": "existing" if args.get("reuse") else "absolute-paths",
        **_given(args, format="format"),
    }


@hmp_command(
    "block_stream",
    args="device:B,speed:o?,base:s?",
    params="device [speed [base]]",
    help="copy what a drive's backing files hold into its image",
)
def block_stream(machine: Machine, args: Args) -> None:
    """Start a stream named after the device."""
    arguments = {"job-id": args["device"], "device": args["device"], **_given(args, speed="speed", base="base")}
    dispatch.call(machine, "block-stream", arguments)


@hmp_command(
    "drive_backup",
    args="reuse:-n,full:-f,compress:-c,device:B,target:s,format:s?",
    params="[-n] [-f] [-c] device target [format]",
    help="copy a device as it is now to an image (-n: one that exists; -f: all of the disk; -c: compressed)",
)
def drive_backup(machine: Machine, args: Args) -> None:
    """Start a backup."""
    dispatch.call(machine, "drive-backup", {**_target(args), "compress": bool(args.get("compress"))})


@hmp_command(
    "drive_mirror",
    args="reuse:-n,full:-f,device:B,target:s,format:s?",
    params="[-n] [-f] device target [format]",
    help="keep an image in step with a device (-n: one that exists; -f: all of the disk)",
)
def drive_mirror(machine: Machine, args: Args) -> None:
    """Start a mirror."""
    dispatch.call(machine, "drive-mirror", _target(args))


@hmp_command(
    "snapshot_blkdev",
    args="reuse:-n,device:B,snapshot-file:s?,format:s?",
    params="[-n] device [new-image-file] [format]",
    help="let a device go on in a new image over its present one (-n: one that exists)",
)
def snapshot_blkdev(machine: Machine, args: Args) -> None:
    """Take an external snapshot."""
    if args.get("snapshot-file") is None:
        raise QobraError("Parameter 'snapshot-file' is missing")
    arguments = {
        "device": args["device"],
        "snapshot-file": args["snapshot-file"],
        "mode": "existing" if args.get("reuse") else "absolute-paths",
        **_given(args, format="format"),
    }
    dispatch.call(machine, "blockdev-snapshot-sync", arguments)


@hmp_command(
    "snapshot_blkdev_internal",
    args="device:B,name:s",
    params="device name",
    help="keep a device's state inside of its image, if the format can",
)
def snapshot_blkdev_internal(machine: Machine, args: Args) -> None:
    """Take an internal snapshot."""
    arguments = {"device": args["device"], "name": args["name"]}
    dispatch.call(machine, "blockdev-snapshot-internal-sync", arguments)


@hmp_command(
    "snapshot_delete_blkdev_internal",
    args="device:B,name:s,id:s?",
    params="device name [id]",
    help="delete an internal snapshot of a device, the one with that id if it is given",
)
def snapshot_delete_blkdev_internal(machine: Machine, args: Args) -> None:
    """Delete an internal snapshot."""
    arguments = {"device": args["device"], "name": args["name"], **_given(args, id="id")}
    dispatch.call(machine, "blockdev-snapshot-delete-internal-sync", arguments)

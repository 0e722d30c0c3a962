"""Snapshots of the whole machine: jobs over QMP, and the human monitor's commands."""

from __future__ import annotations

from functools import partial
from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.migration import snapshots
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command

Args = dict[str, Any]


@command("snapshot-save", needs="board")
def snapshot_save(machine: Machine, args: Args) -> None:
    """Save the machine and some disks."""
    vmstate, devices = args["vmstate"], args["devices"]
    save = partial(snapshots.save, machine, args["tag"], vmstate=vmstate, devices=devices, overwrite=False)
    _start(machine, args["job-id"], "snapshot-save", save)


@command("snapshot-load", needs="board")
def snapshot_load(machine: Machine, args: Args) -> None:
    """Go back to a snapshot."""
    load = partial(snapshots.load, machine, args["tag"], vmstate=args["vmstate"], devices=args["devices"])
    _start(machine, args["job-id"], "snapshot-load", load)


@command("snapshot-delete", needs="board")
def snapshot_delete(machine: Machine, args: Args) -> None:
    """Delete a snapshot."""
    delete = partial(snapshots.delete, machine, args["tag"], devices=args["devices"])
    _start(machine, args["job-id"], "snapshot-delete", delete)


def _start(machine: Machine, job_id: str, kind: str, work: Any) -> None:
    from qobra.migration.snapshot_job import SnapshotJob

    SnapshotJob(machine, job_id, kind, work).start()


@hmp_command(
    "savevm",
    args="name:s?",
    params="tag",
    help="keep the whole machine in a snapshot, under a name that it may have had before",
    needs="board",
)
def savevm(machine: Machine, args: Args) -> None:
    """Save the machine and its disks."""
    snapshots.save(machine, args.get("name"))


@hmp_command("loadvm", args="name:s", params="tag", help="go back to a snapshot of the machine", needs="board")
def loadvm(machine: Machine, args: Args) -> None:
    """Go back to a snapshot."""
    snapshots.load(machine, args["name"])


@hmp_command("delvm", args="name:s", params="tag", help="delete a snapshot of the machine", needs="board")
def delvm(machine: Machine, args: Args) -> None:
    """Delete a snapshot."""
    snapshots.delete(machine, args["name"])


@hmp_command("info snapshots", help="snapshots of the machine", needs="board")
def info_snapshots(machine: Machine, args: Args) -> str:
    """The snapshots that all disks have, and by disk those that they do not."""
    from qobra.block.describe import snapshot_lines

    try:
        disks = snapshots.listing(machine)
    except QobraError as error:
        return f"{error}\n"  # no error of the command
    if not any(found for _name, _keeps, found in disks):
        return "There is no snapshot available.\n"
    names = [{each["name"] for each in found} for _name, _keeps, found in disks]
    kept = next(found for _name, keeps, found in disks if keeps)
    everywhere = [each for each in kept if all(each["name"] in known for known in names)]
    text = "List of snapshots present on all disks:\n"
    text += _lines([{**each, "id": "--"} for each in everywhere], snapshot_lines) if everywhere else "None\n"
    common = {each["name"] for each in everywhere}
    for name, _keeps, found in disks:
        partial_ones = [each for each in found if each["name"] not in common]
        if partial_ones:
            text += f"\nList of partial (non-loadable) snapshots on '{name}':\n" + _lines(partial_ones, snapshot_lines)
    return text


def _lines(found: list[dict[str, Any]], show: Any) -> str:
    return "".join(f"{line}\n" for line in show(found))

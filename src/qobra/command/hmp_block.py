"""The human monitor's commands for nodes, block devices and jobs."""

from __future__ import annotations

from typing import Any

from qobra.block.describe import describe
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command

_THROTTLE = (
    *("bps", "bps_rd", "bps_wr", "bps_max", "bps_rd_max", "bps_wr_max"),
    *("iops", "iops_rd", "iops_wr", "iops_max", "iops_rd_max", "iops_wr_max", "iops_size"),
)


@hmp_command(
    "info block",
    args="nodes:-n,verbose:-v,device:B?",
    params="[-n] [-v] [device]",
    help="drives and their images (-n: all named nodes; -v: in detail)",
)
def info_block(machine: Machine, args: dict[str, Any]) -> str:
    """Block devices, or nodes."""
    wanted, verbose = args.get("device"), args.get("verbose", False)
    text = ""
    if not args.get("nodes"):
        for number, info in enumerate(dispatch.call(machine, "query-block", {})):
            if wanted in (None, info["device"]):
                # As in QEMU, the empty line stands before all but the first there is, shown or not.
                text += ("\n" if number else "") + _device(info, verbose)
    if args.get("nodes") or (wanted is not None and not text):
        for number, info in enumerate(dispatch.call(machine, "query-named-block-nodes", {})):
            if wanted in (None, info["node-name"]):
                text += ("\n" if number else "") + f"{info['node-name']}{_inserted(info)}{_state(info, verbose)}"
    return text


def _device(info: dict[str, Any], verbose: bool) -> str:
    inserted = info.get("inserted")
    node_name = inserted.get("node-name", "") if inserted is not None else ""
    text: str = info["device"]
    if text and node_name:
        text += f" ({node_name})"
    text = (text or node_name or info.get("qdev") or "<anonymous>") + _inserted(inserted)
    if "qdev" in info:
        text += f"    Attached to:      {info['qdev']}\n"
    if info.get("io-status", "ok") != "ok":
        text += f"    I/O status:       {info['io-status']}\n"
    if info["removable"]:
        locked = "" if info["locked"] else "not "
        text += f"    Removable device: {locked}locked, tray {'open' if info.get('tray_open') else 'closed'}\n"
    return text + (_state(inserted, verbose) if inserted is not None else "")


def _inserted(info: dict[str, Any] | None) -> str:
    if info is None:
        return ": [not inserted]\n"
    flags = (", read-only" if info["ro"] else "") + (", encrypted" if info["encrypted"] else "")
    return f": {info['file']} ({info['drv']}{flags})\n"


def _state(info: dict[str, Any], verbose: bool) -> str:
    cache = info["cache"]
    text = f"    Cache mode:       {'writeback' if cache['writeback'] else 'writethrough'}"
    text += (", direct" if cache["direct"] else "") + (", ignore flushes" if cache["no-flush"] else "") + "\n"
    if info.get("backing_file"):
        text += f"    Backing file:     {info['backing_file']} (chain depth: {info['backing_file_depth']})\n"
    if info["detect_zeroes"] != "off":
        text += f"    Detect zeroes:    {info['detect_zeroes']}\n"
    if any(info.get(name) for name in _THROTTLE[:3] + _THROTTLE[6:9]):
        limits = " ".join(f"{name}={info.get(name, 0)}" for name in _THROTTLE)
        text += f"    I/O throttling:   {limits} group={info.get('group', '')}\n"
    if verbose:
        text += "\nImages:\n"
        image: dict[str, Any] | None = info["image"]
        while image is not None:
            text += "".join(line + "\n" for line in describe(image))
            image = image.get("backing-image")
    return text


@hmp_command("info block-jobs", help="block jobs, and how far they are")
def info_block_jobs(machine: Machine, args: dict[str, Any]) -> str:
    """Block jobs."""
    text = ""
    for job in dispatch.call(machine, "query-block-jobs", {}):
        what = "Streaming" if job["type"] == "stream" else f"Type {job['type']},"
        progress = f"Completed {job['offset']} of {job['len']} bytes, speed limit {job['speed']} bytes/s"
        text += f"{what} device {job['device']}: {progress}\n"
    return text or "No active jobs\n"


@hmp_command("info jobs", help="show all jobs")
def info_jobs(machine: Machine, args: dict[str, Any]) -> str:
    """Jobs of every kind."""
    text = ""
    for job in dispatch.call(machine, "query-jobs", {}):
        progress = f"{job['current-progress']} of {job['total-progress']}"
        text += f"{job['id']}: type {job['type']}, {job['status']}, {progress}"
        text += f", error: {job['error']}" if "error" in job else ""
        found = machine.block.jobs.find(job["id"])
        for name, value in found.statistics().items() if found is not None else ():
            text += f", {name}: {value}"
        text += "\n"
    return text or "No jobs\n"


@hmp_command("block_resize", args="device:B,size:o", params="device size", help="change the size of a device")
def block_resize(machine: Machine, args: dict[str, Any]) -> None:
    """Give a node another size."""
    dispatch.call(machine, "block_resize", {"device": args["device"], "size": args["size"]})


@hmp_command(
    "block_job_set_speed",
    args="device:B,speed:o",
    params="device speed",
    help="limit the bytes in a second that a job moves",
)
def block_job_set_speed(machine: Machine, args: dict[str, Any]) -> None:
    """Limit a job's speed."""
    dispatch.call(machine, "block-job-set-speed", {"device": args["device"], "speed": args["speed"]})


@hmp_command(
    "block_job_cancel",
    args="force:-f,device:B",
    params="[-f] device",
    help="give up a job (-f: at once, although it is ready)",
)
def block_job_cancel(machine: Machine, args: dict[str, Any]) -> None:
    """Cancel a job."""
    dispatch.call(machine, "block-job-cancel", {"device": args["device"], "force": args.get("force", False)})


def _verb(name: str, command: str, help: str) -> None:
    @hmp_command(name, args="device:B", params="device", help=help)
    def handler(machine: Machine, args: dict[str, Any]) -> None:
        dispatch.call(machine, command, {"device": args["device"]})


_verb("block_job_complete", "block-job-complete", "bring a job to its end that is ready for it")
_verb("block_job_pause", "block-job-pause", "let a job rest")
_verb("block_job_resume", "block-job-resume", "let a job that rests go on")

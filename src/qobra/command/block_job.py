"""Block jobs: the commands that start them and the older block-job-* ones that steer them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.qmp.registry import command, older_form

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

Args = dict[str, Any]


@command("query-block-jobs")
def query_block_jobs(machine: Machine, args: Args) -> list[dict[str, Any]]:
    return [job.block_info() for job in machine.block.jobs.block_jobs()]


@command("block-job-set-speed")
def block_job_set_speed(machine: Machine, args: Args) -> None:
    machine.block.jobs.get_block_job(args["device"]).set_speed(args["speed"])


@command("block-job-pause")
def block_job_pause(machine: Machine, args: Args) -> None:
    machine.block.jobs.get_block_job(args["device"]).user_pause()


@command("block-job-resume")
def block_job_resume(machine: Machine, args: Args) -> None:
    machine.block.jobs.get_block_job(args["device"]).user_resume()


@command("block-job-cancel")
def block_job_cancel(machine: Machine, args: Args) -> None:
    machine.block.jobs.get_block_job(args["device"]).user_cancel(args.get("force", False))


@command("block-job-complete")
def block_job_complete(machine: Machine, args: Args) -> None:
    machine.block.jobs.get_block_job(args["device"]).complete()


@command("block-job-finalize")
def block_job_finalize(machine: Machine, args: Args) -> None:
    machine.block.jobs.get_block_job(args["id"]).finalize()


@command("block-job-dismiss")
def block_job_dismiss(machine: Machine, args: Args) -> None:
    machine.block.jobs.get_block_job(args["id"]).dismiss()


@command("blockdev-backup")
def blockdev_backup(machine: Machine, args: Args) -> None:
    from qobra.block.job.start_backup import start_backup

    layer = machine.block
    source = layer.find_device_or_node(args["device"])
    target = layer.find_device_or_node(args["target"])
    with layer.drained():
        job = start_backup(layer.jobs, source, target, args)
        job.start()
    job.drain_over()


@command("drive-backup")
def drive_backup(machine: Machine, args: Args) -> None:
    from qobra.block.job.drive import start_drive_backup

    layer = machine.block
    with layer.drained():
        job = start_drive_backup(layer.jobs, args)
        job.start()
    job.drain_over()


@older_form("drive-backup", lambda args: args.get("sync") == "dirty-bitmap")
def drive_backup_of_dirty_bitmap(machine: Machine, args: Args) -> None:
    """What the command table of QEMU 2.5 calls an incremental backup."""
    from qobra.qapi.contract import contract

    drive_backup(machine, contract().check_arguments("drive-backup", {**args, "sync": "incremental"}))


@command("drive-mirror")
def drive_mirror(machine: Machine, args: Args) -> None:
    from qobra.block.job.drive import start_drive_mirror

    layer = machine.block
    with layer.drained():
        start_drive_mirror(layer.jobs, args).start()


@command("blockdev-create")
def blockdev_create(machine: Machine, args: Args) -> None:
    from qobra.block.job.create import CreateJob
    from qobra.qapi.contract import contract

    # Some formats are only made by file name, as by the tools.
    if args["options"]["driver"] not in contract().types["BlockdevCreateOptions"].branches:
        raise QobraError("Driver does not support blockdev-create")
    CreateJob(machine.block.jobs, args["job-id"], args["options"]).start()


@command("blockdev-mirror")
def blockdev_mirror(machine: Machine, args: Args) -> None:
    from qobra.block.job.chain import root_node
    from qobra.block.job.start_mirror import mirror_plan, start_mirror

    layer = machine.block
    source = root_node(layer, args["device"])
    target = layer.find_device_or_node(args["target"])
    with layer.drained():
        plan = mirror_plan(layer, source, target, args)
        # Not where "top" is all there is: what the top image does not have is then left as it is in the target.
        plan.zero_target = args["sync"] == "full"
        start_mirror(layer.jobs, source, target, plan, args).start()


@command("block-commit")
def block_commit(machine: Machine, args: Args) -> None:
    from qobra.block.job.commit import start_commit

    layer = machine.block
    with layer.drained():
        start_commit(layer.jobs, args).start()


@command("block-stream")
def block_stream(machine: Machine, args: Args) -> None:
    from qobra.block.job.stream import start_stream

    layer = machine.block
    with layer.drained():
        start_stream(layer.jobs, args).start()


@command("x-blockdev-amend")
def x_blockdev_amend(machine: Machine, args: Args) -> None:
    from qobra.block.job.amend import AmendJob

    AmendJob(machine.block.jobs, args["job-id"], args["node-name"], args["options"], args.get("force", False)).start()

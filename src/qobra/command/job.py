"""Jobs of any kind: the job-* commands and query-jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.qmp.registry import command

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

Args = dict[str, Any]


@command("query-jobs")
def query_jobs(machine: Machine, args: Args) -> list[dict[str, Any]]:
    return [job.info() for job in machine.block.jobs.all()]


@command("job-pause")
def job_pause(machine: Machine, args: Args) -> None:
    machine.block.jobs.get(args["id"]).user_pause()


@command("job-resume")
def job_resume(machine: Machine, args: Args) -> None:
    machine.block.jobs.get(args["id"]).user_resume()


@command("job-cancel")
def job_cancel(machine: Machine, args: Args) -> None:
    machine.block.jobs.get(args["id"]).user_cancel(True)


@command("job-complete")
def job_complete(machine: Machine, args: Args) -> None:
    machine.block.jobs.get(args["id"]).complete()


@command("job-finalize")
def job_finalize(machine: Machine, args: Args) -> None:
    machine.block.jobs.get(args["id"]).finalize()


@command("job-dismiss")
def job_dismiss(machine: Machine, args: Args) -> None:
    machine.block.jobs.get(args["id"]).dismiss()

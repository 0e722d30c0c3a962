"""The jobs of a block layer: found by id, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block.job.state import READY, STANDBY
from qobra.errors import DEVICE_NOT_ACTIVE, QobraError

if TYPE_CHECKING:
    from qobra.block.job.block_job import BlockJob
    from qobra.block.job.job import Job
    from qobra.block.layer import BlockLayer


class Jobs:
    """All jobs of ``layer``. Everything here is called inside the strand."""

    def __init__(self, layer: BlockLayer) -> None:
        self.layer = layer
        self._jobs: list[Job] = []

    def add(self, job: Job) -> None:
        """A job was made."""
        self._jobs.insert(0, job)

    def remove(self, job: Job) -> None:
        """A job is gone."""
        self._jobs.remove(job)

    def all(self) -> list[Job]:
        """Every job that is not internal, newest first."""
        return [job for job in self._jobs if not job.internal]

    def block_jobs(self) -> list[BlockJob]:
        """Those that work on nodes."""
        from qobra.block.job.block_job import BlockJob

        return [job for job in self.all() if isinstance(job, BlockJob)]

    def find(self, job_id: str) -> Job | None:
        """The job with that id."""
        return next((job for job in self._jobs if job.id == job_id), None)

    def get(self, job_id: str) -> Job:
        """The job with that id. Raises QobraError."""
        job = self.find(job_id)
        if job is None:
            raise QobraError("Job not found")
        return job

    def get_block_job(self, job_id: str) -> BlockJob:
        """The block job with that id. Raises QobraError (DeviceNotActive)."""
        job = next((job for job in self.block_jobs() if job.id == job_id), None)
        if job is None:
            raise QobraError(f"Block job '{job_id}' not found", DEVICE_NOT_ACTIVE)
        return job

    def close(self) -> None:
        """Cancel every job, and wait until their work has stopped."""
        with self.layer.control:
            for job in tuple(self._jobs):
                if job.status == READY:
                    # Clients of QEMU see that it drains everything on its way out, for which such a job pauses.
                    job.transition(STANDBY)
                    job.transition(READY)
                if job in self._jobs:
                    job.cancel(True)
            for job in tuple(self._jobs):
                job.join()
                if job.started:
                    job.end()
            # What is left has ended before and was waiting to be dismissed.
            for job in tuple(self._jobs):
                if job in self._jobs:
                    job.cancel(True)

"""What of a job's copying has failed, told by whoever copied, and settled by the job as its error policies say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block.job.block_job import IGNORE, REPORT

if TYPE_CHECKING:
    from qobra.block.copy.chunk import CopyFailed
    from qobra.block.job.block_job import BlockJob

RETRY_NS = 100_000_000
"""Wait before what could not be copied, and whose error is ignored, is tried again."""


class Failures:
    """The failures of ``job`` that were not settled yet; true if there are any. The policies are BlockdevOnErrors."""

    def __init__(self, job: BlockJob, on_source_error: str, on_target_error: str) -> None:
        self._job = job
        self._on_source_error = on_source_error
        self._on_target_error = on_target_error
        self._noted: list[CopyFailed] = []

    def __bool__(self) -> bool:
        return bool(self._noted)

    def note(self, failure: CopyFailed) -> None:
        """Something could not be copied, and is to be copied again (in any thread)."""
        with self._job.condition:
            self._noted.append(failure)
            self._job.condition.notify_all()

    def policy(self, failure: CopyFailed) -> str:
        """The policy for a failure."""
        return self._on_source_error if failure.is_read else self._on_target_error

    def settle(self) -> bool:
        """Do what the policies say: True to go on, False if there were no failures. In the job's thread.

        Raises the error that is to be reported, and JobCancelled.
        """
        job = self._job
        with job.condition:
            noted, self._noted = self._noted, []
        if not noted:
            return False
        failure = noted[0]
        action = job.error_action(self.policy(failure), failure.is_read, failure.error)
        if action == REPORT:
            raise failure.error
        if action == IGNORE:
            job.park(RETRY_NS)
        job.pause_point()
        return True

"""Jobs that end together: all succeed, or all are undone (``completion-mode: grouped`` of a transaction).

A job that is in no transaction has a group of its own. What runs here, runs in the strand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block.job.state import COMPLETED, PENDING, WAITING
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.job.job import Job


class JobGroup:
    """The jobs of one completion, newest first, as the order of their events is."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._aborting = False

    def add(self, job: Job) -> None:
        """Put ``job`` into the group."""
        self.jobs.insert(0, job)

    def remove(self, job: Job) -> None:
        """Take ``job`` out; harmless where it is out."""
        if job in self.jobs:
            self.jobs.remove(job)

    def succeeded(self, job: Job) -> None:
        """The work of ``job`` is done: once all are, they are pending and, unless one waits to be told, finalized."""
        job.transition(WAITING)
        if any(each.status not in COMPLETED for each in self.jobs):
            return
        for each in tuple(self.jobs):
            each.transition(PENDING)
            if not each.auto_finalize:
                each.emit_pending()
        if all(each.auto_finalize for each in self.jobs):
            self.finalize(job)

    def finalize(self, job: Job) -> None:
        """Let every job do its last step; if one cannot, all are aborted. ``job`` is the one that asked."""
        for each in tuple(self.jobs):
            try:
                each.prepare()
            except (QobraError, OSError) as error:
                each.fail(error)
                self.abort(each)
                return
        for each in tuple(self.jobs):
            each.finalize_single()

    def abort(self, culprit: Job) -> None:
        """``culprit`` failed or was cancelled: cancel the others, and finalize each once its work has stopped."""
        if not self._aborting:
            self._aborting = True
            for other in tuple(self.jobs):
                if other is not culprit:
                    other.request_cancel(force=True)
                    other.wake()
        self._finish_abort()

    def _finish_abort(self) -> None:
        while self.jobs:
            job = self.jobs[0]
            if job.status not in COMPLETED:
                if job.started:
                    return  # it stops soon and then comes back here
                job.update_result()
            job.finalize_single()

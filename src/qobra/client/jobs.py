"""What is known of a server's jobs, from its events and from what it answers."""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

from qobra.client.errors import JobCancelled, JobFailed
from qobra.client.events import Event

JOB_EVENTS = (
    "JOB_STATUS_CHANGE",
    "BLOCK_JOB_READY",
    "BLOCK_JOB_PENDING",
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_CANCELLED",
    "BLOCK_JOB_ERROR",
)


# States of jobs that are gone are kept for whoever asks late, but not for ever.
MAX_STATES = 1000


class Progress(NamedTuple):
    """How far a job is, in a unit of the job's own (bytes, for a block job); both may grow."""

    current: int
    total: int

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        return min(1.0, self.current / self.total) if self.total else 0.0


class JobState:
    """The last that was heard of one job. ``status`` is the schema's JobStatus, or ``unknown`` before any word."""

    def __init__(self, job_id: str) -> None:
        self.id = job_id
        self.type: str | None = None
        self.status = "unknown"
        self.progress = Progress(0, 0)
        self.error: str | None = None
        self.cancelled = False
        self.aborted = False

    @property
    def ended(self) -> bool:
        """Whether the work is over, well or not."""
        return self.status in ("concluded", "null")

    @property
    def ready(self) -> bool:
        """Whether the job waits in its steady state (a mirror that is in step)."""
        return self.status in ("ready", "standby")

    def raise_failure(self) -> None:
        """Raise JobFailed or JobCancelled if the job ended without doing its work."""
        if self.cancelled or self.error == os.strerror(errno.ECANCELED):
            raise JobCancelled(self.id, "cancelled")
        if self.error is not None:
            raise JobFailed(self.id, self.error)
        if self.aborted:
            raise JobCancelled(self.id, "cancelled, or failed without a word")

    def update(self, info: dict[str, Any]) -> None:
        """Take an entry of query-jobs or of query-block-jobs (which has other names for the same)."""
        self.type = info.get("type", self.type)
        current = info.get("current-progress", info.get("offset", 0))
        self.progress = Progress(current, info.get("total-progress", info.get("len", 0)))
        self.error = info.get("error", self.error)
        if "status" in info:
            self.status = info["status"]
        elif info.get("ready"):
            self.status = "ready"
        else:
            self.status = "paused" if info.get("paused") else "running"


class JobTracker:
    """The states of all jobs that a connection has heard of."""

    def __init__(self) -> None:
        self.states: dict[str, JobState] = {}
        self.has_status_events = True

    def state(self, job_id: str) -> JobState:
        """The state of ``job_id``, a blank one if nothing was heard of it."""
        if job_id not in self.states:
            self._begin(job_id)
        return self.states[job_id]

    def observe(self, event: Event) -> None:
        """Take note of an event if it is about a job."""
        if event.name not in JOB_EVENTS:
            return
        job_id = event.data.get("id") or event.data.get("device")
        if not isinstance(job_id, str):
            return
        status = event.data.get("status")
        if status == "created" or (self.state(job_id).status == "null" and status != "null"):
            self._begin(job_id)  # the id of a job that is gone may be used again
        state = self.states[job_id]
        if event.name == "JOB_STATUS_CHANGE":
            state.status = str(status)
            state.aborted = state.aborted or status == "aborting"
            return
        state.type = event.data.get("type", state.type)
        if "len" in event.data:
            state.progress = Progress(event.data.get("offset", 0), event.data["len"])
        if event.name == "BLOCK_JOB_CANCELLED":
            state.cancelled = True
        elif event.name == "BLOCK_JOB_COMPLETED":
            state.error = event.data.get("error")
        if not self.has_status_events:
            if event.name in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
                state.status = "null"
            elif event.name == "BLOCK_JOB_READY":
                state.status = "ready"

    def answered(self, command: str, result: Any) -> None:
        """Take note of what a command returned if it lists jobs."""
        if command not in ("query-jobs", "query-block-jobs") or not isinstance(result, list):
            return
        listed = {info.get("id") or info.get("device"): info for info in result}
        for job_id, info in listed.items():
            self.state(job_id).update(info)
        # Where both commands exist the older one leaves out the jobs that are no block jobs.
        if command == "query-jobs" or not self.has_status_events:
            for job_id, state in self.states.items():
                if job_id not in listed and state.status != "unknown":
                    state.status = "null"

    def _begin(self, job_id: str) -> None:
        self.states.pop(job_id, None)
        if len(self.states) >= MAX_STATES:
            gone = next((old for old, state in self.states.items() if state.ended), next(iter(self.states)))
            del self.states[gone]
        self.states[job_id] = JobState(job_id)

"""A background job: its states, and the thread that does its work.

All decisions (transitions, verbs, events) are made inside the control strand. The work, :meth:`Job.run`, is done by a
thread of its own, which between two pieces of work calls :meth:`Job.pause_point`: there it stops while the job is
paused and gives up when the job is cancelled. The thread never enters the strand; what it has to say, it posts.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from qobra.block.copy.pool import be_nice
from qobra.block.job import state
from qobra.block.job.group import JobGroup
from qobra.block.opener import valid_id
from qobra.errors import QobraError, errno_of

if TYPE_CHECKING:
    from qobra.block.copy.pool import CopyPool
    from qobra.block.job.jobs import Jobs


END_TIMEOUT = 0.1
"""Seconds that a cancel waits for a job that sleeps: its thread has only to wake up."""


class JobCancelled(Exception):
    """Raised in the job's thread to end the work of a job that was cancelled."""


class Job:
    """One job. Making it registers it in state ``created``; :meth:`start` sets it going.

    A ``job_id`` of None with ``internal`` makes a job that no query or event tells of. Raises QobraError for an id
    that is malformed or taken.
    """

    kind: str = ""
    """JobType."""
    ends_at_once: ClassVar[bool] = True
    """Whether a job that sleeps ends right after the command that cancels it, before another is served."""

    def __init__(
        self,
        jobs: Jobs,
        job_id: str | None,
        *,
        internal: bool = False,
        group: JobGroup | None = None,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
    ) -> None:
        if internal:
            if job_id is not None:
                raise QobraError("Cannot specify job ID for internal job")
        elif job_id is None:
            raise QobraError("An explicit job ID is required")
        elif not valid_id(job_id):
            raise QobraError(f"Invalid job ID '{job_id}'")
        elif jobs.find(job_id) is not None:
            raise QobraError(f"Job ID '{job_id}' already in use")
        self.jobs = jobs
        self.layer = jobs.layer
        self.id = job_id
        self.auto_finalize = auto_finalize
        self.auto_dismiss = auto_dismiss
        self.status = state.UNDEFINED
        self.started = False
        self.error: QobraError | OSError | None = None
        self.current = 0
        self.total = 0
        self.busy = False
        self.pause_count = 0
        self.user_paused = False
        self.cancelled = False
        """A cancel was asked for, hard or soft."""
        self.force_cancelled = False
        self.condition = threading.Condition()
        """Guards what both the strand and the job's thread look at; notified when any of it changes."""
        self.pool: CopyPool | None = None
        """What does a part of the work in other threads."""
        self._parked = False
        self._thread: threading.Thread | None = None
        self._ended = False
        self._failure: Exception | None = None
        self.group = group if group is not None else JobGroup()
        self.group.add(self)
        jobs.add(self)
        self.transition(state.CREATED)

    def __repr__(self) -> str:
        return f"<{self.kind} job {self.id!r} {self.status}>"

    # -- what a kind of job does ------------------------------------------------------------------------------

    def run(self) -> None:
        """The work, in the job's thread. Raises QobraError, OSError or JobCancelled where it fails."""
        raise NotImplementedError

    def wind_up(self) -> None:
        """What has to be done when the work has stopped, in the job's thread: also if it never began."""

    def prepare(self) -> None:
        """The last step that can fail, in the strand."""

    def commit(self) -> None:
        """The job and its group have succeeded."""

    def abort(self) -> None:
        """The job failed or was cancelled, perhaps because another of its group did."""

    def clean(self) -> None:
        """Let go of everything; called once, after commit or abort."""

    def complete_hook(self) -> None:
        """Asked to complete while ready (job-complete). Raises QobraError where it cannot."""
        raise QobraError(f"The active block job '{self.id}' cannot be completed")

    def describe_error(self, error: QobraError | OSError) -> str:
        """The text of ``error`` for the user."""
        return error.desc if isinstance(error, QobraError) else os.strerror(errno_of(error))

    # -- states -----------------------------------------------------------------------------------------------

    @property
    def internal(self) -> bool:
        """Whether no query or event tells of the job."""
        return self.id is None

    def transition(self, status: str) -> None:
        """Go to ``status`` and tell of it."""
        assert status in state.FOLLOWS[self.status], f"{self.status} -> {status}"
        if status != self.status:
            self.status = status
            self.emit("JOB_STATUS_CHANGE", {"id": self.id, "status": status})

    def emit(self, name: str, data: dict[str, Any]) -> None:
        """Emit an event, unless the job is internal."""
        if not self.internal:
            self.layer.emit(name, data)

    def emit_pending(self) -> None:
        """The job waits to be finalized; only block jobs have an event for it."""

    def emit_completed(self) -> None:
        """The job is done; only block jobs have an event for it."""

    def apply(self, verb: str) -> None:
        """Raise QobraError unless the job accepts ``verb`` now."""
        if self.status not in state.ACCEPTS[verb]:
            raise QobraError(f"Job '{self.id}' in state '{self.status}' cannot accept command verb '{verb}'")

    def start(self) -> None:
        """Begin to run."""
        self.started = True
        self.busy = True
        self.transition(state.RUNNING)
        self._thread = threading.Thread(target=self._work, name=f"job {self.id}", daemon=True)
        self._thread.start()

    def discard(self) -> None:
        """Drop a job that was never started: its command failed after all."""
        self.group.remove(self)
        self.clean()
        self._dismiss()

    def _work(self) -> None:
        be_nice()
        failure: Exception | None = None
        try:
            try:
                self.pause_point()
                self.run()
            finally:
                self.wind_up()
        except JobCancelled:
            pass
        except (QobraError, OSError) as error:
            failure = error
        except Exception as error:
            # A defect must not leave a job that never ends.
            sys.excepthook(*sys.exc_info())
            failure = QobraError(f"Internal error: {error}", errno=errno.EIO)
        self.busy = False
        self._failure = failure
        self.layer.control.post(self.end, failure)

    def end(self, failure: Exception | None = None) -> None:
        """The work has stopped (in the strand)."""
        if self._ended:
            return
        self._ended = True
        # A pause that was asked for too late to stop the work must not keep it from ending.
        if self.status in (state.PAUSED, state.STANDBY):
            self.transition(state.RUNNING if self.status == state.PAUSED else state.READY)
        if failure is not None:
            assert isinstance(failure, (QobraError, OSError))
            self.error = failure
        self.update_result()
        if self.error is not None:
            self.group.abort(self)
        else:
            self.group.succeeded(self)

    def fail(self, error: QobraError | OSError) -> None:
        """The last step failed."""
        if self.error is None:
            self.error = error
        self.update_result()

    def update_result(self) -> None:
        """A job that was cancelled has failed; one that has failed is aborting."""
        if self.error is None and self.force_cancelled:
            self.error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        if self.error is not None:
            self.transition(state.ABORTING)

    def finalize_single(self) -> None:
        """Commit or abort this job, and conclude it."""
        self.update_result()
        if self.error is None:
            self.commit()
        else:
            self.abort()
        self.clean()
        if self.started:
            self.emit_completed()
        self.group.remove(self)
        self.transition(state.CONCLUDED)
        if self.auto_dismiss or not self.started:
            self._dismiss()

    def _dismiss(self) -> None:
        self.transition(state.NULL)
        self.jobs.remove(self)

    # -- verbs ------------------------------------------------------------------------------------------------

    def user_pause(self) -> None:
        """job-pause."""
        self.apply("pause")
        if self.user_paused:
            raise QobraError("Job is already paused")
        self.user_paused = True
        self.pause()

    def user_resume(self) -> None:
        """job-resume."""
        if not self.user_paused or self.pause_count <= 0:
            raise QobraError("Can't resume a job that was not paused")
        self.apply("resume")
        self.before_user_resume()
        self.user_paused = False
        self.resume()

    def before_user_resume(self) -> None:
        """The user resumes the job or cancels it while paused."""

    def user_cancel(self, force: bool) -> None:
        """job-cancel, block-job-cancel."""
        self.apply("cancel")
        self.cancel(force)

    def complete(self) -> None:
        """job-complete."""
        self.apply("complete")
        if self.cancelled or self.user_paused:
            raise QobraError(f"The active block job '{self.id}' cannot be completed")
        self.complete_hook()
        self.wake()

    def finalize(self) -> None:
        """job-finalize."""
        self.apply("finalize")
        self.group.finalize(self)

    def dismiss(self) -> None:
        """job-dismiss."""
        self.apply("dismiss")
        self._dismiss()

    def pause(self) -> None:
        """Stop the work at the next pause point; nests."""
        with self.condition:
            self.pause_count += 1
            parked = self._parked
            self.condition.notify_all()
        if parked and not self.active:
            self.note_paused()

    def resume(self) -> None:
        """Undo one :meth:`pause`."""
        with self.condition:
            assert self.pause_count > 0
            self.pause_count -= 1
            going = self.pause_count == 0
        if going and self.status in (state.PAUSED, state.STANDBY):
            self.transition(state.RUNNING if self.status == state.PAUSED else state.READY)
        self.wake()

    def note_paused(self) -> None:
        """The job's thread has stopped at a pause point."""
        with self.condition:
            stopped = self._parked and self.pause_count > 0 and not self.force_cancelled
        if stopped and self.status in (state.RUNNING, state.READY):
            self.transition(state.PAUSED if self.status == state.RUNNING else state.STANDBY)

    def cancel(self, force: bool) -> None:
        """Cancel; the job ends soon."""
        if self.status == state.CONCLUDED:
            self._dismiss()
            return
        self.request_cancel(force)
        if not self.started:
            self.update_result()
            self.group.abort(self)
        elif self._ended:
            if self.force_cancelled:
                self.group.abort(self)
        else:
            parked = self._parked
            self.wake()
            if parked and self.ends_at_once and self.force_cancelled:
                self.layer.control.post(self._end_now)

    def _end_now(self) -> None:
        """Let a job that was asleep end right after the command that cancelled it, before the next one is served."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(END_TIMEOUT)
            if not thread.is_alive():
                self.end(self._failure)

    def request_cancel(self, force: bool) -> None:
        """Mark the job as cancelled; the caller sees to it that it ends."""
        force = self.decide_force(force)
        if self.user_paused:
            self.before_user_resume()
            self.user_paused = False
            self.resume()
        if force or not self._ended:
            with self.condition:
                self.cancelled = True
                self.force_cancelled = self.force_cancelled or force
        if self.force_cancelled:
            self.cancel_in_flight()
        if self.force_cancelled and self.status in (state.PAUSED, state.STANDBY):
            self.transition(state.RUNNING if self.status == state.PAUSED else state.READY)

    def cancel_in_flight(self) -> None:
        """The job ends whatever becomes of its requests: have those fail that wait for something."""

    def decide_force(self, force: bool) -> bool:
        """Whether a cancel is hard: always, unless the kind of job has a soft one."""
        return True

    # -- for the job's thread ---------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let the job's thread look again at what it waits for."""
        with self.condition:
            self.condition.notify_all()

    def pause_point(self) -> None:
        """Wait while the job is paused. Raises JobCancelled once it is cancelled by force. Not inside a slot."""
        if self.pause_count or self.force_cancelled:
            self.park(0)

    def park(self, timeout_ns: int | None) -> None:
        """Sleep ``timeout_ns`` (None: until woken), and then on while the job is paused.

        :meth:`wake` ends the sleep early; the caller looks why. Raises JobCancelled. Not inside a slot.
        """
        clock = self.layer.clock
        if self.pause_count:
            self._settle()
        self.busy = False
        with self.condition:
            self._parked = True
            announced = False
            slept = timeout_ns == 0
            try:
                while not self.force_cancelled:
                    if self.pause_count:
                        if not announced:
                            announced = True
                            self.condition.release()
                            try:
                                self._settle()
                                self.layer.control.post(self.note_paused)
                            finally:
                                self.condition.acquire()
                            continue
                        self.condition.wait()
                    elif not slept:
                        slept = True
                        if timeout_ns is None:
                            self.condition.wait()
                        else:
                            clock.wait(self.condition, timeout_ns)
                    else:
                        break
            finally:
                self._parked = False
        self.busy = True
        if self.force_cancelled:
            raise JobCancelled

    def _settle(self) -> None:
        """A job that says that it is paused has nothing in flight."""
        if self.pool is not None:
            self.pool.wait_idle()

    def join(self) -> None:
        """Wait until the job's thread has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def active(self) -> bool:
        """Whether the job is at work, in any of its threads."""
        return self.busy or (self.pause_count > 0 and self.pool is not None and self.pool.in_flight > 0)

    # -- queries ----------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Figures beyond those of JobInfo that this kind of job has, by name."""
        return {}

    def update_progress(self) -> None:
        """Bring ``current`` and ``total`` up to date; for jobs that others make work for."""

    def info(self) -> dict[str, Any]:
        """JobInfo."""
        self.update_progress()
        result: dict[str, Any] = {
            "id": self.id,
            "type": self.kind,
            "status": self.status,
            "current-progress": self.current,
            "total-progress": self.total,
        }
        if self.error is not None:
            result["error"] = self.describe_error(self.error)
        return result

"""What jobs that work on nodes have in common: their nodes, speed, errors, and the BLOCK_JOB events."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.copy.carrier import Carrier
from qobra.block.job.chain import chain, skip_filters
from qobra.block.job.group import JobGroup
from qobra.block.job.job import Job
from qobra.block.job.pace import Pace
from qobra.block.job.rate import RateLimit
from qobra.block.job.state import READY
from qobra.errors import QobraError, errno_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.graph import GraphChange
    from qobra.block.job.jobs import Jobs
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

SHORTEST_STEP, FIRST_STEP, LONGEST_STEP = 8 << 20, 64 << 20, 1 << 30
"""Bytes of an image whose map is asked for at a time."""
STEP_NS = 2_000_000
"""Processor time that this may take, more or less: nobody else has the interpreter meanwhile."""

REPORT = "report"
IGNORE = "ignore"
STOP = "stop"


def device_name(layer: BlockLayer, node: BlockNode) -> str:
    """The name of the drive that ``node`` is in: the id of a job that is given none; empty where it is in none."""
    if name := layer.device_name(node):
        return name
    for parent, _name in layer.graph.parents(node):
        if parent.implicit:
            return device_name(layer, parent)
    return ""


class JobEdge(BlockBackend):
    """A job's hold on one of its nodes, by the name that the graph's listing has for it."""

    def __init__(self, job: BlockJob, edge_name: str, perm: int, shared: int) -> None:
        super().__init__(job.layer, perm=perm, shared=shared, description=f"{job.kind} job '{job.id}'")
        self.job = job
        self.edge_name = edge_name


class BlockJob(Job):
    """A job on the node ``main`` and others.

    While it lives, its nodes are busy: other commands that would work on them are refused. ``speed`` is in bytes a
    second. Raises QobraError for a bad speed, a taken id, or permissions that conflict.
    """

    def __init__(
        self,
        jobs: Jobs,
        job_id: str | None,
        main: BlockNode,
        *,
        perm: int = 0,
        shared: int = permissions.ALL,
        speed: int = 0,
        internal: bool = False,
        group: JobGroup | None = None,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
    ) -> None:
        super().__init__(
            jobs,
            None if internal else job_id if job_id is not None else device_name(jobs.layer, main),
            internal=internal,
            group=group,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
        self.rate = RateLimit()
        self.pace = Pace(jobs.layer.flight)
        self.carrier = Carrier()
        """Moves the job's data, in idle time where it gives way."""
        self.is_local = False
        """Whether all that the job copies lies in local files, as far as it knows."""
        self._accounted_ns = 0
        self.io_status = "ok"
        self.ready = False
        self._edges: list[JobEdge] = []
        self._blocked: list[BlockNode] = []
        try:
            self.add_node("main node", main, perm, shared)
            self.check_speed(speed)
        except BaseException:
            self.discard()
            raise
        self.rate.speed = speed

    def add_node(self, edge_name: str, node: BlockNode, perm: int = 0, shared: int = permissions.ALL) -> JobEdge:
        """Hold ``node`` for as long as the job lives."""
        edge = JobEdge(self, edge_name, perm, shared)
        edge.insert(node)
        self._edges.append(edge)
        self.layer.block_node(node, self.blocker)
        self._blocked.append(node)
        return edge

    def add_intermediate(self, top: BlockNode, base: BlockNode) -> None:
        """Hold what is between ``top``, with it, and ``base``, whose data is about to go into ``base``.

        That is not consistent meanwhile, except where it is a filter that shows nothing but ``base``.
        """
        for node in chain(top):
            if node is base:
                break
            shared = permissions.WRITE_UNCHANGED | permissions.WRITE
            if skip_filters(node) is skip_filters(base):
                shared |= permissions.CONSISTENT_READ
            self.add_node("intermediate node", node, 0, shared)

    def uses(self, node: BlockNode) -> bool:
        """Whether ``node`` is one of the job's."""
        return any(edge.node is node for edge in self._edges)

    @property
    def blocker(self) -> str:
        """Why other commands may not touch the job's nodes."""
        return f"block device is in use by block job: {self.kind}"

    def clean(self) -> None:
        """Let go of all nodes, and take out what the job put into the graph, in one change."""
        self.carrier.close()
        for node in self._blocked:
            self.layer.unblock_node(node, self.blocker)
        self._blocked.clear()
        self.layer.graph.frozen.thaw(self)
        with self.layer.graph.change() as change:
            self.change_graph(change)
            for edge in self._edges:
                change.set_root(edge, None)
        self._edges.clear()

    def change_graph(self, change: GraphChange) -> None:
        """What else the end of the job changes in the graph; the job still holds its nodes."""

    # -- speed ------------------------------------------------------------------------------------------------

    def check_speed(self, speed: int) -> None:
        """Raise QobraError for a negative speed."""
        if speed < 0:
            raise QobraError("Parameter 'speed' expects a non-negative value")

    def set_speed(self, speed: int) -> None:
        """block-job-set-speed; at once, also for a job that waits for its turn at the old speed."""
        self.apply("set-speed")
        self.check_speed(speed)
        with self.condition:
            self.rate = RateLimit(speed)
            self.condition.notify_all()

    def throttle(self, amount: int) -> None:
        """After moving ``amount`` bytes: wait until more may be moved, then on while paused. Raises JobCancelled.

        That is when the speed limit says; a job without one gives way to guests.
        """
        rate, clock = self.rate, self.layer.clock
        if self.carrier.share > 1 and self.is_local and self.pool is not None:
            # Several helpers would take turns at the interpreter lock with each other and, one by one, with a guest.
            self.pool.wait_idle()
        share = 1
        if rate.speed:
            delay_ns = rate.delay_ns(amount, clock.monotonic_ns())
        else:
            delay_ns = self.pace.delay_ns(self._spent_ns())
            if self.pace.gives_way:
                share = self.pace.share
        self.carrier.share = share
        deadline_ns = clock.monotonic_ns() + delay_ns
        while delay_ns > 0 and rate is self.rate:
            self.park(delay_ns)
            delay_ns = deadline_ns - clock.monotonic_ns()
        self.pause_point()

    def steps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Go through an image, whose map is asked for, in steps (start, end) of a few milliseconds each.

        Between two of them the job gives way, and stops while paused. Raises JobCancelled. Not inside a slot.
        """
        size = FIRST_STEP
        while start < end:
            self.throttle(0)
            stop = min(end, start + size)
            begun_ns = time.thread_time_ns()
            yield start, stop
            # Long holes are gone through fast, and so are images that lie in order.
            quick = time.thread_time_ns() - begun_ns < STEP_NS
            size = min(2 * size, LONGEST_STEP) if quick else max(size // 2, SHORTEST_STEP)
            start = stop

    def _spent_ns(self) -> int:
        """Processor time that the job's work has taken since the last call (in the job's thread)."""
        total_ns = time.thread_time_ns() + (self.pool.helped_ns if self.pool is not None else 0)
        spent_ns, self._accounted_ns = total_ns - self._accounted_ns, total_ns
        return spent_ns

    # -- errors -----------------------------------------------------------------------------------------------

    def error_action(self, policy: str, is_read: bool, error: QobraError | OSError) -> str:
        """What to do about a failed request under the BlockdevOnError ``policy``: report, ignore or stop.

        To be called from the job's thread, not inside a slot. For ``stop`` the job is paused by the time that the
        thread comes to its next pause point, until the user resumes it.
        """
        number = errno_of(error)
        if policy in ("enospc", "auto"):
            action = STOP if number == errno.ENOSPC else REPORT
        else:
            action = policy
        if action == STOP:
            with self.condition:
                if not self.user_paused:
                    self.user_paused = True
                    self.pause_count += 1
        self.layer.control.post(self._note_error, number, is_read, action)
        return action

    def _note_error(self, number: int, is_read: bool, action: str) -> None:
        if action == STOP and self.io_status == "ok":
            self.io_status = "nospace" if number == errno.ENOSPC else "failed"
        self.emit(
            "BLOCK_JOB_ERROR",
            {"device": self.id, "operation": "read" if is_read else "write", "action": action},
        )

    def before_user_resume(self) -> None:
        self.io_status = "ok"

    def describe_error(self, error: QobraError | OSError) -> str:
        # Requests fail with a number, and that is what is told; only a reason without one is told in full.
        if error.errno:
            return os.strerror(error.errno)
        return error.desc if isinstance(error, QobraError) else str(error)

    # -- events and queries -----------------------------------------------------------------------------------

    def _event(self) -> dict[str, Any]:
        return {
            "type": self.kind,
            "device": self.id,
            "len": self.total,
            "offset": self.current,
            "speed": self.rate.speed,
        }

    def emit_pending(self) -> None:
        self.emit("BLOCK_JOB_PENDING", {"type": self.kind, "id": self.id})

    def emit_completed(self) -> None:
        if self.force_cancelled:
            self.emit("BLOCK_JOB_CANCELLED", self._event())
            return
        data = self._event()
        if self.error is not None:
            data["error"] = self.describe_error(self.error)
        self.emit("BLOCK_JOB_COMPLETED", data)

    def become_ready(self) -> None:
        """Source and target are in step (in the strand): from now on the job may be completed."""
        if not self.ready and not self._ended:
            self.ready = True
            self.transition(READY)
            self.emit("BLOCK_JOB_READY", self._event())

    def block_info(self) -> dict[str, Any]:
        """BlockJobInfo."""
        self.update_progress()
        result: dict[str, Any] = {
            "type": self.kind,
            "device": self.id,
            "len": self.total,
            "offset": self.current,
            "busy": self.active,
            "paused": self.pause_count > 0,
            "speed": self.rate.speed,
            "io-status": self.io_status,
            "ready": self.ready and self.status in (READY, "standby"),
            "status": self.status,
            "auto-finalize": self.auto_finalize,
            "auto-dismiss": self.auto_dismiss,
        }
        if self.error is not None:
            result["error"] = self.describe_error(self.error)
        return result

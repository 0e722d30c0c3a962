"""Backup: a point in time of a node, copied to a target while the node is being written (blockdev-backup)."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from qobra.block.copy.chunk import CopyFailed
from qobra.block.copy.engine import LOCAL_CHUNK, is_local
from qobra.block.copy.once import LIMIT
from qobra.block.copy.pool import CopyPool
from qobra.block.copy.ranges import allocated_above
from qobra.block.copy.slots import ThreadSlots
from qobra.block.extents import ABSENT, ZERO, resolve
from qobra.block.filter.copy_before_write import CopyBeforeWriteNode
from qobra.block.filter.placing import take_out_filter
from qobra.block.job import state
from qobra.block.job.block_job import BlockJob
from qobra.block.job.failures import Failures
from qobra.block.job.pace import SHARE
from qobra.block.node import BlockNode
from qobra.lean import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.bitmap import DirtyBitmap
    from qobra.block.graph import GraphChange
    from qobra.block.job.jobs import Jobs

Options = dict[str, Any]

MAX_CHUNK = 1 << 20
"""Most bytes that are copied at a time with a speed limit, where an end is not local, or where writes wait for that,
unless ``x-perf`` says otherwise."""
FIRST_SHARE = 4
"""The job's share of a processor until it knows what is zero: writes have most to do while nothing is copied."""
FULL = 0.9
"""The part of the memory for old data that a job means to be filled at most."""
SLACK = 16 << 20
"""Bytes of old data for which a job does not hurry."""
SLOW_NS = 10_000_000
"""How long a write may have to wait for a part that the job is copying."""
POLL_NS = 100_000_000
"""How often a job that copies nothing else looks for old data that writes have kept."""


class BackupJob(BlockJob):
    """Copies what ``sync`` says from ``filter_node.file`` to ``target``.

    With ``bitmap`` the parts are what is dirty in it, and at the end ``bitmap_mode`` says what becomes of it: after
    success (or always) only what was not copied, or was written since, stays dirty.
    """

    kind = "backup"

    def __init__(
        self,
        jobs: Jobs,
        job_id: str | None,
        filter_node: CopyBeforeWriteNode,
        target: BlockNode,
        *,
        sync: str,
        bitmap: DirtyBitmap | None,
        bitmap_mode: str,
        on_source_error: str,
        on_target_error: str,
        helpers: int,
        max_chunk: int,
        **common: Any,
    ) -> None:
        self._filter = filter_node
        self._frozen = False
        super().__init__(jobs, job_id, filter_node, **common)
        try:
            self.add_node("target", target)
        except BaseException:
            self.discard()
            raise
        self._source = filter_node.file
        self._target = target
        self._sync = sync
        self._bitmap = bitmap
        self._bitmap_mode = bitmap_mode
        self._helpers = helpers
        self._max_chunk = max_chunk
        self._claim_size = max_chunk or MAX_CHUNK
        self.is_local = is_local(self._source) and is_local(target)
        self._once = filter_node.once
        self._once.copied = self._advance
        self._missed = 0
        self._gets_ready = False
        self._kept_before = 0
        """Bytes of old data that were kept when the copy proper began."""
        self._zeroes = 0
        """Bytes that are known to be zeroes."""
        self._failures = Failures(self, on_source_error, on_target_error)
        self._set_up_todo()

    def _set_up_todo(self) -> None:
        """Say what is to be copied; the source is drained."""
        todo = self._once.todo
        if self._bitmap is not None and self._sync == "bitmap":
            todo.clear_all()
            todo.merge(self._bitmap)
        else:
            todo.set_all()
        self._once.begin(LIMIT if self._may_keep() else 0)
        self.layer.changed()  # whoever has found the old keeper looks again
        self.total = todo.count()
        if self._bitmap is not None:
            self._bitmap.freeze()
            self._frozen = True

    def _advance(self, length: int) -> None:
        with self.condition:
            self.current += self._clusters(length)

    def _clusters(self, length: int) -> int:
        """``length`` in whole clusters, as progress is told, also of an image that ends inside of one."""
        return -(-length // self._once.cluster) * self._once.cluster

    def start(self) -> None:
        """Begin in a drained section; as QEMU's job does, it is paused until that ends (:meth:`drain_over`)."""
        self._slots = ThreadSlots(self._edges)
        if self._sync == "none":
            self._once.kept = self.wake
        super().start()
        self.transition(state.PAUSED)

    def drain_over(self) -> None:
        """The drained section in which the job was started has ended."""
        if self.status == state.PAUSED and not self.pause_count:
            self.transition(state.RUNNING)

    def cancel_in_flight(self) -> None:
        self._target.cancel_in_flight()

    # -- the work ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        if self._sync == "none":
            self._copy_overwritten()
        if self._sync == "top":
            self._drop_unallocated(self._slots)
        if self._sync != "none" and self._may_keep():
            self.pace.share = FIRST_SHARE
            self._keep_zeroes()
            self._kept_before = self._once.old.used
        self._copy_all()

    def wind_up(self) -> None:
        self._once.old.limit = 0
        try:
            if self._sync == "none":  # also of a job that is cancelled, what was overwritten gets to the target
                self._copy_kept(lambda failure: None)
        finally:
            self._slots.close()

    def _copy_overwritten(self) -> None:
        """Copy what writes have kept, until the job is cancelled."""
        while True:
            self.park(POLL_NS)
            self._copy_kept(self._failures.note)
            self._failures.settle()

    def _copy_kept(self, failed: Callable[[CopyFailed], None]) -> None:
        """Copy the clusters of which old data is kept."""
        once = self._once
        for start in once.old.clusters():
            with self._slots.entered():
                part = once.claim(start, once.cluster, start + once.cluster)
                if part is not None:
                    try:
                        once.copy_claimed(*part)
                    except CopyFailed as failure:
                        failed(failure)

    def _may_keep(self) -> bool:
        """Whether writes may leave old data in memory: not if readers of the target see the source's data meanwhile."""
        return not self._once.copier.compress and not self._filter.target_shows_source()

    def statistics(self) -> dict[str, int]:
        """``held`` and ``held-limit``: bytes of old data in memory that the target has yet to get, and their most."""
        return {"held": self._once.old.used, "held-limit": LIMIT} if self._may_keep() else {}

    def _copy_all(self) -> None:
        self.pool = pool = CopyPool(self._copy, self._copied, self._helpers)
        try:
            self._loop(pool)
        finally:
            pool.close()

    def _drop_unallocated(self, slots: ThreadSlots) -> None:
        """Leave out what the source only has from its backing file."""
        source = self._source
        backing = source
        while backing.is_transparent:
            below = backing.filtered or backing.children.get("file")
            if below is None:
                break
            backing = below
        base = backing.backing
        for offset, end in self.steps(0, source.length):
            with slots.entered():
                position = offset
                for start, length in allocated_above(source, base, offset, end):
                    self._drop(position, start)
                    position = start + length
                self._drop(position, end)

    def _drop(self, start: int, end: int) -> None:
        cluster = self._once.cluster
        start = -(-start // cluster) * cluster
        stop = end if end == self._source.length else end - end % cluster
        if start < stop:
            dropped = self._once.skip(start, stop - start)
            with self.condition:
                self.total -= self._clusters(dropped)

    def _loop(self, pool: CopyPool) -> None:
        position = 0
        while True:
            self.pause_point()
            part = self._claim(position)
            if part is None:
                pool.wait_idle()
                if self._failures.settle():
                    continue
                if self._claimable():
                    position = 0
                    continue
                self.pause_point()  # whoever pauses a job that has parts under way finds it paused, not gone
                return
            position = part[0] + part[1]
            pool.submit(*part)
            if self._failures:
                pool.wait_idle()
                self._failures.settle()
                position = 0
            self._adapt_pace()
            self.throttle(part[1])
            if self.pause_count or self.force_cancelled:
                pool.wait_idle()

    def _adapt_pace(self) -> None:
        """Give way, but less where the memory for old data may be full before the job is through, or writes copy."""
        self._get_ready()
        missed, self._missed = self._missed, self._once.missed
        self.pace.share = self._share_in_time() if self._missed == missed else 1

    def _share_in_time(self) -> int:
        """The share with which the memory for old data lasts.

        Where new writes come all over the disk, what is kept of each part that is still to be copied grows alike: with
        ``b`` bytes kept before, ``(1 - p) * (b + A * p)`` are when an even pace has copied the part ``p``. ``A``, what
        is written meanwhile, may be so much that the most of this is the limit.
        """
        old = self._once.old
        limit, used = FULL * old.limit, old.used
        done = self.current / self.total if self.total else 1.0
        if limit <= 0 or used + (1 - done) * (self.total - self._zeroes) <= limit:
            return SHARE  # whatever is written
        before = min(self._kept_before, limit)
        more = 2 * limit - before + 2 * math.sqrt(limit * (limit - before))
        done = min((more - before) / (2 * more), done)
        allowed = (1 - done) * (before + more * done) + SLACK
        return max(1, min(SHARE, int(2 * SHARE * (1 - used / allowed))))

    def _keep_zeroes(self) -> None:
        """Have it known what is zero, so that writes there, which mostly are many, need not look.

        A write that comes first has seen to what it changes: so what reads as zeroes now did so at the point in time,
        or is kept.
        """
        once, source = self._once, self._source
        cluster = once.cluster
        for offset, end in self.steps(0, source.length):
            self._get_ready()
            with self._slots.entered():
                for run in resolve(source, offset, end - offset):
                    first, last = -(-run.start // cluster) * cluster, run.start + run.length
                    last -= last % cluster if last < source.length else 0
                    if run.kind in (ZERO, ABSENT) and first < last and once.old.keep_zeroes(first, last - first):
                        self._zeroes += sum(size for _start, size in once.todo.dirty_ranges(first, last))

    def _get_ready(self) -> None:
        """Beside a guest, have a thread see to it that there is memory for what its writes will keep."""
        if self.carrier.share > 1 and not self._gets_ready:
            self._gets_ready = True
            start_thread(self._once.old.get_ready, name="old data", imports=False)

    def _claimable(self) -> bool:
        todo = self._once.todo
        return todo.next_dirty(0) < todo.length

    def _claim(self, position: int) -> tuple[int, int] | None:
        # Only the place is chosen here; the claim proper is made inside the slot, right before the copy.
        todo = self._once.todo
        start = todo.next_dirty(position)
        if start >= todo.length:
            return None
        start -= start % self._once.cluster
        stop = todo.next_clean(start, min(todo.length, start + max(self._longest(), self._once.cluster)))
        return start, stop - start

    def _longest(self) -> int:
        """Most bytes that are copied at a time."""
        is_free = self.is_local and self._once.old.limit > 0 and not self.rate.speed
        return self._max_chunk or (LOCAL_CHUNK if is_free else MAX_CHUNK)

    def _copy(self, offset: int, length: int) -> None:
        end = offset + length
        with self._slots.entered():
            while offset < end:
                size = end - offset if self._once.old.limit else min(end - offset, self._claim_size)
                part = self._once.claim(offset, size, end)
                if part is None:
                    return
                begun_ns = time.monotonic_ns()
                self._once.copy_claimed(*part, self.carrier)
                self._adapt(time.monotonic_ns() - begun_ns)
                offset = part[0] + part[1]

    def _adapt(self, took_ns: int) -> None:
        """A write waits for the part that it runs into, so where copying is slow the parts have to be small."""
        if took_ns > SLOW_NS and not self._once.old.limit:
            self._claim_size = max(self._once.cluster, self._claim_size // 2)
        elif took_ns < SLOW_NS // 4 and self._claim_size < self._longest():
            self._claim_size *= 2

    def _copied(self, _offset: int, _length: int, failure: CopyFailed | None) -> None:
        if failure is not None:
            self._failures.note(failure)

    # -- the end ----------------------------------------------------------------------------------------------

    def commit(self) -> None:
        self._settle_bitmap(True)

    def abort(self) -> None:
        self._settle_bitmap(False)

    def _settle_bitmap(self, succeeded: bool) -> None:
        bitmap = self._bitmap
        if bitmap is None or not self._frozen:
            return
        self._frozen = False
        if self._bitmap_mode == "never" or not (succeeded or self._bitmap_mode == "always"):
            bitmap.reclaim()
            return
        bitmap.abdicate()
        if not succeeded:
            # What was not copied is still different from the backup.
            bitmap.merge(self._once.todo)

    def clean(self) -> None:
        if self._frozen and self._bitmap is not None:
            self._bitmap.reclaim()
            self._frozen = False
        super().clean()

    def change_graph(self, change: GraphChange) -> None:
        self._filter.stop_copying()
        take_out_filter(change, self._filter)

"""Mirror: keep a target in step with a node that is being written, and at the end take the node's place with it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import DirtyBitmap
from qobra.block.copy.carrier import DIRECT, Carrier
from qobra.block.copy.chunk import ChunkCopier, CopyFailed
from qobra.block.copy.engine import FAR_HELPERS, LOCAL_CHUNK, NEAR_HELPERS, is_local
from qobra.block.copy.follow import PIECE, SCATTERED, SMALL_CLUSTER, Follower, can_follow
from qobra.block.copy.lead import Leader
from qobra.block.copy.pool import CopyPool
from qobra.block.copy.range_locks import RangeLocks
from qobra.block.copy.ranges import allocated_above, widened
from qobra.block.copy.slots import ThreadSlots
from qobra.block.copy.writeback import Writeback
from qobra.block.filter.mirror_top import MirrorTopNode
from qobra.block.filter.placing import take_out_filter
from qobra.block.job.block_job import IGNORE, REPORT, BlockJob
from qobra.block.job.catch_up import IN_STEP_SHARE, SHARE, CatchUp
from qobra.block.job.chain import contains, next_below, skip_filters
from qobra.block.job.failures import Failures
from qobra.block.job.take_place import check_place, match_read_only, set_target_backing
from qobra.errors import QobraError
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.block.graph import GraphChange
    from qobra.block.job.jobs import Jobs
    from qobra.block.job.mirror_plan import MirrorPlan
    from qobra.block.node import BlockNode

_SOURCE_SHARED = permissions.CONSISTENT_READ | permissions.WRITE_UNCHANGED | permissions.WRITE

POLL_NS = 100_000_000
"""How often a job that is in step looks for new writes."""
BUSY_POLL_NS = 10_000_000
"""The same while the guest keeps writing."""
CHUNK_SIZE = 1 << 20
"""Most bytes that are copied at a time with a speed limit, where writes wait for that, or where an end is not local."""

LAST_TRIES = 10
"""How often the last bit is tried to be copied, while the guest waits, if errors are to be ignored."""


class MirrorJob(BlockJob):
    """Copies ``source``, on which ``filter_node`` lies, to ``target`` and then what is written meanwhile, until told.

    With ``onto_backing`` the target lies in the source's own chain, as it does for an active commit.
    """

    kind = "mirror"
    ends_at_once = False

    def __init__(
        self,
        jobs: Jobs,
        job_id: str | None,
        filter_node: MirrorTopNode,
        target: BlockNode,
        plan: MirrorPlan,
        *,
        kind: str = "mirror",
        onto_backing: bool = False,
        **common: Any,
    ) -> None:
        self.kind = kind
        self._filter = filter_node
        self._source = filter_node.below
        self._target = target
        self._plan = plan
        self._onto_backing = onto_backing
        self._swapped = False
        self._should_complete = False
        self._replaced: BlockNode | None = None
        self._dirty: DirtyBitmap | None = None
        self._failures = Failures(self, plan.on_source_error, plan.on_target_error)
        self._moved = 0
        self._copies = False
        """Whether it is known what has to be copied at all."""
        self._copying = 0
        """Bytes that are being copied, and so not marked any more."""
        self._in_flight: list[tuple[int, int]] = []
        self._root: BlockBackend | None = None
        self._follower: Follower | None = None
        self.locks = RangeLocks(ordered=True)
        super().__init__(jobs, job_id, filter_node, perm=permissions.CONSISTENT_READ, shared=_SOURCE_SHARED, **common)
        try:
            self._hold_nodes()
        except BaseException:
            self.discard()
            raise
        self._copier = ChunkCopier(self._source, target, unmap=plan.unmap)
        assert self._root is not None
        self.is_local = is_local(self._source) and is_local(target)
        follows = self.is_local and not plan.write_blocking and can_follow()
        granularity = PIECE if follows and plan.may_refine and not plan.least_unit else plan.granularity
        with self.layer.drained():  # writes that began before would not be marked
            self._dirty = DirtyBitmap(self._source, None, granularity, enabled=False)
            if follows:
                self._dirty.keep_in_step()
            if not plan.write_blocking:
                self._dirty.enable()
        self._leader: Leader = Leader(self._root, self._dirty)
        if follows and granularity < SCATTERED:
            self._follower = Follower(self._source_edge, self._root, self._dirty)
        if plan.write_blocking:
            filter_node.target = target
            filter_node.active = self
            self.layer.changed()

    def _hold_nodes(self) -> None:
        if not self._onto_backing and contains(self._source, skip_filters(self._target)):
            raise QobraError("Cannot mirror to a filter on top of a node in the source's backing chain")
        perm, shared = permissions.WRITE, permissions.WRITE_UNCHANGED
        if self._onto_backing:
            if self._target.virtual_size < self._source.virtual_size:
                perm |= permissions.RESIZE
            shared |= permissions.CONSISTENT_READ | permissions.WRITE
        self._root = BlockBackend(self.layer, perm=perm, shared=shared)
        self._root.insert(self._target)
        # A mirror that is ready outlives the machine's move: nothing is written any more then.
        self._root.yields = True
        self._source_edge = self.add_node("source", self._source, 0, _SOURCE_SHARED)
        self.add_node("target", self._target)
        if self._onto_backing:
            below = next_below(self._source)
            self.layer.graph.frozen.freeze(self, self._filter, self._target)
            if below is not None:
                self.add_intermediate(below, self._target)

    def cancel_in_flight(self) -> None:
        self._target.cancel_in_flight()

    # -- the work ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        assert self._root is not None
        self._slots = ThreadSlots((*self._edges, self._root))
        self.pool = pool = CopyPool(self._copy, self._copied, self._helper_count())
        self._writeback = Writeback(self._target)
        share = IN_STEP_SHARE if self._leader.may_lead else SHARE
        self._catch_up = CatchUp(self.pace, is_local=self.is_local, share=share)
        try:
            self._check_sizes()
            self._find_dirty()
            self._copies = True
            self._loop(pool)
        finally:
            if self.force_cancelled:
                self.update_progress()
            self._copies = False
            pool.close()
            self._leader.stop()
            self._writeback.close()
            self._slots.close()

    def _helper_count(self) -> int:
        return max(1, min(self._plan.buffer // CHUNK_SIZE, NEAR_HELPERS if self.is_local else FAR_HELPERS))

    def _check_sizes(self) -> None:
        if self._source.virtual_size == self._target.virtual_size:
            return
        if not self._onto_backing:
            raise QobraError("Source and target image have different sizes")
        if self._target.virtual_size < self._source.virtual_size:
            with self._slots.entered():
                self._target.truncate(self._source.length)

    def _find_dirty(self) -> None:
        """Mark what has to be copied at all."""
        plan, dirty = self._plan, self._dirty
        assert dirty is not None
        if plan.sync == "none":
            return
        if plan.zero_target:
            # Zeroes have to be written too; where they are cheap, all at once and first.
            if not (plan.unmap and self._target.discard_unmap):
                dirty.set_all()
                self._update_total()
                return
            for offset in range(0, self._source.length, 1 << 30):
                self.pause_point()
                try:
                    with self._slots.entered():
                        self._target.write_zeroes(offset, min(1 << 30, self._source.length - offset), may_unmap=True)
                except OSError as error:
                    if error.errno != errno.ENOTSUP:
                        raise
                    dirty.set_all()  # the target has no zeroes of its own
                    break
        for offset, end in self.steps(0, self._source.length):
            with self._slots.entered():
                held = allocated_above(self._source, plan.base, offset, end)
                for start, length in widened(held, plan.granularity, self._source.length):
                    dirty.set(start, length)
        self._update_total()

    def _update_total(self) -> int:
        """Work the progress out anew and return the bytes that are still to be copied."""
        with self.condition:
            remaining = self._remaining()
            self.total = self.current + remaining
        return remaining

    def _remaining(self) -> int:
        """Bytes that are still to be copied."""
        dirty = self._dirty
        assert dirty is not None
        remaining = dirty.count()
        if dirty.length and dirty.is_dirty(dirty.length - 1):
            remaining -= -dirty.length % dirty.granularity
            remaining = _whole_blocks(remaining)
        return remaining + self._copying + (self._follower.taken if self._follower is not None else 0)

    def update_progress(self) -> None:
        if self._copies:
            self._update_total()

    def _loop(self, pool: CopyPool) -> None:
        dirty = self._dirty
        assert dirty is not None
        position = unthrottled = 0
        self._catch_up.begin(self._update_total())
        while True:
            if self.force_cancelled:
                pool.wait_idle()
            self.pause_point()
            self._let_lead()
            start = dirty.next_dirty(position)
            if start < dirty.length:
                start -= start % dirty.granularity
                longest = self._longest(dirty.granularity)
                stop = dirty.next_clean(start, min(dirty.length, start + max(longest, SCATTERED)))
                if self._follower is not None and self._may_follow(start, stop):
                    position = self._follow(pool, start)
                    self._throttle_moved()
                else:
                    stop = min(stop, start + longest)
                    self._submit(pool, start, stop)
                    position = stop
                    unthrottled += stop - start
                    limited = self.rate.speed > 0
                    run_ends = stop == dirty.length or not dirty.is_dirty(stop)
                    if not limited or run_ends or unthrottled >= self._plan.buffer:
                        # A speed limit holds between runs, of up to a buffer each.
                        unthrottled = 0
                        if limited:
                            pool.wait_idle()
                        self._throttle_moved()
                if not self._failures:
                    continue
            position = unthrottled = 0
            pool.wait_idle()
            self._follow_more()
            if self._failures.settle():
                continue
            remaining = self._update_total()
            ending = self._should_complete or (self.cancelled and not self.force_cancelled)
            # A guest that never rests would never let the two be equal: the last bit is copied while it is drained,
            # and all that is left where it writes faster than can be copied.
            if not self._catch_up.is_there(remaining, ending=ending):
                continue
            if ending or not self.ready:
                self._flush()
            if not self.ready:
                self.layer.control.post(self.become_ready)
            if ending:
                return
            self.park(BUSY_POLL_NS if remaining else POLL_NS)

    def _let_lead(self) -> None:
        """Have guests that are at work write both disks, unless the job itself has to hold back."""
        if self.rate.speed:
            self._leader.stop()
        elif self.pace.gives_way:  # beside nobody the target's table would only have to be kept true
            with self._slots.entered():
                self._leader.start()

    def _settle(self) -> None:
        self._leader.stop()
        super()._settle()

    def _submit(self, pool: CopyPool, start: int, stop: int) -> None:
        while self._overlaps(start, stop):
            pool.wait_progress()
        with self.condition:
            self._in_flight.append((start, stop))
        pool.submit(start, stop - start)

    def _may_follow(self, start: int, stop: int) -> bool:
        """Whether the dirty run from ``start``, which is known up to ``stop``, is copied in pieces."""
        assert self._follower is not None and self._dirty is not None
        return not self._follower.leaves_long or (stop - start < SCATTERED and stop < self._dirty.length)

    def _follow_more(self) -> None:
        """A pass has ended, so what is dirty from now on has its places."""
        if self._follower is not None:
            sizes = {node.cluster_size() for node in (self._source, self._target)} - {0}
            self._follower.leaves_long = not sizes or min(sizes) > SMALL_CLUSTER

    def _follow(self, pool: CopyPool, start: int) -> int:
        """Copy scattered pieces from ``start`` on; returns where to go on."""
        assert self._follower is not None
        pool.wait_idle()
        begun_ns = self._catch_up.clock()
        with self._slots.entered():
            copied, position, left = self._follower.copy(start)
        self._catch_up.note(copied, self._catch_up.clock() - begun_ns)
        with self.condition:
            self._moved += copied
            self.current += _whole_blocks(copied)
        for offset, length in left:
            self._submit(pool, offset, offset + length)
        return position

    def _longest(self, granularity: int) -> int:
        """Most bytes that are copied at a time."""
        plan = self._plan
        is_free = self.is_local and not plan.write_blocking and not self.rate.speed
        wanted = min(LOCAL_CHUNK, plan.buffer // self._helper_count()) if is_free else CHUNK_SIZE
        return max(granularity, min(wanted, plan.buffer))

    def _throttle_moved(self) -> None:
        """The speed limit is about data; zeroes are free."""
        with self.condition:
            moved, self._moved = self._moved, 0
        if not self.pace.gives_way:
            # Else what a guest has written would be written, too, and it waits for that.
            self._writeback.note(moved)
        self._catch_up.adapt_pace(self._remaining)
        self.throttle(moved)

    def _overlaps(self, start: int, stop: int) -> bool:
        with self.condition:
            return any(first < stop and end > start for first, end in self._in_flight)

    def _copy(self, offset: int, length: int) -> None:
        with self._slots.entered(), self.locks.job(offset, length):
            self._copy_inside(offset, length, self.carrier)

    def _copy_inside(self, offset: int, length: int, carrier: Carrier) -> None:
        dirty = self._dirty
        assert dirty is not None
        with self.condition:
            self._copying += _whole_blocks(length)
        begun_ns = self._catch_up.clock()
        # A write that comes while the copy is made marks it again, so the mark goes first.
        dirty.clear(offset, length)
        self._leader.hold(offset, length)
        try:
            moved = self._copier.copy(offset, length, carrier=carrier)
        except CopyFailed:
            dirty.set(offset, length)
            raise
        self._leader.release(offset, length, self.pace.gives_way)
        # How long it takes is known where the job does all itself.
        self._catch_up.note(length, self._catch_up.clock() - begun_ns if carrier.share == 1 else None)
        with self.condition:
            self._moved += moved

    def _copied(self, offset: int, length: int, failure: CopyFailed | None) -> None:
        with self.condition:
            self._in_flight.remove((offset, offset + length))
            self._copying -= _whole_blocks(length)
            if failure is None:
                self.current += _whole_blocks(length)
        if failure is not None:
            self._failures.note(failure)

    def _flush(self) -> None:
        while True:
            try:
                with self._slots.entered():
                    self._target.flush()
                return
            except (OSError, QobraError) as error:
                if self.error_action(self._plan.on_target_error, False, error) == REPORT:
                    raise
                self.park(POLL_NS)

    # -- write-blocking ---------------------------------------------------------------------------------------

    def takes(self, offset: int, length: int) -> bool:
        """Whether a write of the guest may go to the target as it is; else :meth:`missed` is to be told of it."""
        unit = self._plan.least_unit
        return not unit or not (offset % unit or length % unit)

    def missed(self, offset: int, length: int) -> None:
        """A write of the guest went to the source only (in the guest's thread): it is copied later."""
        assert self._dirty is not None
        self._dirty.set(offset, length)

    def copied(self, offset: int, length: int, *, is_progress: bool) -> None:
        """A write of the guest went to both (in the guest's thread)."""
        if is_progress:
            with self.condition:
                self.current += length
                self.total += length
        dirty = self._dirty
        assert dirty is not None
        unit = dirty.granularity
        start = -(-offset // unit) * unit
        stop = (offset + length) // unit * unit if offset + length < dirty.length else dirty.length
        if start < stop:
            dirty.clear(start, stop - start)

    def failed(self, offset: int, length: int, error: Exception) -> None:
        """A write of the guest did not get to the target (in the guest's thread)."""
        dirty = self._dirty
        assert dirty is not None
        dirty.set(offset, length)
        known = error if isinstance(error, (OSError, QobraError)) else OSError(errno.EIO, str(error))
        self._failures.note(CopyFailed(known, False))

    # -- the end ----------------------------------------------------------------------------------------------

    def decide_force(self, force: bool) -> bool:
        return force or not self.ready

    def complete_hook(self) -> None:
        if not self.ready:
            super().complete_hook()
        if self._plan.replaces is not None:
            self._replaced = self.layer.graph.find(self._plan.replaces)
            if self._replaced is None:
                raise QobraError(f"Node name '{self._plan.replaces}' not found")
        self._should_complete = True

    def prepare(self) -> None:
        with self.layer.drained():
            self._copy_rest()
            if self._should_complete:
                self._swap()

    def _copy_rest(self) -> None:
        """What was written between the last look and the drain."""
        dirty = self._dirty
        assert dirty is not None
        tries = LAST_TRIES
        self._follow_rest(dirty)
        while ranges := list(dirty.dirty_ranges()):
            try:
                for start, length in ranges:
                    self._copy_inside(start, length, DIRECT)
            except CopyFailed as failure:
                tries -= 1
                if self._failures.policy(failure) != IGNORE or not tries:
                    raise failure.error
                self.error_action(IGNORE, failure.is_read, failure.error)
        self._target.flush()

    def _follow_rest(self, dirty: DirtyBitmap) -> None:
        """Copy the scattered pieces of it, as far as that can be."""
        position = dirty.next_dirty(0)
        while self._follower is not None and position < dirty.length:
            stop = self._follower.copy(position)[1]
            # Nothing but a long run holds it up.
            position = dirty.next_dirty(stop if stop > position else dirty.next_clean(position))

    def _swap(self) -> None:
        """Let everyone who uses the source use the target."""
        layer, source, target = self.layer, self._source, self._target
        replaced = self._replaced or source
        check_place(source, target, self._replaced)
        assert self._root is not None
        match_read_only(layer, self._root, target, replaced)
        self._stop_tracking()
        try:
            with layer.graph.change() as change:
                take_out_filter(change, self._filter)
                self._let_go(change)
                set_target_backing(layer, change, source, target, self._plan)
                change.replace(replaced, target)
        except QobraError as error:
            # The job ends with a number, as all that fails so late; the reason is told whoever runs the program.
            report_error(error)
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._edges.clear()
        self._swapped = True

    def _let_go(self, change: GraphChange) -> None:
        for edge in self._edges:
            change.set_root(edge, None)
        if self._root is not None:
            change.set_root(self._root, None)

    def _stop_tracking(self) -> None:
        self._filter.active = None
        if self._dirty is not None:
            self._dirty.remove()

    def change_graph(self, change: GraphChange) -> None:
        if not self._swapped:
            self._stop_tracking()
            self._let_go(change)
            take_out_filter(change, self._filter)


def _whole_blocks(length: int) -> int:
    """``length`` bytes up to the end of a block of 512, as progress is told, also of a file that ends inside of one."""
    return -(-length // 512) * 512

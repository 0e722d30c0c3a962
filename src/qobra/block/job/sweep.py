"""One pass over an image, chunk after chunk, with some in flight: the work of commit and stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qobra.block.copy.chunk import CopyFailed
from qobra.block.copy.engine import FAR_HELPERS, LOCAL_CHUNK, NEAR_HELPERS, is_local
from qobra.block.copy.pool import CopyPool
from qobra.block.copy.ranges import in_chunks
from qobra.block.copy.slots import ThreadSlots
from qobra.block.copy.writeback import Writeback
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.block.job.block_job import BlockJob
    from qobra.block.node import BlockNode

CHUNK = 512 << 10
"""Bytes at a time with a speed limit, or where an end is not local or somebody in between sees each request. As in
QEMU, where a test can tell: what has been done when an error comes is whole chunks."""
STEP = 1 << 30
"""Bytes that are looked through before they are copied."""
RETRY_NS = 10_000_000
"""Rest before a chunk that failed is tried again, so that it is not in a tight loop."""

Find = Callable[[int, int], list[tuple[int, int]]]
Failed = Callable[[CopyFailed], bool]


class Sweep:
    """Copies with ``work(offset, length)`` what ``find(offset, end)`` says, all of ``length`` bytes.

    ``failed(failure)`` is called in the job's thread for each chunk that failed, and each step that could not be looked
    through: True to try it again, False to leave it out; or it raises, which ends the pass. ``roots`` are entered for
    the finding and for each chunk. At the end ``target`` is flushed, which the work writes to, from ``source``.
    """

    def __init__(self, job: BlockJob, roots: Sequence[BlockBackend], source: BlockNode, target: BlockNode) -> None:
        self._job = job
        self._target = target
        self._slots = ThreadSlots(roots)
        job.is_local = is_local(source) and is_local(target)
        self._failures: list[tuple[int, int, CopyFailed]] = []

    def run(self, length: int, find: Find, work: Callable[[int, int], object], failed: Failed) -> None:
        """Make the pass. Raises what ``failed`` raises, and JobCancelled."""
        job = self._job

        def guarded(offset: int, size: int) -> None:
            with self._slots.entered():
                work(offset, size)

        job.pool = pool = CopyPool(guarded, self._done, NEAR_HELPERS if job.is_local else FAR_HELPERS)
        writeback = Writeback(self._target)
        try:
            for step in range(0, length, STEP):
                end = min(length, step + STEP)
                wanted: list[tuple[int, int]] = []
                for first, last in job.steps(step, end):
                    wanted += self._found(find, first, last, failed)
                for offset, size in in_chunks(wanted, LOCAL_CHUNK if job.is_local and not job.rate.speed else CHUNK):
                    job.current = max(job.current, offset)
                    pool.submit(offset, size)
                    self._settle(pool, failed)
                    job.throttle(size)
                    if not job.pace.gives_way:
                        # Else what a guest has written to these files would be written, too, and it waits for that.
                        writeback.note(size)
                pool.wait_idle()
                self._settle(pool, failed)
                job.pause_point()  # a pause that was asked for while these were under way holds
                job.current = end
            with self._slots.entered():
                self._target.flush()
        finally:
            pool.close()
            writeback.close()
            self._slots.close()

    def _found(self, find: Find, first: int, last: int, failed: Failed) -> list[tuple[int, int]]:
        """What ``find`` says of a step; nothing where it cannot tell and that is to be left out."""
        while True:
            try:
                with self._slots.entered():
                    return find(first, last)
            except (OSError, QobraError) as error:
                if not failed(CopyFailed(error, True)):
                    return []
                self._job.park(RETRY_NS)

    def _done(self, offset: int, length: int, failure: CopyFailed | None) -> None:
        if failure is None:
            self._job.current = max(self._job.current, offset + length)
        else:
            self._failures.append((offset, length, failure))

    def _settle(self, pool: CopyPool, failed: Failed) -> None:
        while self._failures:
            pool.wait_idle()
            failures, self._failures = self._failures, []
            # Those that wait for an error to go away find the job where it came to it.
            self._job.current = min(self._job.current, *(offset for offset, _length, _failure in failures))
            for offset, length, failure in failures:
                if failed(failure):
                    self._job.park(RETRY_NS)
                    pool.submit(offset, length)
            pool.wait_idle()

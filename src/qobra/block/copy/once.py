"""Copy a point in time out of a node that is being written: each part once, before it changes.

The background (a backup job) takes part after part; a write of the guest that gets to a part first copies it on its
own before it goes on. A part that is being copied is claimed, and whoever needs it waits for that one copy only.
"""

from __future__ import annotations

import threading
import time

from qobra.block.bitmap import DirtyBitmap
from qobra.block.copy.chunk import ChunkCopier, CopyFailed
from qobra.block.copy.held import PIECE
from qobra.block.copy.timed import timed_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.copy.held import HeldCopies
    from qobra.block.copy.timed import TimedCopies
    from qobra.block.node import BlockNode

SLOW_NS = 5_000_000
"""How long a write may have to wait for more than it needs."""


class OnceCopy:
    """What is left to be copied, in clusters, and what is being copied right now. Thread-safe.

    ``todo`` is a bitmap of clusters of ``cluster`` bytes that were not copied yet; the owner sets it before the copying
    begins. Everybody who calls :meth:`copy_part` or :meth:`copy_before` is inside a slot.
    """

    def __init__(self, source: BlockNode, copier: ChunkCopier, cluster: int) -> None:
        self.source = source
        self.copier = copier
        self.cluster = cluster
        self.todo = DirtyBitmap(source, None, cluster, enabled=False)
        self.copied: Callable[[int], None] | None = None
        """Told of the number of bytes of each part that was copied."""
        self.settled: Callable[[], None] | None = None
        """Called after a part was copied and before its old data may change."""
        self.timed: tuple[TimedCopies, float] | None = None
        """Who copies for a write that waits only so many seconds."""
        self.held: HeldCopies | None = None
        """Where a write may leave old data instead of waiting until the target has it."""
        self.wants_all = False
        """Whether all of ``todo`` is going to be copied, so that a write may take more of it than it must."""
        self.safe: Callable[[int, int], None] | None = None
        """Told of each range whose old data is copied or held, once writes need not ask any more."""
        self.missed = 0
        """How many parts writes had to see to themselves, more or less."""
        self._around = PIECE
        """Bytes that a write has read into memory with what it needs."""
        self._claims: dict[int, int] = {}
        self._in_memory: set[int] = set()
        """Claims whose old data is held: what lies there in the source may change."""
        self._condition = threading.Condition()

    def claim(self, offset: int, limit: int, end: int | None = None) -> tuple[int, int] | None:
        """The next part, of at most ``limit`` bytes from ``offset`` on, that is to be copied; it is the caller's now.

        None where nothing is left. A part under way is none. The caller copies it with :meth:`copy_claimed`.
        """
        with self._condition:
            end = self.todo.length if end is None else min(end, self.todo.length)
            start = self.todo.next_dirty(offset, end)
            if start >= end:
                return None
            start -= start % self.cluster
            stop = self.todo.next_clean(start, min(end, start + max(limit, self.cluster)))
            stop = min(-(-stop // self.cluster) * self.cluster, self.todo.length)
            # A write that finds nothing to do looks at the claims next, so they come first.
            self._claims[start] = stop
            self.todo.clear(start, stop - start)
            return start, stop - start

    def copy_claimed(self, offset: int, length: int) -> None:
        """Copy a claimed part and let go of it. Raises CopyFailed; the part is to be copied again then."""
        try:
            self.copier.copy(offset, length)
            if self.settled is not None:
                self.settled()
        except BaseException:
            self.todo.set(offset, length)
            raise
        else:
            if self.copied is not None:
                self.copied(length)
        finally:
            self._let_go(offset)
        if self.safe is not None:
            self.safe(offset, length)

    def _let_go(self, offset: int) -> None:
        with self._condition:
            del self._claims[offset]
            self._in_memory.discard(offset)
            self._condition.notify_all()

    def _hold_claimed(self, held: HeldCopies, offset: int, length: int) -> None:
        """Read a claimed part into memory that was reserved, for the target to get it later. Raises CopyFailed."""
        try:
            fetched = self.copier.fetch(offset, length, held.memory)
        except BaseException:
            held.release(length)
            self.todo.set(offset, length)
            self._let_go(offset)
            raise
        with self._condition:
            self._in_memory.add(offset)
            self._condition.notify_all()
        held.put(offset, length, fetched)
        if self.safe is not None:
            self.safe(offset, length)

    def _hold_around(self, held: HeldCopies, start: int, end: int) -> bool:
        """Hold what is first needed of ``start`` .. ``end`` with all around it; False where that cannot be.

        Writes tend to come where others came, and a large part costs little more than a small one.
        """
        size = max(self._around, self.cluster)
        first = self.todo.next_dirty(start, end)
        if first >= end or not held.reserve(size):
            return False
        part = self._claim_around(first, size)
        held.release(size - (part[1] if part is not None else 0))
        if part is None:
            return False  # somebody else was faster
        begun_ns = time.monotonic_ns()
        try:
            self._hold_claimed(held, *part)
        except CopyFailed:
            return False  # what is needed may do
        slow = time.monotonic_ns() - begun_ns > SLOW_NS
        self._around = max(self.cluster, size // 2) if slow else min(PIECE, 2 * size)
        return True

    def _claim_around(self, offset: int, size: int) -> tuple[int, int] | None:
        """Claim all around ``offset``, within the same ``size`` bytes, that is to be copied in one go with it."""
        low = offset - offset % size
        with self._condition:
            for start, length in self.todo.dirty_ranges(low, min(low + size, self.todo.length)):
                if start <= offset < start + length:
                    self._claims[start] = start + length
                    self.todo.clear(start, length)
                    return start, length
        return None

    def held_written(self, offset: int, length: int) -> None:
        """The target has a part that was held."""
        if self.copied is not None:
            self.copied(length)
        self._let_go(offset)

    def forget_held(self, offset: int, length: int) -> None:
        """A part that was held is not going to be written: the copy lacks it."""
        self.todo.set(offset, length)
        self._let_go(offset)

    def skip(self, offset: int, length: int) -> int:
        """There is no need to copy this range of whole clusters; returns how much of it was still to be copied."""
        with self._condition:
            skipped = sum(size for _start, size in self.todo.dirty_ranges(offset, offset + length))
            self.todo.clear(offset, length)
        if self.safe is not None:
            self.safe(offset, length)
        return skipped

    def wait(self, offset: int, length: int) -> None:
        """Wait until no part of this range is under way or held."""
        with self._condition:
            while any(first < offset + length and stop > offset for first, stop in self._claims.items()):
                self._condition.wait()

    def parts(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """The range as runs: (length, whether its old data is copied or held, for good)."""
        end = offset + length
        with self._condition:
            unsafe = [(start, start + size) for start, size in self.todo.dirty_ranges(offset, end)]
            unsafe += [
                (max(start, offset), min(stop, end))
                for start, stop in self._claims.items()
                if start < end and stop > offset and start not in self._in_memory
            ]
        runs: list[tuple[int, bool]] = []
        for start, stop in sorted(unsafe):
            if start > offset:
                runs.append((start - offset, True))
                offset = start
            if stop > offset:
                runs.append((stop - offset, False))
                offset = stop
        if offset < end:
            runs.append((end - offset, True))
        return runs

    def copy_before(self, offset: int, length: int) -> None:
        """See that the old data of this range is copied, or held, when this returns. Raises CopyFailed."""
        start = offset - offset % self.cluster
        end = min(-(-(offset + length) // self.cluster) * self.cluster, self.todo.length)
        deadline = time.monotonic() + self.timed[1] if self.timed is not None else None
        while True:
            if self.todo.next_dirty(start, end) >= end and not self._claims:
                return
            held = self.held
            if held is not None and self.wants_all and self._hold_around(held, start, end):
                self.missed += 1
                continue
            part = self.claim(start, end - start, end)
            if part is not None:
                self.missed += 1
                if held is not None and held.reserve(part[1]):
                    self._hold_claimed(held, *part)
                elif self.timed is not None and deadline is not None:
                    self.timed[0].run(self.copy_claimed, *part, deadline)
                else:
                    self.copy_claimed(*part)
                continue
            with self._condition:
                waited = False
                while any(
                    first < end and stop > start and first not in self._in_memory
                    for first, stop in self._claims.items()
                ):
                    waited = True
                    if not self._condition.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                        raise timed_out()
            if not waited or self.todo.next_dirty(start, end) >= end:
                return

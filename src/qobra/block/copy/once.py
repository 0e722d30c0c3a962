"""Copy a point in time out of a node that is being written: each part once, before it changes.

The background (a backup job) takes part after part. A write of the guest keeps the old data of the blocks that it
changes in memory (:mod:`qobra.block.copy.old_blocks`), for whoever copies their clusters; where there is no room, it
copies what it is about to change itself. A part that is being copied is claimed, and who needs it waits for that one
copy only.
"""

from __future__ import annotations

import threading
import time

from qobra.block.bitmap import DirtyBitmap
from qobra.block.copy.carrier import DIRECT
from qobra.block.copy.chunk import ChunkCopier, CopyFailed
from qobra.block.copy.old_blocks import OldBlocks, PureOldBlocks
from qobra.block.copy.timed import timed_out
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.copy.carrier import Carrier
    from qobra.block.copy.timed import TimedCopies
    from qobra.block.node import BlockNode

LIMIT = 384 << 20
"""Most bytes of old data that are kept in memory. A guest that writes all over the disk, 4 KiB at a time and as fast as
it can, needs so much for the ten seconds or so that a copy takes which leaves it nine tenths of its speed."""
LARGE = 1 << 20
"""Bytes of a write from which on it is no dearer to copy its clusters than to keep them."""


class OnceCopy:
    """What is left to be copied, in clusters, and what is being copied right now. Thread-safe.

    ``todo`` is a bitmap of clusters of ``cluster`` bytes that were not copied yet; the owner sets it, and calls
    :meth:`begin`, before the copying begins. Everybody who calls :meth:`copy_claimed` or :meth:`copy_before` is inside
    a slot.
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
        self.kept: Callable[[], None] | None = None
        """Told that a write has come this way, and left old data in memory."""
        self.missed = 0
        """How many parts writes had to copy themselves, more or less."""
        self.old: OldBlocks = PureOldBlocks(0, 16, 0, ())
        """What is kept of the old data of parts that were not copied yet."""
        self._claims: dict[int, int] = {}
        self._condition = threading.Condition()

    def begin(self, limit: int) -> None:
        """Writes see to what is in ``todo`` from now on; at most ``limit`` bytes are kept in memory for that."""
        todo = self.todo
        shift = self.cluster.bit_length() - 1
        try:
            self.old = OldBlocks(todo.length, shift, limit, todo.dirty_ranges())
        except (ValueError, MemoryError):
            self.old = PureOldBlocks(todo.length, shift, limit, todo.dirty_ranges())

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

    def copy_claimed(self, offset: int, length: int, carrier: Carrier = DIRECT) -> None:
        """Copy a claimed part and let go of it. Raises CopyFailed; the part is to be copied again then."""
        old = self.old
        try:
            self._copy_old(offset, length, carrier)
            if self.settled is not None:
                self.settled()
            while not old.settle(offset, length):
                for start, data in old.late(offset, length):
                    self.copier.write_data(start, memoryview(bytearray(data)))
        except BaseException:
            old.again(offset, length)
            self.todo.set(offset, length)
            raise
        else:
            if self.copied is not None:
                self.copied(length)
        finally:
            with self._condition:
                del self._claims[offset]
                self._condition.notify_all()

    def _copy_old(self, offset: int, length: int, carrier: Carrier) -> None:
        """Copy a part, with what is kept of it by now in its place."""
        if self.copier.compress:  # then nothing is kept
            self.copier.copy(offset, length)
            return
        for start, size, zero in self.old.runs(offset, length):
            if zero:
                self.copier.write_zeroes(start, size)
            else:
                self.copier.copy(start, size, self.old, carrier)

    def keep(self, offset: int, length: int) -> bool:
        """See that a range may be written now; False if some of it is not kept, and has to be copied.

        Raises CopyFailed if it cannot be read.
        """
        old = self.old
        for start, size in old.missing(offset, length):
            if length > LARGE or old.used + size > old.limit or not self._keep(start, size):
                return False
        return True

    def _keep(self, start: int, size: int) -> bool:
        first = start - start % self.cluster
        cluster = min(self.cluster, self.todo.length - first)
        if self.copier.reads_as_zeroes(first, cluster):
            return self.old.keep_zeroes(first, cluster)
        data = bytearray(size)
        try:
            self.source.read_into(start, memoryview(data))
        except (OSError, QobraError) as error:
            raise CopyFailed(error, True)
        return self.old.keep(start, data)

    def old_data(self, offset: int, view: memoryview) -> None:
        """Read what the source had at first of a range that was not copied yet."""
        self.source.read_into(offset, view)
        self.old.mend(offset, view, False)

    def skip(self, offset: int, length: int) -> int:
        """There is no need to copy this range of whole clusters; returns how much of it was still to be copied."""
        with self._condition:
            skipped = sum(size for _start, size in self.todo.dirty_ranges(offset, offset + length))
            self.todo.clear(offset, length)
        self.old.release(offset, length)
        return skipped

    def wait(self, offset: int, length: int) -> None:
        """Wait until no part of this range is under way."""
        with self._condition:
            while any(first < offset + length and stop > offset for first, stop in self._claims.items()):
                self._condition.wait()

    def copy_before(self, offset: int, length: int) -> None:
        """See that the old data of this range is copied, or kept, when this returns. Raises CopyFailed."""
        if self.keep(offset, length):
            if self.kept is not None and self.old.used:
                self.kept()
            return
        start = offset - offset % self.cluster
        end = min(-(-(offset + length) // self.cluster) * self.cluster, self.todo.length)
        deadline = time.monotonic() + self.timed[1] if self.timed is not None else None
        while True:
            part = self.claim(start, end - start, end)
            if part is not None:
                self.missed += 1
                if self.timed is not None and deadline is not None:
                    self.timed[0].run(self.copy_claimed, *part, deadline)
                else:
                    self.copy_claimed(*part)
                continue
            with self._condition:
                waited = False
                while any(first < end and stop > start for first, stop in self._claims.items()):
                    waited = True
                    if not self._condition.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                        raise timed_out()
            if not waited or self.todo.next_dirty(start, end) >= end:
                return

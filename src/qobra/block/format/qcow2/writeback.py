"""Writing changed metadata so that a crash at any moment leaves a valid image.

What has to be on stable storage before what:

1. new refcount blocks, increased counts, new L2 tables and guest data before anything that refers to them;
2. then the refcount table's new entries (on their own, for L2 entries rely on the counts found through them);
3. then L2 and L1 entries;
4. then decreased counts, and only then may freed clusters be used again.

A *commit* does this for all changes at once: it copies what is dirty under the image's lock, and writes without it.
Most commits cost two barriers (after 1 and after 3), however many writes they gather.
"""

from __future__ import annotations

import errno
import sys
from array import array

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.refcount import Block, pack_counts
from qobra.block.format.qcow2.tables import Slice
from qobra.errors import QobraError
from qobra.lean import Lock, deque, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.format.qcow2.image import Image

_SWAP = sys.byteorder == "little"
_ALIGN_WORDS = 512
"""Slices are written in pieces of 4 KiB, which suits O_DIRECT and the page cache."""

Freed = tuple[int, int, bool]
"""Host offset, bytes, and whether to discard them in the file once nobody refers to them."""

Write = tuple[int, bytes]
"""Host offset and the bytes to write there."""


class Writeback:
    """Commits of one image, one at a time."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._lock = Lock()
        """Held by the thread that commits; taken before the image's lock, never after it."""
        self.released: deque[list[Freed]] = deque()
        """Freed space that no request in flight can know any more, to be counted down by the next commit."""
        self._retired: dict[int, list[Freed]] = {}
        """Freed space that some request in flight may still know, by the number of its commit."""
        self._commits = 0

    def commit(self, *, durable: bool = True) -> None:
        """Write all that is dirty; with ``durable``, it is on stable storage when this returns."""
        image = self._image
        with self._lock:
            self._apply_released()
            lazy = image.node.lazy_refcounts and bool(image.header.incompatible & layout.DIRTY)
            self._write_all(durable, lazy=lazy and not image.refcounts.crowded())

    def commit_if_crowded(self) -> None:
        """Commit if caches are full of dirty entries, or much space waits to be free again."""
        image = self._image
        if image.tables.crowded() or image.refcounts.crowded() or image.freed_bytes > 64 << 20:
            self.commit()

    def settle(self) -> None:
        """Commit, and count down at once what was freed: for when the image is drained."""
        with self._lock:
            self._write_all(False, lazy=False)
            # Requests in flight elsewhere have nothing to do with this image.
            for number in sorted(self._retired):
                self._release(number)
            self._apply_released()
            self._write_all(False, lazy=False)

    def finish(self) -> None:
        """The last commit: nobody uses the image any more, and what was written is to outlive the host."""
        image = self._image
        self.settle()
        self._complete_last_cluster()
        if any(child.highest_write() for child in (image.file, image.data)) or image.node.written_around:
            self.barrier()
        self.mark_clean()

    def _complete_last_cluster(self) -> None:
        # What is written of a new cluster may end within it. It reads the same here and in QEMU, but other readers take
        # a file that ends within a cluster for a damaged one.
        image = self._image
        with image.lock:
            end = image.allocator.end_of_data()
        below = image.file
        while below.is_transparent and (shown := below.primary()) is not None:
            below = shown
        if end and not image.external and not below.is_format:  # the disk of another image has the size it was given
            length = image.file.length
            if image.reserve is not None and image.reserve.extended_to == length:
                length = (image.last_used_cluster() + 1) << image.cluster_bits
            try:
                # What was written past the driver may be shorter than the file is taken to be.
                image.file.truncate(max(end, length))
            except QobraError as error:
                if error.errno not in (errno.ENOTSUP, errno.EINVAL):  # a device or an export has the size it has
                    raise

    def mark_clean(self) -> None:
        """Clear the dirty bit: all counts are written."""
        image = self._image
        with self._lock:
            if image.header.incompatible & layout.DIRTY and not (image.is_corrupt or image.counts_doubtful):
                self.barrier()
                self.set_incompatible(layout.DIRTY, clear=True)

    # -- one commit -----------------------------------------------------------------------------------------------

    def _write_all(self, durable: bool, *, lazy: bool) -> None:
        """``lazy``: the dirty bit is set, so that counts need not be written."""
        image = self._image
        with image.lock:
            if image.reserve is not None:
                image.reserve.close()
            blocks = [] if lazy else list(image.refcounts.dirty.values())
            reftable_indexes = [] if lazy else sorted(image.refcounts.fresh)
            slices = list(image.tables.dirty.items())
            l1_indexes = sorted(image.tables.l1_dirty)
            first = [(block.offset, pack_counts(block.counts, image.refcounts.order)) for block in blocks]
            fresh_tables = image.tables.l1_dirty
            second: list[Write] = []
            for key, part in slices:
                write = _slice_write(part)
                (first if image.tables.key_l1_index(key) in fresh_tables else second).append(write)
            reftable = _entry_writes(image.header.reftable_offset, image.refcounts.table, reftable_indexes)
            second += _entry_writes(image.header.l1_offset, image.tables.l1, l1_indexes)
            frees, image.freed = image.freed, []
            image.freed_bytes = 0
            self._begin(blocks, [part for _key, part in slices], lazy)
        try:
            self._write_ordered(first, reftable, second, bool(l1_indexes))
            if durable:
                image.file.debug_event("flush_to_disk")
            if durable or frees:
                self.barrier()
        except BaseException:
            with image.lock:
                self._restore(blocks, slices, reftable_indexes, l1_indexes, frees)
            raise
        with image.lock:
            for block in blocks:
                block.busy = False
            for _key, part in slices:
                part.busy = False
        if frees:
            self._commits += 1
            number = self._commits
            self._retired[number] = frees
            image.node.layer.flight.retire(lambda: self._release(number))

    def _release(self, number: int) -> None:
        frees = self._retired.pop(number, None)
        if frees is not None:
            self.released.append(frees)

    def _write_ordered(self, first: list[Write], reftable: list[Write], second: list[Write], has_l1: bool) -> None:
        file = self._image.file
        if first:
            file.debug_event("refblock_update_part")
            if reftable:
                file.debug_event("refblock_alloc_write")
        for offset, data in _merged(first):
            file.write(offset, data)
        if reftable:
            self.barrier()
            file.debug_event("refblock_alloc_hookup")
            for offset, data in reftable:
                file.write(offset, data)
        if second:
            self.barrier()
            file.debug_event("l2_update")
            if has_l1:
                file.debug_event("l1_update")
            for offset, data in _merged(second):
                file.write(offset, data)

    def _begin(self, blocks: list[Block], slices: list[Slice], lazy: bool) -> None:
        image = self._image
        for block in blocks:
            block.dirty = False
            block.busy = True
        for part in slices:
            part.first, part.last = len(part.words), -1
            part.busy = True
        if not lazy:
            image.refcounts.dirty = {}
            image.refcounts.fresh = set()
        image.tables.dirty = {}
        image.tables.l1_dirty = set()

    def _restore(
        self,
        blocks: list[Block],
        slices: list[tuple[int, Slice]],
        reftable_indexes: list[int],
        l1_indexes: list[int],
        frees: list[Freed],
    ) -> None:
        """A write failed: all is dirty as before (more of it than need be)."""
        image = self._image
        refcounts, tables = image.refcounts, image.tables
        by_identity = {id(block): index for index, block in refcounts.blocks.items()}
        for block in blocks:
            block.busy = False
            if id(block) in by_identity:
                refcounts.mark(by_identity[id(block)], block)
        for key, part in slices:
            part.busy = False
            part.first, part.last = 0, len(part.words) - 1
            tables.dirty[key] = part
        refcounts.fresh.update(reftable_indexes)
        tables.l1_dirty.update(l1_indexes)
        image.freed += frees
        image.freed_bytes += sum(length for _offset, length, _discard in frees)

    def barrier(self) -> None:
        """All that was written is on stable storage when this returns (except with cache.no-flush)."""
        image = self._image
        if not image.node.cache_no_flush:
            image.file.flush()
            if image.data is not image.file:
                image.data.flush()

    def _apply_released(self) -> None:
        """Count down what is free for good; give its space back to the host where that was asked for."""
        image = self._image
        image.node.layer.flight.reclaim()
        released = self.released
        while released:
            for offset, length, discard in released.popleft():
                first = offset >> image.cluster_bits
                count = ((offset + length - 1) >> image.cluster_bits) - first + 1
                if discard:
                    # Before the counts drop, or a new owner's data might be discarded.
                    for start, end in self._last_references(first, count):
                        image.file.discard(start << image.cluster_bits, (end - start) << image.cluster_bits)
                with image.lock:
                    image.allocator.release(first, count)

    def _last_references(self, first: int, count: int) -> list[tuple[int, int]]:
        """The runs (first, end) among ``count`` clusters from ``first`` that have a count of 1."""
        runs: list[tuple[int, int]] = []
        refcounts = self._image.refcounts
        with self._image.lock:
            for cluster in range(first, first + count):
                if refcounts.get(cluster) == 1:
                    if runs and runs[-1][1] == cluster:
                        runs[-1] = (runs[-1][0], cluster + 1)
                    else:
                        runs.append((cluster, cluster + 1))
        return runs

    # -- written at once ------------------------------------------------------------------------------------------

    def write_count(self, cluster: int) -> None:
        """Write the count of one cluster, and of those beside it, if the refcount table on disk has their block."""
        refcounts = self._image.refcounts
        index = cluster >> refcounts.block_bits
        block = refcounts.block(index)
        if block is not None and index not in refcounts.fresh:
            self._image.file.write(block.offset, pack_counts(block.counts, refcounts.order))

    def write_header(self) -> None:
        """Write the header with its extensions, on stable storage when this returns."""
        image = self._image
        image.file.write(0, image.header.pack())
        self.barrier()

    def set_incompatible(self, bits: int, *, clear: bool = False) -> None:
        """Set (or clear) incompatible feature bits, on stable storage when this returns."""
        image = self._image
        header = image.header
        changed = header.incompatible & ~bits if clear else header.incompatible | bits
        if clear:
            # Where that fails, nobody knows what the disk has: the bits are set anew when they must be.
            header.incompatible = changed
        if header.version >= 3:
            image.file.write(layout.V2_LENGTH, changed.to_bytes(8, "big"))
            self.barrier()
        header.incompatible = changed

    def begin_marking_dirty(self) -> Callable[[], None]:
        """Set the dirty bit; what is returned waits until it is on stable storage, and raises what went wrong.

        Nothing may be written before that.
        """
        image = self._image
        if not image.file.is_leaf:  # how long another node takes, and what it does meanwhile, is not known
            self.set_incompatible(layout.DIRTY)
            return lambda: None
        header = image.header
        image.file.write(layout.V2_LENGTH, (header.incompatible | layout.DIRTY).to_bytes(8, "big"))
        beside = _Beside(self.barrier)

        def wait() -> None:
            beside.wait()
            header.incompatible |= layout.DIRTY

        return wait

    def write_new_table(self, offset: int, clusters: int) -> None:
        """The refcount table in memory, all of it, goes to ``offset``: write blocks, table and header in that order.

        Called under the image's lock. A commit that is under way may write older contents of a block after this;
        the block stays dirty, so that the next one brings the newest.
        """
        image = self._image
        refcounts = image.refcounts
        image.file.debug_event("refblock_alloc_write_blocks")
        for index in sorted(refcounts.fresh):
            block = refcounts.blocks[index]
            image.file.write(block.offset, pack_counts(block.counts, refcounts.order))
        image.file.debug_event("refblock_alloc_write_table")
        image.file.write(offset, words_to_bytes(refcounts.table))
        self.barrier()
        header = image.header
        image.file.debug_event("refblock_alloc_switch_table")
        old = header.reftable_offset, header.reftable_clusters
        header.reftable_offset, header.reftable_clusters = offset, clusters
        try:
            image.file.write(0, header.pack())
            self.barrier()
        except BaseException:
            header.reftable_offset, header.reftable_clusters = old
            raise
        refcounts.fresh = set()


class _Beside:
    """Calls ``work`` in a thread of its own."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._ended = Lock()
        """Held until the thread has ended."""
        self._failure: OSError | QobraError | None = None
        self._ended.acquire()
        start_thread(self._run, work, name="beside", imports=False)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, QobraError) as error:
            self._failure = error
        finally:
            self._ended.release()

    def wait(self) -> None:
        with self._ended:
            pass
        if self._failure is not None:
            raise self._failure


def words_to_bytes(words: array[int]) -> bytes:
    """The words in big-endian order, as they are on disk."""
    swapped = words[:]
    if _SWAP:
        swapped.byteswap()
    return swapped.tobytes()


def _slice_write(part: Slice) -> Write:
    first = part.first & -_ALIGN_WORDS
    last = min(part.last | (_ALIGN_WORDS - 1), len(part.words) - 1)
    return part.offset + first * 8, words_to_bytes(part.words[first : last + 1])


def _entry_writes(offset: int, table: array[int], indexes: list[int]) -> list[Write]:
    """Writes that bring the entries ``indexes`` (ascending) of ``table`` to disk, at least 512 bytes each."""
    writes = []
    done = -1
    for index in indexes:
        if index <= done:
            continue
        first = index & -64
        done = min(first + 63, len(table) - 1)
        writes.append((offset + first * 8, words_to_bytes(table[first : done + 1])))
    return writes


def _merged(writes: list[Write]) -> list[Write]:
    """The same writes in ascending order, those that touch made one."""
    writes.sort()
    merged: list[Write] = []
    pieces: list[bytes] = []
    start = end = -1
    for offset, data in writes:
        if offset == end:
            pieces.append(data)
        else:
            if pieces:
                merged.append((start, b"".join(pieces)))
            start, pieces = offset, [data]
        end = offset + len(data)
    if pieces:
        merged.append((start, b"".join(pieces)))
    return merged

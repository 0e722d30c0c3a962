"""Finding and counting free host clusters, and growing the refcount structures that count them.

First fit, from a hint below which nothing is free. Clusters past everything that was ever allocated and past the
end of the file as it was opened are *virgin*: they read as zeroes, so a partial write to one needs no filling.
"""

from __future__ import annotations

import errno
from array import array

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.refcount import Block, unpack_counts
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image
    from qobra.block.format.qcow2.refcount import Counts, Refcounts


class Allocator:
    """Hands out host clusters. All methods are to be called under the image's lock."""

    def __init__(self, image: Image, refcounts: Refcounts) -> None:
        self._image = image
        self._refcounts = refcounts
        self.first_free = 0
        """No cluster below this index is free."""
        self.virgin = 0
        """Clusters from this index on were never written: they read as zeroes."""
        self._data_end = 0
        """No cluster from this index on was claimed for data."""
        self._partial = 0
        """Host offset at which the next compressed cluster goes, 0 if there is no begun cluster."""

    def start(self, file_length: int) -> None:
        """The image file is ``file_length`` bytes long."""
        self.virgin = -(-file_length >> self._image.cluster_bits)
        self._partial = 0

    # -- whole clusters -----------------------------------------------------------------------------------------

    def allocate(
        self, want: int, least: int = 1, *, virgin: bool = False, near: int = 0, what: str = ""
    ) -> tuple[int, int]:
        """``least`` to ``want`` free clusters in a row, now with a count of 1: (first index, how many).

        ``virgin``: only ones that read as zeroes. ``near``: from this one on, if it is free. ``what`` is the metadata
        that goes there; guest data if empty.
        """
        self._image.file.debug_event("cluster_alloc")
        if near and near < self._refcounts.capacity:
            found = self._free_run(near, want)
            if found >= least:
                self._take(near, found, what)
                return near, found
        at = max(self.first_free, self.virgin) if virgin else self.first_free
        tight = at == self.first_free
        while True:
            capacity = self._refcounts.capacity
            first = self._find_free(at)
            if tight and self.first_free == at and self._refcounts.capacity == capacity:
                self.first_free = first  # unless the clusters of an outgrown table have become free meanwhile
            found = self._free_run(first, want)
            if found >= least:
                self._take(first, found, what)
                return first, found
            tight = False
            at = first + max(found, 1)

    def _find_free(self, at: int) -> int:
        """The first free cluster from ``at`` on; one that no block counts is free."""
        refcounts = self._refcounts
        while True:
            index = at >> refcounts.block_bits
            if index >= len(refcounts.table):
                self._grow_table(index + 1)
                continue
            block = refcounts.block(index)
            if block is None:
                return at
            start = index << refcounts.block_bits
            position = _find_zero(block.counts, at - start)
            if position >= 0:
                return start + position
            at = start + refcounts.entries_per_block

    def _free_run(self, first: int, want: int) -> int:
        """How many clusters from ``first`` on are free, up to ``want``."""
        refcounts = self._refcounts
        mask = refcounts.entries_per_block - 1
        found = 0
        while found < want:
            at = first + found
            index = at >> refcounts.block_bits
            if index >= len(refcounts.table):
                self._grow_table(index + 1)
            low = at & mask
            high = min(low + want - found, mask + 1)
            block = refcounts.block(index)
            if block is not None:
                counts = block.counts
                if counts[low] or counts[low:high] != counts[low : low + 1] * (high - low):
                    for position in range(low, high):
                        if counts[position]:
                            return found + position - low
            found += high - low
        return found

    def _take(self, first: int, count: int, what: str) -> None:
        """Count free clusters for ``what``, as in :meth:`allocate`."""
        before = self.first_free
        if before == first:
            self.first_free = first + count
        try:
            self._cover(first, count)
            if first == 0:
                if not what:
                    self._image.overlap.guard(0, count << self._image.cluster_bits)
                self._image.corrupt(f"Preventing invalid allocation of {what or 'cluster'} at offset 0", fatal=True)
            self._refcounts.add(first, count, 1)
        except BaseException:
            self.first_free = min(self.first_free, before)
            raise
        if first + count > self.virgin:
            self.virgin = first + count

    def claim_data(self, want: int, *, near: int = 0, virgin: bool = False) -> tuple[int, int]:
        """:meth:`allocate` up to ``want`` clusters for guest data, of which not all need be written."""
        first, count = self.allocate(want, near=near, virgin=virgin)
        self._data_end = max(self._data_end, first + count)
        return first, count

    def end_of_data(self) -> int:
        """Where, in bytes, the clusters end that were claimed for data here and are in use."""
        while self._data_end and not self._refcounts.get(self._data_end - 1):
            self._data_end -= 1
        return self._data_end << self._image.cluster_bits

    def _cover(self, first: int, count: int) -> None:
        """Make the blocks that count these free clusters, where there are none; they do not go into them."""
        refcounts = self._refcounts
        for index in range(first >> refcounts.block_bits, (first + count - 1 >> refcounts.block_bits) + 1):
            if refcounts.block(index) is None:
                self._new_block(index, self._place_for_block(index, first, count))

    def _place_for_block(self, index: int, first: int, count: int) -> int:
        """A free cluster for block ``index``, which that block counts or another, and not among those ``count``."""
        refcounts = self._refcounts
        at = self.first_free
        while True:
            at = self._find_free(at)
            if first <= at < first + count:
                at = first + count
                continue
            other = at >> refcounts.block_bits
            if other == index or refcounts.block(other) is not None:
                return at
            self._new_block(other, at)
            at += 1

    def has_holes(self) -> bool:
        """Whether there are free clusters before the virgin ones."""
        return self.first_free < self.virgin and self._find_free(self.first_free) < self.virgin

    def release_virgin(self, first: int, count: int) -> None:
        """:meth:`release` clusters that were not written after all."""
        self.release(first, count)
        if self.virgin == first + count:
            self.virgin = first

    def release(self, first: int, count: int) -> None:
        """Take one reference from each of ``count`` clusters."""
        self._image.file.debug_event("cluster_free")
        self._refcounts.add(first, count, -1)
        if first < self.first_free:
            self.first_free = first
        begun = self._partial >> self._image.cluster_bits
        if first <= begun < first + count and not self._refcounts.get(begun):
            self._partial = 0

    # -- compressed data ------------------------------------------------------------------------------------------

    def allocate_bytes(self, size: int) -> int:
        """The host offset of ``size`` bytes (at most two clusters) for compressed data, their clusters counted."""
        image = self._image
        image.file.debug_event("cluster_alloc_bytes")
        bits = image.cluster_bits
        refcounts = self._refcounts
        partial = self._partial
        if partial:
            inside = image.cluster_size - (partial & image.cluster_mask)
            if refcounts.get(partial >> bits) < refcounts.maximum:
                if size <= inside:
                    refcounts.add(partial >> bits, 1, 1)
                    self._advance(partial + size)
                    return partial
                more = -(-(size - inside) >> bits)
                follower = (partial >> bits) + 1
                if self._is_free_run(follower, more):
                    self._take(follower, more, "compressed cluster")
                    refcounts.add(partial >> bits, 1, 1)
                    self._advance(partial + size)
                    return partial
        first, _count = self.allocate(-(-size >> bits), -(-size >> bits), what="compressed cluster")
        self._advance((first << bits) + size)
        return first << bits

    def _advance(self, end: int) -> None:
        self._partial = end if end & self._image.cluster_mask else 0

    def _is_free_run(self, first: int, count: int) -> bool:
        refcounts = self._refcounts
        return all(
            refcounts.block(cluster >> refcounts.block_bits) is not None and not refcounts.get(cluster)
            for cluster in range(first, first + count)
        )

    # -- the refcount structures ----------------------------------------------------------------------------------

    def _empty_block(self) -> Counts:
        return unpack_counts(bytes(self._image.cluster_size), self._refcounts.order)

    def _new_block(self, index: int, place: int) -> None:
        """Make block ``index`` in the free cluster ``place``, which is counted already or by the new block itself."""
        refcounts = self._refcounts
        image = self._image
        if place == 0:
            image.corrupt("Preventing invalid allocation of refcount block at offset 0", fatal=True)
        image.note_metadata(place << image.cluster_bits, 1)
        block = Block(place << image.cluster_bits, self._empty_block())
        refcounts.insert(index, block)
        refcounts.mark(index, block)
        refcounts.table[index] = block.offset
        refcounts.fresh.add(index)
        refcounts.add(place, 1, 1)
        if place >= self.virgin:
            self.virgin = place + 1

    def _grow_table(self, entries: int) -> None:
        """Make the table at least ``entries`` long: a new one, with the blocks that count it, past the old one's reach.

        Written through at once, as it is rare: blocks, then table, then header, each on stable storage before the next.
        """
        image = self._image
        refcounts = self._refcounts
        bits = image.cluster_bits
        image.file.debug_event("reftable_grow")
        first = refcounts.capacity
        total, clusters = self._table_size(first + refcounts.entries_per_block, entries)
        blocks = total - len(refcounts.table)
        if clusters << bits > layout.MAX_REFTABLE_BYTES:
            raise QobraError("The image file is as large as its refcount table can count", errno=errno.EFBIG)
        image.note_metadata(first << bits, blocks + clusters)
        old_table, virgin = refcounts.table, self.virgin
        old = image.header.reftable_offset, image.header.reftable_clusters, len(old_table)
        table = array("Q", old_table)
        table.frombytes(bytes((clusters << bits) - 8 * len(table)))
        refcounts.table = table
        for number in range(blocks):
            index = old[2] + number
            block = Block(first + number << bits, self._empty_block())
            table[index] = block.offset
            refcounts.insert(index, block)
            refcounts.mark(index, block)
            refcounts.fresh.add(index)
        refcounts.add(first, blocks + clusters, 1)
        self.virgin = max(self.virgin, first + blocks + clusters)
        try:
            image.writeback.write_new_table(first + blocks << bits, clusters)
        except BaseException:
            # The header does not refer to it, so there is no such table, nor the blocks that only it has.
            refcounts.table, self.virgin = old_table, virgin
            for index in range(old[2], old[2] + blocks):
                refcounts.remove(index)
            image.forget_metadata(first << bits, blocks + clusters)
            raise
        image.forget_metadata(old[0], old[1])
        self.release(old[0] >> bits, old[1])

    def _table_size(self, used: int, entries: int) -> tuple[int, int]:
        """(blocks, clusters of a table of at least ``entries``) for an image of ``used`` clusters, with some room."""
        bits, block_bits = self._image.cluster_bits, self._refcounts.block_bits
        blocks = table = 0
        for room in (0, 1):
            used += room * (table + 1 >> 1)
            while True:
                # The structures count themselves.
                needed = -(-(used + blocks + table) >> block_bits)
                if needed <= blocks:
                    break
                blocks = needed
                table = -(-8 * blocks >> bits)
        clusters = -(-8 * max(entries, blocks + (blocks + 1 >> 1)) >> bits)
        old = len(self._refcounts.table)
        while blocks << block_bits < self._refcounts.capacity + blocks - old + clusters:
            blocks += 1
        return blocks, clusters


def _find_zero(counts: Counts, start: int) -> int:
    """Index of the first zero at or after ``start``, -1 if there is none."""
    if isinstance(counts, bytearray):
        return counts.find(0, start)
    if start < len(counts) and not counts[start]:
        return start
    # Few are free in a large image: bytes are searched ten times faster than an array.
    width = counts.itemsize
    raw, zero = counts.tobytes(), bytes(width)
    at = raw.find(zero, start * width)
    while at > 0 and at % width:
        at = raw.find(zero, at + 1)
    return at // width if at >= 0 else -1

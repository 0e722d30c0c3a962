"""The mapping tables: L1 in memory as a whole, L2 in slices in a bounded write-back cache.

A slice is a part of an L2 table (or all of it) as an ``array('Q')`` in host byte order, with one word a cluster, two
with extended entries. Changed slices stay in the cache until :mod:`writeback` has written them.
"""

from __future__ import annotations

from array import array

from qobra.block.format.qcow2 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image


class Slice:
    """A slice: ``words`` that lie at host ``offset``; words ``first`` to ``last`` are changed (none if last < 0)."""

    __slots__ = ("busy", "first", "last", "offset", "used", "words")

    def __init__(self, offset: int, words: array[int]) -> None:
        self.offset = offset
        self.words = words
        self.first = len(words)
        self.last = -1
        self.busy = False
        """Being written: must stay in the cache."""
        self.used = True


class Tables:
    """L1 and the L2 cache. All methods are to be called under the image's lock."""

    def __init__(self, image: Image, cache_bytes: int, slice_bytes: int) -> None:
        self._image = image
        header = image.header
        self.word_bits = 1 if header.extended_l2 else 0
        """log2 of the words of an entry."""
        self.table_bits = header.cluster_bits - 3 - self.word_bits
        """log2 of the guest clusters that an L2 table maps."""
        self.slice_bits = slice_bytes.bit_length() - 1 - 3 - self.word_bits
        """log2 of the guest clusters that a slice maps."""
        self.slice_bytes = slice_bytes
        self.slice_mask = (1 << self.slice_bits) - 1
        self._slices_bits = self.table_bits - self.slice_bits
        self.capacity = max(4, cache_bytes // slice_bytes)
        self.l1: array[int] = array("Q")
        self.slices: dict[int, Slice] = {}
        self.dirty: dict[int, Slice] = {}
        self.l1_dirty: set[int] = set()
        """L1 entries that the table on disk does not have yet."""

    def load_l1(self) -> None:
        """Read L1, whose place and size the header gives (checked there)."""
        header = self._image.header
        self.l1 = self._image.read_array(header.l1_offset, header.l1_entries)

    def l1_index(self, cluster: int) -> int:
        """The L1 entry for guest cluster ``cluster``."""
        return cluster >> self.table_bits

    def find(self, cluster: int) -> Slice | None:
        """The slice that maps guest cluster ``cluster``, None where there is no L2 table."""
        key = cluster >> self.slice_bits
        found = self.slices.get(key)
        if found is not None:
            found.used = True
            return found
        return self._load(key)

    def _load(self, key: int) -> Slice | None:
        l1_index = key >> self._slices_bits
        if l1_index >= len(self.l1):
            return None
        table = self.l1[l1_index] & layout.OFFSET_MASK
        if not table:
            return None
        image = self._image
        if table & image.cluster_mask:
            image.corrupt(
                f"L2 table offset {table:#x} unaligned (L1 index: {layout.hexadecimal(l1_index)})", fatal=True
            )
        image.file.debug_event("l2_load")
        offset = table + (key & ((1 << self._slices_bits) - 1)) * self.slice_bytes
        fresh = Slice(offset, image.read_array(offset, self.slice_bytes // 8))
        self._insert(key, fresh)
        return fresh

    def _insert(self, key: int, fresh: Slice) -> None:
        slices = self.slices
        if len(slices) >= self.capacity:
            for old_key in list(slices):
                old = slices[old_key]
                if old.used:
                    old.used = False
                elif old.last < 0 and not old.busy:
                    del slices[old_key]
                    if len(slices) < self.capacity:
                        break
        slices[key] = fresh

    def crowded(self) -> bool:
        """Whether so many slices are dirty that they should be written."""
        return len(self.dirty) * 2 > self.capacity

    def writable(self, cluster: int) -> Slice:
        """The slice that maps guest cluster ``cluster``, in an L2 table of this L1's own: made or copied if need be."""
        l1_index = cluster >> self.table_bits
        entry = self.l1[l1_index]
        if not entry & layout.COPIED:
            self._own_table(l1_index, cluster >> self.slice_bits)
        elif entry & layout.OFFSET_MASK >= self._image.file.length:
            self._image.corrupt(
                f"L2 table offset {entry & layout.OFFSET_MASK:#x} is past the end of the image file", fatal=True
            )
        found = self.find(cluster)
        assert found is not None
        if found.last < 0:
            self._image.overlap.guard_own(found.offset, "active-l2")
        return found

    def _own_table(self, l1_index: int, key: int) -> None:
        """Give the L1 entry a table of its own, of which the slice ``key`` is wanted."""
        image = self._image
        old = self.l1[l1_index] & layout.OFFSET_MASK
        first, _count = image.allocator.allocate(1, what="L2 table")
        new = first << image.cluster_bits
        image.note_metadata(new, 1)
        try:
            self._write_table(old, new)
            if image.node.lazy_refcounts:
                # So that a repair after a crash has only data to count anew, not the tables that it finds them by.
                image.writeback.write_count(first)
        except BaseException:
            image.forget_metadata(new, 1)
            image.allocator.release(first, 1)
            raise
        if not old:
            offset = new + (key & ((1 << self._slices_bits) - 1)) * self.slice_bytes
            self._insert(key, Slice(offset, array("Q", bytes(self.slice_bytes))))
        self.l1[l1_index] = new | layout.COPIED
        self.l1_dirty.add(l1_index)
        for part in range(1 << self._slices_bits):
            cached = self.slices.get(l1_index << self._slices_bits | part)
            if cached is not None:
                cached.offset = new + part * self.slice_bytes
        if old:
            image.free(old, image.cluster_size)

    def _write_table(self, old: int, new: int) -> None:
        """Make a table at host offset ``new``: the same as that at ``old``, or an empty one."""
        image = self._image
        if old:
            # Shared with a snapshot, and so never dirty: the copy on disk is current.
            image.file.debug_event("l2_alloc_cow_read")
            content = image.read_meta(old, image.cluster_size)
            image.file.debug_event("l2_alloc_write")
            image.file.write(new, content)
        else:
            image.file.debug_event("l2_alloc_write")
            # Written, not left as a hole: once the table is there, a full disk cannot keep its entries from it.
            image.file.write(new, bytes(image.cluster_size))

    def mark(self, cluster: int, part: Slice, first: int, last: int) -> None:
        """Words ``first`` to ``last`` (inclusive) of ``part``, the slice of guest cluster ``cluster``, have changed."""
        if part.last < 0:
            self.dirty[cluster >> self.slice_bits] = part
            part.first, part.last = first, last
            return
        if first < part.first:
            part.first = first
        if last > part.last:
            part.last = last

    def key_l1_index(self, key: int) -> int:
        """The L1 entry of the table that the slice with ``key`` is a part of."""
        return key >> self._slices_bits

    def forget_table(self, l1_index: int) -> None:
        """The L2 table of an L1 entry is gone: drop its slices, dirty or not."""
        for part in range(1 << self._slices_bits):
            key = l1_index << self._slices_bits | part
            self.slices.pop(key, None)
            self.dirty.pop(key, None)

    def drop(self) -> None:
        """Forget all slices; none may be dirty."""
        self.slices = {}

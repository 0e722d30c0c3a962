"""Reference counts of host clusters: the table, its blocks in all widths, and a bounded cache of them.

Counts are changed in memory under the image's lock and written by :mod:`writeback`, which keeps the order that makes
a crash harmless. In memory a block is a sequence with an element for each cluster, whatever the width on disk.
"""

from __future__ import annotations

import errno
import sys
from array import array

from qobra.block.format.qcow2 import layout
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.format.qcow2.image import Image

    Counts = bytearray | array[int]

_CODES = {4: "H", 5: "I", 6: "Q"}
_SWAP = sys.byteorder == "little"


def unpack_counts(data: bytes, order: int) -> Counts:
    """The counts that a block of ``1 << order`` bits each holds."""
    if order == 3:
        return bytearray(data)
    if order > 3:
        counts = array(_CODES[order], data)
        if _SWAP:
            counts.byteswap()
        return counts
    # The first count is in the least significant bits: take the counts of each position in a byte all at once.
    width = 1 << order
    packed = int.from_bytes(data, "little")
    mask = int.from_bytes(bytes(((1 << width) - 1,)) * len(data), "little")
    per_byte = 8 // width
    unpacked = bytearray(len(data) * per_byte)
    for position in range(per_byte):
        unpacked[position::per_byte] = (packed >> (position * width) & mask).to_bytes(len(data), "little")
    return unpacked


def pack_counts(counts: Counts, order: int) -> bytes:
    """The reverse of :func:`unpack_counts`."""
    if order == 3:
        return bytes(counts)
    if isinstance(counts, array):
        swapped = array(counts.typecode, counts)
        if _SWAP:
            swapped.byteswap()
        return swapped.tobytes()
    width = 1 << order
    per_byte = 8 // width
    packed = 0
    for position in range(per_byte):
        packed |= int.from_bytes(counts[position::per_byte], "little") << (position * width)
    return packed.to_bytes(len(counts) // per_byte, "little")


class Block:
    """A refcount block in memory."""

    __slots__ = ("busy", "counts", "dirty", "offset", "outside", "used")

    def __init__(self, offset: int, counts: Counts) -> None:
        self.offset = offset
        self.counts = counts
        self.dirty = False
        self.busy = False
        """Being written: must stay in the cache."""
        self.outside = False
        """Past the end of the file, so that all counts are 0, and stay so."""
        self.used = True


class Refcounts:
    """The counts of all clusters of an image. All methods are to be called under the image's lock."""

    def __init__(self, image: Image, cache_bytes: int) -> None:
        header = image.header
        self._image = image
        self._cache_bytes = cache_bytes
        self._take_order(header.refcount_order)
        self.table: array[int] = array("Q")
        self.fresh: set[int] = set()
        """Indexes of table entries that the table on disk does not have yet."""
        self.blocks: dict[int, Block] = {}
        self.dirty: dict[int, Block] = {}

    def _take_order(self, order: int) -> None:
        self.order = order
        self.maximum = (1 << (1 << order)) - 1
        self.block_bits = self._image.header.cluster_bits + 3 - order
        self.width = max(1, (1 << order) >> 3)
        """Bytes of a count in memory."""
        self._capacity = max(4, self._cache_bytes // ((1 << self.block_bits) * self.width))

    def resize_cache(self, cache_bytes: int) -> None:
        """Start with an empty cache of another size; nothing may be dirty."""
        self._cache_bytes = cache_bytes
        self._take_order(self.order)
        self.blocks = {}

    @property
    def entries_per_block(self) -> int:
        """Clusters that one block counts."""
        return 1 << self.block_bits

    @property
    def capacity(self) -> int:
        """Clusters that the table can count without growing."""
        return len(self.table) << self.block_bits

    def entries(self) -> Iterator[tuple[int, int]]:
        """The table's entries that are not 0, with their indexes. Most of a table is empty."""
        used = -(-len(self.table.tobytes().rstrip(b"\0")) // 8)
        return ((index, entry) for index, entry in enumerate(self.table[:used]) if entry)

    def drop(self) -> None:
        """Forget all blocks; none may be dirty."""
        self.blocks = {}

    def load_table(self) -> None:
        """Read the table, whose place and size the header gives (checked there)."""
        header = self._image.header
        self._take_order(header.refcount_order)
        self.blocks = {}
        self._image.file.debug_event("reftable_load")
        size = header.reftable_clusters << header.cluster_bits
        self.table = self._image.read_array(header.reftable_offset, size // 8)

    def block(self, index: int) -> Block | None:
        """Block ``index`` of the table, or None where none is allocated (all counts are 0)."""
        block = self.blocks.get(index)
        if block is not None:
            block.used = True
            return block
        if index >= len(self.table):
            return None
        offset = self.table[index] & layout.REFTABLE_MASK
        if not offset:
            return None
        image = self._image
        if offset & image.cluster_mask:
            image.corrupt(
                f"Refblock offset {offset:#x} unaligned (reftable index: {layout.hexadecimal(index)})", fatal=True
            )
        block = Block(offset, unpack_counts(image.read_meta(offset, image.cluster_size), self.order))
        block.outside = offset >= image.file.length
        self.insert(index, block)
        return block

    def insert(self, index: int, block: Block) -> None:
        """Put a block into the cache, and push out one that is not needed now if the cache is full."""
        blocks = self.blocks
        if len(blocks) >= self._capacity:
            for key in list(blocks):
                old = blocks[key]
                if old.used:
                    old.used = False
                elif not old.dirty and not old.busy:
                    del blocks[key]
                    if len(blocks) < self._capacity:
                        break
        blocks[index] = block

    def remove(self, index: int) -> None:
        """Forget a new block that nothing refers to after all."""
        self.blocks.pop(index, None)
        self.dirty.pop(index, None)
        self.fresh.discard(index)

    def crowded(self) -> bool:
        """Whether so many blocks are dirty that they should be written."""
        return len(self.dirty) * 2 > self._capacity

    def get(self, cluster: int) -> int:
        """The count of host cluster ``cluster``."""
        block = self.block(cluster >> self.block_bits)
        if block is None:
            return 0
        count: int = block.counts[cluster & (self.entries_per_block - 1)]
        return count

    def mark(self, index: int, block: Block) -> None:
        """The counts of ``block`` change. Raises QobraError where it cannot be written."""
        if not block.dirty:
            if block.outside:
                text = f"Refblock offset {block.offset:#x} is past the end of the image file"
                self._image.corrupt(text, fatal=True)
            self._image.overlap.guard_own(block.offset, "refcount-block")
            block.dirty = True
            self.dirty[index] = block

    def set(self, cluster: int, value: int) -> None:
        """Set one count. The block must exist."""
        index = cluster >> self.block_bits
        block = self.block(index)
        if block is None:
            raise QobraError(f"No refcount block covers cluster {cluster:#x}", errno=errno.EIO)
        self.mark(index, block)
        block.counts[cluster & (self.entries_per_block - 1)] = value

    def add(self, cluster: int, count: int, delta: int) -> None:
        """Change the counts of ``count`` clusters from ``cluster`` by ``delta``.

        Raises QobraError, and changes nothing, where one would overflow or become negative; their blocks must exist.
        """
        mask = self.entries_per_block - 1
        tell = self._image.file.debug_event
        done = 0
        while done < count:
            at = cluster + done
            index = at >> self.block_bits
            tell("refblock_alloc")
            block = self.block(index)
            tell("refblock_load")
            low = at & mask
            high = min(low + count - done, mask + 1)
            if block is None:
                self.add(cluster, done, -delta)
                raise QobraError(f"Cluster {at:#x} has no refcount", errno=errno.EIO)
            counts = block.counts
            part = counts[low:high]
            same = part[:1] * len(part)  # most often they are, and that is compared in one go
            lowest, highest = (part[0], part[0]) if part == same else (min(part), max(part))
            if lowest + delta < 0 or highest + delta > self.maximum:
                self.add(cluster, done, -delta)
                if delta > 0:
                    raise QobraError("Refcount overflow", errno=errno.EINVAL)
                raise QobraError(f"Refcount of cluster {at:#x} would become negative", errno=errno.EIO)
            self.mark(index, block)
            if lowest == highest:
                part[0] += delta
                counts[low:high] = part[:1] * (high - low)  # type: ignore[assignment]
            else:
                for position in range(low, high):
                    counts[position] += delta
            done += high - low

"""What an L1 table refers to, counted by host cluster, and changing the refcounts by that: for snapshots.

Works on whole tables and blocks at a time, with big integers for what is the same in every entry.
"""

from __future__ import annotations

import errno
import sys
from array import array
from typing import TYPE_CHECKING

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.counts import CompactCounts
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image

_COPIED = layout.COPIED
_OFFSET = layout.OFFSET_MASK
_SWAP = sys.byteorder == "little"


def references_of(image: Image, l1: array[int]) -> CompactCounts:
    """How often the L2 tables in ``l1``, and all that is mapped in them, refer to each cluster of the image file."""
    bits = image.cluster_bits
    counts = CompactCounts((image.file.length >> bits) + 2)
    limit = len(counts)
    low = counts.low
    step = 1 << image.tables.word_bits
    for entry in l1:
        table = entry & _OFFSET
        if not table:
            continue
        _check_place(image, table)
        counts.add(table >> bits, 1)
        previous = -1
        for word in image.read_array(table, image.cluster_size // 8)[::step]:
            if not word & (_OFFSET | layout.COMPRESSED_FLAG):
                continue
            if word & layout.COMPRESSED_FLAG:
                offset, size = layout.compressed_place(word, bits)
                first = offset >> bits
                last = (offset + size - 1) >> bits
                _check_place(image, first << bits)
                counts.add(first, min(last, limit - 1) - first + 1)
                continue
            cluster = (word & _OFFSET) >> bits
            if cluster != previous + 1 or cluster >= limit:
                _check_place(image, word & _OFFSET)
            previous = cluster
            if low[cluster]:
                counts.add(cluster, 1)
            else:
                low[cluster] = 1
    return counts


def _check_place(image: Image, offset: int) -> None:
    if offset & image.cluster_mask or offset >= image.file.length:
        raise QobraError(f"Table refers to host offset {offset:#x}, which cannot be; check the image", errno=errno.EIO)


def change_counts(image: Image, delta: CompactCounts, sign: int) -> list[tuple[int, int]]:
    """Add (``sign`` 1) or subtract (-1) ``delta`` from the refcounts in memory.

    Returns the runs (first, end) of clusters that became free. Raises QobraError, before anything has changed, where
    a count would leave its bounds.
    """
    refcounts = image.refcounts
    size = refcounts.entries_per_block
    touched = [
        index
        for index in range(-(-len(delta) // size))
        if delta.low.count(0, index * size, (index + 1) * size) < min(size, len(delta) - index * size)
    ]
    freed: list[tuple[int, int]] = []
    with image.lock:
        for apply in (False, True):
            for index in touched:
                _change_block(image, delta, sign, index, freed if apply else None)
        if freed:
            image.allocator.first_free = min(image.allocator.first_free, freed[0][0])
    return freed


def _change_block(
    image: Image, delta: CompactCounts, sign: int, index: int, freed: list[tuple[int, int]] | None
) -> None:
    """Check block ``index`` if ``freed`` is None, else change it."""
    refcounts = image.refcounts
    size = refcounts.entries_per_block
    start = index * size
    block = refcounts.block(index)
    if block is None:
        raise QobraError(f"No refcounts for cluster {start:#x} and on; check the image", errno=errno.EIO)
    counts = block.counts
    for at, change in enumerate(delta.low[start : start + size]):
        if not change:
            continue
        value = counts[at] + sign * (change if change < 255 else delta.get(start + at))
        if freed is None:
            if value > refcounts.maximum:
                raise QobraError("Refcount overflow", errno=errno.EINVAL)
            if value < 0:
                raise QobraError(f"Refcount of cluster {start + at:#x} is too low; check the image", errno=errno.EIO)
            continue
        counts[at] = value
        if not value:
            cluster = start + at
            if freed and freed[-1][1] == cluster:
                freed[-1] = (freed[-1][0], cluster + 1)
            else:
                freed.append((cluster, cluster + 1))
    if freed is not None:
        refcounts.mark(index, block)


def clear_copied(image: Image, l1: array[int]) -> None:
    """Clear COPIED in every entry of ``l1`` and, on disk, of its L2 tables. The clean L2 cache is dropped."""
    size = image.cluster_size
    word_bytes = 8 << image.tables.word_bits
    # On disk, COPIED is the first bit of an entry.
    mask = int.from_bytes((b"\x7f" + b"\xff" * (word_bytes - 1)) * (size // word_bytes), "big")
    for index, entry in enumerate(l1):
        table = entry & _OFFSET
        if not table:
            continue
        raw = image.read_meta(table, size)
        value = int.from_bytes(raw, "big")
        cleared = value & mask
        if cleared != value:
            image.file.write(table, cleared.to_bytes(size, "big"))
        l1[index] = entry & ~_COPIED
    image.tables.drop()


def set_copied(image: Image, l1: array[int]) -> None:
    """Set COPIED in ``l1`` and, on disk, its L2 tables where a refcount is 1 and clear it where it is not."""
    refcounts = image.refcounts
    bits = image.cluster_bits
    step = 1 << image.tables.word_bits
    for index, entry in enumerate(l1):
        table = entry & _OFFSET
        if not table:
            continue
        with image.lock:
            l1[index] = _flagged(entry, refcounts.get(table >> bits))
        words = image.read_array(table, image.cluster_size // 8)
        before = words[:]
        with image.lock:
            block_index, counts = -1, None
            for at in range(0, len(words), step):
                word = words[at]
                if not word & _OFFSET or word & layout.COMPRESSED_FLAG:
                    continue
                cluster = (word & _OFFSET) >> bits
                if cluster >> refcounts.block_bits != block_index:
                    block_index = cluster >> refcounts.block_bits
                    block = refcounts.block(block_index)
                    counts = block.counts if block is not None else None
                count = counts[cluster & (refcounts.entries_per_block - 1)] if counts is not None else 0
                words[at] = _flagged(word, count)
        if words != before:
            if _SWAP:
                words.byteswap()
            image.file.write(table, words.tobytes())
    image.tables.drop()


def _flagged(entry: int, count: int) -> int:
    return entry | _COPIED if count == 1 else entry & ~_COPIED

"""Replacing zero clusters, which version 2 does not know, by what it does know."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.snapshots import read_l1_or_report
from qobra.block.format.qcow2.writeback import words_to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.image import Image


def expand_zero_clusters(node: Qcow2Disk, tell: Callable[[int, int], None]) -> None:
    """Unmap zero clusters where nothing lies below, fill them with zeroes where a backing file does.

    In all L2 tables, those of snapshots too. The image is settled and drained.
    """
    image = node.image
    entries = _all_l1_entries(node)
    tables: dict[int, int] = {}
    for entry in entries:
        table = entry & layout.OFFSET_MASK
        if table:
            tables[table] = tables.get(table, 0) + 1
    for index, entry in enumerate(image.tables.l1):
        if entry & layout.OFFSET_MASK & image.cluster_mask:
            text = f"L2 table offset {entry & layout.OFFSET_MASK:#x} unaligned (L1 index: {layout.hexadecimal(index)})"
            image.corrupt(text, fatal=True)
    for number, entry in enumerate(entries, 1):
        tell(number, len(entries))
        table = entry & layout.OFFSET_MASK
        references = tables.pop(table, 0)
        if not references:
            continue  # none there, or seen to already
        words = image.read_array(table, image.cluster_size // 8)
        if _expand_table(image, table, words, references, node.backing is not None):
            image.writeback.settle()
            image.file.write(table, words_to_bytes(words))
    image.tables.drop()
    image.writeback.settle()
    node.moved(0, max(node.length, 1))


def has_compressed_clusters(node: Qcow2Disk) -> bool:
    """Whether the image or one of its snapshots has a compressed cluster."""
    image = node.image
    tables = {entry & layout.OFFSET_MASK & ~image.cluster_mask for entry in _all_l1_entries(node)} - {0}
    step = 1 << image.tables.word_bits
    return any(
        word & layout.COMPRESSED_FLAG
        for table in sorted(tables)
        for word in image.read_array(table, image.cluster_size // 8)[::step]
    )


def _all_l1_entries(node: Qcow2Disk) -> list[int]:
    """The entries of the active L1 table and of those of snapshots."""
    image = node.image
    entries: list[int] = []
    for l1 in [image.tables.l1, *(read_l1_or_report(image, snapshot) for snapshot in node.snapshots.entries)]:
        entries.extend(l1)
    return entries


def _expand_table(image: Image, table: int, words: array[int], references: int, backed: bool) -> bool:
    changed = False
    for at, word in enumerate(words):
        if not word & layout.ZERO_FLAG or word & layout.COMPRESSED_FLAG:
            continue
        host = word & layout.OFFSET_MASK
        if host & image.cluster_mask:
            place = f"(L2 offset: {table:#x}, L2 index: {layout.hexadecimal(at >> image.tables.word_bits)})"
            image.corrupt(f"Cluster allocation offset {host:#x} unaligned {place}", fatal=True)
        if not host and not backed:
            words[at] = 0
        else:
            if not host:
                with image.lock:
                    first, _count = image.allocator.allocate(1)
                    if references > 1:
                        image.refcounts.add(first, 1, references - 1)
                host = first << image.cluster_bits
                word = host | (layout.COPIED if references == 1 else 0)
            image.file.write_zeroes(host, image.cluster_size)
            words[at] = word & ~layout.ZERO_FLAG
        changed = True
    return changed

"""Emptying an image at once: what is left is a header, a refcount table with a block, and an L1 table."""

from __future__ import annotations

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.refcount import pack_counts, unpack_counts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk


def can_be_emptied(node: Qcow2Disk) -> bool:
    """Whether nothing but guest data would be lost, and one refcount block counts all that is left."""
    header = node.header
    kept = node.snapshots.entries or header.bitmaps is not None or header.crypto is not None or header.external_data
    clusters = 3 + (-(-header.l1_entries * 8 >> header.cluster_bits))
    return header.version >= 3 and not kept and clusters <= node.image.refcounts.entries_per_block


def make_completely_empty(node: Qcow2Disk) -> None:
    """Drop all guest data of an image that :func:`can_be_emptied` (drained), and the rest of the file with it.

    It is marked dirty meanwhile, so that what a crash leaves is repaired when it is opened.
    """
    image = node.image
    image.writeback.settle()
    image.writeback.set_incompatible(layout.DIRTY)
    try:
        _write_empty(node, -(-node.header.l1_entries * 8 >> image.cluster_bits))
        image.reload()
    except BaseException:
        image.is_corrupt = True  # nobody knows what the file holds now; it is found out when it is opened
        raise
    image.writeback.mark_clean()
    node.moved(0, max(node.length, 1))


def _write_empty(node: Qcow2Disk, l1_clusters: int) -> None:
    image, header, file = node.image, node.header, node.image.file
    size = image.cluster_size
    file.debug_event("l1_update")
    file.write_zeroes(header.l1_offset, l1_clusters * size)
    image.writeback.barrier()  # nothing refers to guest data any more
    file.debug_event("empty_image_prepare")
    file.write_zeroes(size, (2 + l1_clusters) * size)
    file.debug_event("reftable_update")
    header.reftable_offset, header.reftable_clusters, header.l1_offset = size, 1, 3 * size
    image.writeback.write_header()
    file.debug_event("refblock_alloc")
    counts = unpack_counts(bytes(size), header.refcount_order)
    for cluster in range(3 + l1_clusters):
        counts[cluster] = 1
    file.write(2 * size, pack_counts(counts, header.refcount_order))
    file.write(size, (2 * size).to_bytes(8, "big"))
    file.truncate((3 + l1_clusters) * size, exact=False)

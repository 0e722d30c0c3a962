"""Changing the size of an image, and preallocating its clusters. The node is drained while this runs."""

from __future__ import annotations

import errno
import os
from array import array

from qobra.block.buffers import is_zero
from qobra.block.extents import COMPUTED, DATA
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.header import l1_entries_for
from qobra.block.format.qcow2.writeback import words_to_bytes
from qobra.errors import QobraError, errno_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.image import Image


def resize(node: Qcow2Disk, length: int, preallocation: str, exact: bool) -> None:
    """Give the disk ``length`` bytes. New space reads as zeroes, whatever a backing file has there.

    Raises QobraError in QEMU's words.
    """
    image = node.image
    if length & 511:
        raise QobraError("The new size must be a multiple of 512", errno=errno.EINVAL)
    if node.snapshots.entries and image.header.version < 3:
        raise QobraError("Can't resize a v2 image which has snapshots", errno=errno.ENOTSUP)
    if node.has_bitmaps:
        node.stored_bitmaps.check_resizable()
    old = node.length
    if length < old:
        if preallocation != "off":
            raise QobraError("Preallocation can't be used for shrinking an image", errno=errno.EINVAL)
        _shrink(node, length)
    else:
        if l1_entries_for(image.header, length) * 8 > layout.MAX_L1_BYTES:
            raise QobraError("Failed to grow the L1 table: File too large", errno=errno.EFBIG)
        _grow(node, length, preallocation, exact)


def _grow(node: Qcow2Disk, length: int, preallocation: str, exact: bool) -> None:
    image = node.image
    old = node.length
    if node.data_file_raw and preallocation == "off":
        preallocation = "metadata"  # whoever reads the image must see what the raw file holds
    try:
        grow_l1(image, l1_entries_for(image.header, length))
    except (OSError, QobraError) as error:
        raise _because("Failed to grow the L1 table", error)
    if image.external and image.data.length < length:
        image.data.truncate(length, preallocation=preallocation if preallocation != "metadata" else "off", exact=exact)
    node.length = length
    try:
        _hide_old_tail(node, old, length)
        backing = node.backing
        hides = length > old and backing is not None and backing.length > old
        if preallocation != "off" and length > old:
            try:
                _preallocate_over(node, old, length, preallocation, hides)
            except (OSError, QobraError) as error:
                if isinstance(error, QobraError) and preallocation != "metadata":
                    raise  # says what could not be done to the file
                raise _because("Allocating clusters failed", error)
        elif hides:
            # All of it, as the backing file may grow.
            node.zero_new(old, length - old)
    except BaseException:
        node.length = old
        raise
    _set_size(node, length)


def _because(failed: str, error: OSError | QobraError) -> QobraError:
    number = errno_of(error)
    return QobraError(f"{failed}: {os.strerror(number)}", errno=number)


def _preallocate_over(node: Qcow2Disk, old: int, length: int, mode: str, hides: bool) -> None:
    """Preallocate from ``old`` to ``length``. ``hides``: the backing file has data there that is not to show."""
    from qobra.block.format.qcow2.preallocation import preallocate

    image = node.image
    backing = node.backing
    edge = min(length, (old + image.cluster_mask) & ~image.cluster_mask)
    if edge > old and backing is not None and backing.length > old & ~image.cluster_mask:
        node.write_zero_bytes(old, edge - old)  # in a cluster with what the backing file has before the old end
    elif edge > old and mode != "metadata":
        _reserve_old_tail(node, old, edge)
    flagged = hides and mode == "metadata" and image.header.version >= 3 and not (image.extended or image.external)
    preallocate(node, old, length, mode, zero=flagged)
    if image.extended and hides and length > edge:
        node.zero_new(edge, length - edge)  # subclusters are still to be filled


def _reserve_old_tail(node: Qcow2Disk, old: int, end: int) -> None:
    """The last cluster is there already, but may be a hole of the file."""
    at = old
    for extent in tuple(node.map(old, end - old)):
        if extent.kind == DATA:
            node.write(at, bytes(extent.length))
        at += extent.length


def _hide_old_tail(node: Qcow2Disk, old: int, length: int) -> None:
    """What lies in the last cluster past the old end may be anything."""
    image = node.image
    end = min(length, (old + image.cluster_mask) & ~image.cluster_mask)
    if old < end and any(extent.kind in (DATA, COMPUTED) for extent in node.map(old, end - old)):
        if not is_zero(node.read(old, end - old)):  # a compressed cluster stays one
            node.write_zero_bytes(old, end - old)


def _shrink(node: Qcow2Disk, length: int) -> None:
    image = node.image
    bits = image.cluster_bits
    old = node.length
    first = (length + image.cluster_mask) >> bits
    node.forget_range(first, (old + image.cluster_mask) >> bits)
    with image.lock:
        tables = image.tables
        for index in range(-(-first >> tables.table_bits), len(tables.l1)):
            _drop_table(image, index)
    image.writeback.settle()
    image.tables.drop()
    try:
        _drop_empty_blocks(image)
    except QobraError as error:
        reason = os.strerror(errno_of(error))
        raise QobraError(f"Failed to discard unused refblocks: {reason}", errno=error.errno)
    image.writeback.settle()
    node.length = length
    _set_size(node, length)
    end = image.last_used_cluster() + 1 << bits
    if end < image.file.length:
        image.file.truncate(end)
        with image.lock:
            image.allocator.virgin = min(image.allocator.virgin, end >> bits)
    if image.external:
        image.data.truncate(length, exact=node.data_file_raw)


def _drop_table(image: Image, index: int) -> None:
    tables = image.tables
    entry = tables.l1[index]
    if entry & layout.OFFSET_MASK:
        tables.l1[index] = 0
        tables.l1_dirty.add(index)
        tables.forget_table(index)
        image.free(entry & layout.OFFSET_MASK, image.cluster_size)
        image.overlap.rebuild()


def _drop_empty_blocks(image: Image) -> None:
    """Take the refcount blocks that count nothing, but perhaps themselves, out of the refcount table."""
    refcounts = image.refcounts
    dropped: list[int] = []
    with image.lock:
        for index in range(len(refcounts.table)):
            block = refcounts.block(index)
            if block is None:
                continue
            own = (block.offset >> image.cluster_bits) - (index << refcounts.block_bits)
            counts_itself = 0 <= own < len(block.counts)
            zeroes = block.counts.count(0)
            if zeroes < len(block.counts) - 1 or (zeroes < len(block.counts) and not counts_itself):
                continue
            if zeroes < len(block.counts) and not block.counts[own]:
                continue
            refcounts.table[index] = 0
            refcounts.fresh.add(index)
            refcounts.blocks.pop(index, None)
            refcounts.dirty.pop(index, None)
            if not counts_itself:
                dropped.append(block.offset)
        image.overlap.rebuild()
    image.writeback.settle()
    with image.lock:
        for offset in dropped:
            if refcounts.block(offset >> image.cluster_bits >> refcounts.block_bits) is None:
                image.corrupt(f"Refblock at {offset:#x} is not covered by the refcount structures", fatal=True)
            image.free(offset, image.cluster_size)


def _set_size(node: Qcow2Disk, length: int) -> None:
    image = node.image
    image.writeback.commit()
    image.header.size = length
    image.writeback.write_header()


def make_room(image: Image, length: int) -> None:
    """See to it that ``length`` bytes have entries in the L1 table. Raises OSError where that would be too long."""
    entries = l1_entries_for(image.header, length)
    if entries * 8 > layout.MAX_L1_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    grow_l1(image, entries)


def grow_l1(image: Image, entries: int) -> None:
    """Make the active L1 table at least ``entries`` long, in a new place where it does not fit."""
    header = image.header
    if entries <= header.l1_entries:
        return
    image.writeback.commit()
    bits = image.cluster_bits
    image.file.debug_event("l1_grow_alloc_table")
    with image.lock:
        old_offset, old_clusters = header.l1_offset, -(-header.l1_entries * 8 >> bits)
        table = array("Q", image.tables.l1)
        table.frombytes(bytes(8 * (entries - len(table))))
        clusters = -(-entries * 8 >> bits)
        first, _count = image.allocator.allocate(clusters, clusters)
        offset = first << bits
        image.overlap.guard(offset, clusters << bits)
    try:
        image.writeback.commit()
        image.file.debug_event("l1_grow_write_table")
        image.file.write(offset, words_to_bytes(table) + bytes((clusters << bits) - 8 * entries))
        image.writeback.barrier()
    except BaseException:
        with image.lock:
            image.allocator.release(first, clusters)
        raise
    before = header.l1_offset, header.l1_entries
    header.l1_offset, header.l1_entries = offset, entries
    image.file.debug_event("l1_grow_activate_table")
    try:
        image.writeback.write_header()
    except BaseException:
        # Nobody knows which of the two the header on disk refers to, so both stay allocated.
        header.l1_offset, header.l1_entries = before
        raise
    with image.lock:
        image.tables.l1 = table
        image.overlap.rebuild()
        if old_clusters:
            image.free(old_offset, old_clusters << bits)
    image.writeback.settle()  # what comes next may go where the old table was

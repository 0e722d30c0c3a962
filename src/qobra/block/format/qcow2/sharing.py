"""What an L1 table refers to, and changing counts and COPIED flags by it: how snapshots share clusters.

What is referred to goes by in batches of runs (see :mod:`.references`). A run does not go over the end of a refcount
block, so that a batch that is sorted is counted block by block, in whatever order tables and clusters lie. Tables are
read again for each pass where one batch does not hold all of it: that takes the same memory whatever the image's size.
"""

from __future__ import annotations

import errno
from array import array

from qobra.block.buffers import new_buffer
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.references import (
    COUNT_BITS,
    add,
    clear_flags,
    collect,
    free_of,
    note_ones,
    push,
    set_flags,
    sort,
)
from qobra.errors import QobraError
from qobra.lean import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.format.qcow2.image import Image

_OFFSET = layout.OFFSET_MASK
_COPIED = layout.COPIED
_BATCH = 1 << 18
"""Runs in a batch."""
_FIRST_ROOM = 1 << 12
"""Runs that there is room for at first."""
_LEAST_ROOM = 64
"""More runs than those of a group of tables themselves, of which one is of 64 at least, and of an entry."""
_GROUP_BYTES = 512 << 10
"""L2 tables that lie side by side are read and written in pieces of this size, or of a cluster if that is more."""
_ALIGNMENT = 4096
"""Tables are written in pieces of this, which suits O_DIRECT and the page cache."""
_WINDOW = 1 << 27
"""Clusters that are looked at in one pass for COPIED, with a bit for each."""
_MOST_BLOCKS = 256
"""Refcount blocks that are changed before they are written."""


def _limit(image: Image) -> int:
    """The clusters that the image file has, the last one whole or not."""
    return (image.file.length + image.cluster_mask) >> image.cluster_bits


def _table_groups(image: Image, l1: array[int]) -> Iterator[tuple[int, int, memoryview]]:
    """The L2 tables in ``l1``: host offset, number, and content of those that lie side by side, up to some number.

    The content may be changed, and is good until the next is asked for. Raises QobraError (EIO) for a table that
    cannot be.
    """
    size, limit = image.cluster_size, _limit(image) << image.cluster_bits
    most = max(1, min(_GROUP_BYTES // size, sum(1 for entry in l1 if entry)))
    content = memoryview(new_buffer(most * size))
    start = number = 0
    for entry in l1:
        table = entry & _OFFSET
        if not table:
            continue
        _check_place(not table & image.cluster_mask and table < limit, table)
        if table != start + number * size or number == most:
            if number:
                yield start, number, _read(image, start, content[: number * size])
            start, number = table, 0
        number += 1
    if number:
        yield start, number, _read(image, start, content[: number * size])


def _read(image: Image, offset: int, view: memoryview) -> memoryview:
    inside = max(0, min(len(view), image.file.length - offset))
    if inside:
        image.file.read_into(offset, view[:inside])
    if inside < len(view):
        view[inside:] = bytes(len(view) - inside)
    return view


def _check_place(possible: bool, offset: int) -> None:
    if not possible:
        raise QobraError(f"Table refers to host offset {offset:#x}, which cannot be; check the image", errno=errno.EIO)


class References:
    """The L2 tables in ``l1`` and all that is mapped in them, each cluster once for each time that it is referred to.

    Neither the tables nor the image's length may change meanwhile. Raises QobraError (EIO) at once where there is a
    reference to where nothing can be.
    """

    def __init__(self, image: Image, l1: array[int]) -> None:
        self._image = image
        self._l1 = l1
        self._only: list[tuple[array[int], int]] | None = None
        """All batches, if there is no more than one."""
        number, only = 0, (array("Q"), 0)
        for batch in self._walk():
            number, only = number + 1, batch
        if number < 2:
            self._only = [only]

    def batches(self) -> Iterator[tuple[array[int], int]]:
        """Runs in ascending order and how many there are, batch by batch; each is good until the next is asked for."""
        return self._walk() if self._only is None else iter(self._only)

    def _walk(self) -> Iterator[tuple[array[int], int]]:
        image = self._image
        step, bits, limit = 8 << image.tables.word_bits, image.cluster_bits, _limit(image)
        split = min(image.refcounts.block_bits, COUNT_BITS)
        runs, count = array("Q", bytes(8 * _FIRST_ROOM)), 0
        for offset, number, content in _table_groups(image, self._l1):
            at = -1
            while at < len(content):
                if count + _LEAST_ROOM > len(runs):
                    if len(runs) < _BATCH:
                        runs.frombytes(bytes(8 * len(runs)))
                    else:
                        sort(runs, count)
                        yield runs, count
                        count = 0
                if at < 0:  # the tables themselves
                    at, count = 0, push(runs, count, offset >> bits, number, split)
                    continue
                at, count = collect(content, at, step, bits, limit, split, runs, count)
                if at < len(content) and count + 2 <= len(runs):
                    word = int.from_bytes(content[at : at + 8], "big")
                    compressed = word & layout.COMPRESSED_FLAG
                    _check_place(False, layout.compressed_place(word, bits)[0] if compressed else word & _OFFSET)
        if count:
            sort(runs, count)
            yield runs, count


def change_counts(image: Image, references: References, sign: int) -> None:
    """Add ``sign`` to the refcount of every cluster of ``references``, once for each reference.

    The newest counts may be in memory only. Raises QobraError, with nothing changed, where one would leave its bounds.
    """
    done = 0
    try:
        for runs, count in references.batches():
            at = 0
            while at < count:
                changed = _change_block(image, runs, at, count, sign)
                at += changed
                done += changed
    except (OSError, QobraError):
        with all_or_doubtful(image):
            _change_back(image, references, done, -sign)
        raise


@contextmanager
def all_or_doubtful(image: Image) -> Iterator[None]:
    """Where something goes wrong in the block, counts and COPIED flags may not be what they should."""
    try:
        yield
    except BaseException:
        image.counts_doubtful = True
        raise


def _change_back(image: Image, references: References, total: int, sign: int) -> None:
    """Add ``sign`` to the counts of the first ``total`` runs, whose bounds allow it."""
    for runs, count in references.batches():
        at, end = 0, min(count, total)
        while at < end:
            at += _change_block(image, runs, at, end, sign)
        total -= end
        if not total:
            break


def _change_block(image: Image, runs: array[int], at: int, end: int, sign: int) -> int:
    """Change the counts of runs from ``at`` on that are in one block; how many, at least one. Raises QobraError."""
    refcounts = image.refcounts
    if len(refcounts.dirty) >= _MOST_BLOCKS:
        image.writeback.commit(durable=False)
    tell = image.file.debug_event
    cluster = runs[at] >> COUNT_BITS
    index = cluster >> refcounts.block_bits
    with image.lock:
        tell("refblock_alloc")
        block = refcounts.block(index)
        tell("refblock_load")
        if block is None:
            raise QobraError(f"Cluster {cluster:#x} has no refcount", errno=errno.EIO)
        refcounts.mark(index, block)
        base = index << refcounts.block_bits
        stop = add(block.counts, refcounts.width, base, runs, at, end, sign, refcounts.maximum)
        if stop == at:
            if sign > 0:
                raise QobraError("Refcount overflow", errno=errno.EINVAL)
            raise QobraError(f"Refcount of cluster {cluster:#x} would become negative", errno=errno.EIO)
        if sign < 0:
            image.allocator.first_free = min(image.allocator.first_free, cluster)
    return stop - at


def discard_free(image: Image, references: References) -> None:
    """Give the space of those clusters of ``references`` back to the host that nothing refers to any more."""
    refcounts = image.refcounts
    pairs = array("Q", bytes(8 << COUNT_BITS))
    for runs, count in references.batches():
        at = 0
        while at < count:
            index = runs[at] >> COUNT_BITS >> refcounts.block_bits
            with image.lock:
                block = refcounts.block(index)
                assert block is not None  # these counts were changed
                base = index << refcounts.block_bits
                at, made = free_of(block.counts, refcounts.width, base, runs, at, count, pairs)
            for number in range(0, 2 * made, 2):
                image.file.discard(pairs[number] << image.cluster_bits, pairs[number + 1] << image.cluster_bits)


def clear_copied(image: Image, l1: array[int]) -> None:
    """Clear COPIED in every entry of ``l1`` and, on disk, of its L2 tables. The clean L2 cache is dropped."""
    step = 8 << image.tables.word_bits
    for offset, _number, content in _table_groups(image, l1):
        _write_changed(image, offset, content, *clear_flags(content, step))
    for index, entry in enumerate(l1):
        l1[index] = entry & ~_COPIED
    image.tables.drop()


def set_copied(image: Image, l1: array[int]) -> None:
    """Set COPIED in ``l1`` and, on disk, its L2 tables where a refcount is 1 and clear it where it is not.

    Entries whose clusters no refcount block counts stay as they are.
    """
    step, bits = 8 << image.tables.word_bits, image.cluster_bits
    for base, ones in _once_used(image):
        size = len(ones) << 3
        for index, entry in enumerate(l1):
            cluster = ((entry & _OFFSET) >> bits) - base
            if entry & _OFFSET and 0 <= cluster < size:
                one = ones[cluster >> 3] >> (cluster & 7) & 1
                l1[index] = entry | _COPIED if one else entry & ~_COPIED
        for offset, _number, content in _table_groups(image, l1):
            _write_changed(image, offset, content, *set_flags(content, step, bits, ones, base))
    image.tables.drop()


def _once_used(image: Image) -> Iterator[tuple[int, bytearray]]:
    """A bit for each cluster that has a count of 1, in windows of the file: the first cluster, and the bits.

    There is none where no refcount block is.
    """
    refcounts = image.refcounts
    total = min(_limit(image), refcounts.capacity)
    window = max(_WINDOW, refcounts.entries_per_block)
    for base in range(0, total, window):
        ones: bytearray | None = None
        size = min(window, total - base)
        for index in range(base >> refcounts.block_bits, (base + size - 1 >> refcounts.block_bits) + 1):
            with image.lock:
                block = refcounts.block(index)
            if block is not None:
                if ones is None:
                    ones = bytearray((size + 7) >> 3)
                note_ones(block.counts, refcounts.width, ones, (index << refcounts.block_bits) - base)
        if ones is not None:
            yield base, ones


def _write_changed(image: Image, offset: int, content: memoryview, first: int, end: int) -> None:
    """Write what lies between ``first`` and ``end``, and some around it, of the content of ``offset``."""
    if end:
        first &= -_ALIGNMENT
        image.file.write(offset + first, content[first : min(len(content), (end + _ALIGNMENT - 1) & -_ALIGNMENT)])

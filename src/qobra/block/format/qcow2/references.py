"""What an L1 table refers to, in runs of host clusters, and changing counts and COPIED flags by it, for snapshots."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.runs import table_runs
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image

_OFFSET = layout.OFFSET_MASK
_COPIED = layout.COPIED
_SET_HIGH_BIT = bytes(value | 0x80 for value in range(256))
_CLEAR_HIGH_BIT = bytes(value & 0x7F for value in range(256))
"""On disk, COPIED is the first bit of an entry."""


class Runs:
    """Runs of host clusters, in 12 bytes each."""

    def __init__(self) -> None:
        self._firsts = array("Q")
        self._counts = array("I")

    def append(self, first: int, count: int) -> None:
        """Add ``count`` clusters from ``first``; a run that goes on where the last one ended makes it longer."""
        if self._firsts and self._firsts[-1] + self._counts[-1] == first and self._counts[-1] < 1 << 24:
            self._counts[-1] += count
        else:
            self._firsts.append(first)
            self._counts.append(count)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._counts, strict=True)

    def __len__(self) -> int:
        return len(self._firsts)


def _entry_runs(image: Image, table: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """As :func:`table_runs`, for plain and extended entries alike."""
    if not image.extended:
        yield from table_runs(table, image.cluster_size)
        return
    for at in range(0, len(table), 16):
        word = int.from_bytes(table[at : at + 8], "big")
        if word:
            yield at, 1, word


def references_of(image: Image, l1: array[int]) -> Runs:
    """The L2 tables in ``l1``, and all that is mapped in them: a run for each time that clusters are referred to.

    Raises QobraError (EIO) for a reference to where nothing can be.
    """
    bits, mask = image.cluster_bits, image.cluster_mask
    limit = (image.file.length + mask) >> bits
    runs = Runs()
    for entry in l1:
        table = entry & _OFFSET
        if not table:
            continue
        _check_place(table & mask == 0 and table >> bits < limit, table)
        runs.append(table >> bits, 1)
        for _at, count, word in _entry_runs(image, image.read_meta(table, image.cluster_size)):
            if word & layout.COMPRESSED_FLAG:
                for number in range(count):
                    offset, size = layout.compressed_place(word + number * image.cluster_size, bits)
                    first = offset >> bits
                    _check_place(first < limit, offset)
                    runs.append(first, min((offset + size - 1) >> bits, limit - 1) - first + 1)
            elif word & _OFFSET:
                first = (word & _OFFSET) >> bits
                _check_place(word & _OFFSET & mask == 0 and first + count <= limit, word & _OFFSET)
                runs.append(first, count)
    return runs


def _check_place(possible: bool, offset: int) -> None:
    if not possible:
        raise QobraError(f"Table refers to host offset {offset:#x}, which cannot be; check the image", errno=errno.EIO)


def change_counts(image: Image, runs: Runs, sign: int) -> Runs:
    """Add ``sign`` to the refcount of every cluster in ``runs``, in memory; what became free.

    Raises QobraError, with nothing changed, where a count would leave its bounds.
    """
    refcounts = image.refcounts
    freed = Runs()
    with image.lock:
        done = 0
        try:
            for first, count in runs:
                refcounts.add(first, count, sign)
                done += 1
        except QobraError:
            for number, (first, count) in enumerate(runs):
                if number == done:
                    break
                refcounts.add(first, count, -sign)
            raise
        if sign < 0:
            for first, count in runs:
                value = refcounts.get(first)
                if refcounts.all_are(first, count, value):
                    if not value:
                        freed.append(first, count)
                else:
                    for cluster in range(first, first + count):
                        if not refcounts.get(cluster):
                            freed.append(cluster, 1)
            for first, _count in freed:
                image.allocator.first_free = min(image.allocator.first_free, first)
    return freed


def clear_copied(image: Image, l1: array[int]) -> None:
    """Clear COPIED in every entry of ``l1`` and, on disk, of its L2 tables. The clean L2 cache is dropped."""
    width = 8 << image.tables.word_bits
    for index, entry in enumerate(l1):
        table = entry & _OFFSET
        if not table:
            continue
        raw = bytearray(image.read_meta(table, image.cluster_size))
        heads = raw[::width]
        cleared = heads.translate(_CLEAR_HIGH_BIT)
        if cleared != heads:
            raw[::width] = cleared
            image.file.write(table, raw)
        l1[index] = entry & ~_COPIED
    image.tables.drop()


def set_copied(image: Image, l1: array[int]) -> None:
    """Set COPIED in ``l1`` and, on disk, its L2 tables where a refcount is 1 and clear it where it is not."""
    refcounts = image.refcounts
    bits = image.cluster_bits
    for index, entry in enumerate(l1):
        table = entry & _OFFSET
        if not table:
            continue
        raw = bytearray(image.read_meta(table, image.cluster_size))
        before = bytes(raw)
        with image.lock:
            l1[index] = entry | _COPIED if refcounts.get(table >> bits) == 1 else entry & ~_COPIED
            for at, count, word in _entry_runs(image, before):
                if word & _OFFSET and not word & layout.COMPRESSED_FLAG:
                    _flag_run(image, raw, at, count, (word & _OFFSET) >> bits)
        if raw != before:
            image.file.write(table, raw)
    image.tables.drop()


def _flag_run(image: Image, raw: bytearray, at: int, count: int, cluster: int) -> None:
    """Set COPIED of ``count`` entries from byte ``at`` by the refcounts of the clusters from ``cluster`` on."""
    refcounts = image.refcounts
    stop = at + count * 8
    if refcounts.all_are(cluster, count, 1):
        raw[at:stop:8] = raw[at:stop:8].translate(_SET_HIGH_BIT)
        return
    for number in range(count):
        place = at + number * 8
        if refcounts.get(cluster + number) == 1:
            raw[place] |= 0x80
        else:
            raw[place] &= 0x7F

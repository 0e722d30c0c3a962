"""Clusters for a copy: new ones, claimed many at a time and mapped once written, or those that are there.

The data are written past the driver, straight to the file, by whoever has nobody beside him who writes to the image.
"""

from __future__ import annotations

from array import array

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.mapping import check_host, check_inside
from qobra.block.format.qcow2.writer import contiguous
from qobra.lean import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qobra.block.format.qcow2.image import Image


_DATA_MASK = layout.COPIED | layout.COMPRESSED_FLAG | layout.ZERO_FLAG


class Filling:
    """One copy into an image, from its beginning towards its end. Close it.

    With ``exact`` all bytes of the runs are written, whole clusters of them, so that clusters that are there can be
    overwritten. Otherwise zeroes may be left out, and what they are left out of reads as zeroes so far.
    """

    def __init__(self, image: Image, *, exact: bool) -> None:
        self._image = image
        self._exact = exact
        self.fd = image.data.fd
        self.cluster = image.cluster_size
        self.base = 0
        self._claimed: deque[tuple[int, int, bool]] = deque()
        """Clusters of the file to be written, (first, how many, whether they are new), in the order of their use."""
        self._unused = 0
        """How many of those are new."""
        self._needs: deque[list[int]] = deque()
        """[end, how many at most] of the guest clusters of runs that are being written."""
        self._needed = 0
        self._known = -1
        """The guest cluster that the last run ended in: it may have its place already, from this copy."""
        self._tables: list[int] = []
        """L1 entries that got a table here."""

    def claim(self, runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """``(host, length)`` of places that ``runs`` need beyond those claimed before, in the order of their use.

        The runs are ``(offset, length)``. None if they cannot be written this way, as there are clusters among them
        that cannot be overwritten, or freed ones to be used first.
        """
        image = self._image
        image.writeback.commit_if_crowded()
        bits = image.cluster_bits
        need, first, last = 0, runs[0][0] >> bits, -1
        for offset, length in runs:
            if self._exact and not self._is_whole(offset, offset + length):
                return None
            begin, end = offset >> bits, (offset + length - 1) >> bits
            need += end - begin + (begin != last)
            last = end
        with image.lock:
            image.check_usable()
            image.before_allocating()
            if not self._is_free(first + (first == self._known), last):
                there = self._in_place(runs) if self._exact else None
                if there is None:
                    return None
                self._claimed.extend((first, count, False) for first, count in there)
                return [(first << bits, count << bits) for first, count in there]
            self._make_tables(first, last)
            claimed = self._allocate(need - (self._unused - self._needed))
            if claimed is None:
                return None
        self._known = last
        self._needs.append([last + 1, need])
        self._needed += need
        self._claimed.extend((first, count, True) for first, count in claimed)
        self._unused += sum(count for _first, count in claimed)
        return [(first << bits, count << bits) for first, count in claimed]

    def _is_whole(self, start: int, end: int) -> bool:
        mask = self._image.cluster_mask
        return not start & mask and (not end & mask or end == self._image.node.length)

    def _in_place(self, runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """The clusters that the runs have, as (first, how many); None if some have none that may be overwritten."""
        image = self._image
        tables, bits = image.tables, image.cluster_bits
        found: list[tuple[int, int]] = []
        for offset, length in runs:
            cluster, end = offset >> bits, (offset + length + image.cluster_mask) >> bits
            while cluster < end:
                part = tables.find(cluster)
                index = cluster & tables.slice_mask
                word = part.words[index] if part is not None else 0
                if part is None or word & _DATA_MASK != layout.COPIED or not word & layout.OFFSET_MASK:
                    return None
                limit = min(index + end - cluster, tables.slice_mask + 1)
                count = contiguous(part, index, limit, word, image.cluster_size) - index
                host = word & layout.OFFSET_MASK
                check_host(image, part, index, host, cluster, ("Data", cluster << bits))
                check_inside(image, host, count << bits)
                image.overlap.guard(host, count << bits)
                found.append((host >> bits, count))
                cluster += count
        return found

    def _is_free(self, first: int, last: int) -> bool:
        tables = self._image.tables
        while first <= last:
            index = first & tables.slice_mask
            stop = min(index + last - first, tables.slice_mask) + 1
            part = tables.find(first)
            if part is not None and part.words[index:stop].count(0) != stop - index:
                return False
            first += stop - index
        return True

    def _allocate(self, want: int) -> list[tuple[int, int]] | None:
        """So many clusters that were never written, as (first, how many); None if there are others to be used first."""
        image = self._image
        claimed: list[tuple[int, int]] = []
        try:
            while want > 0:
                virgin = image.allocator.virgin
                claimed.append(image.allocator.claim_data(want))
                first, count = claimed[-1]
                if first < virgin:  # what is not written of a cluster would not read as zeroes
                    self._release(claimed)
                    return None
                image.overlap.guard(first << image.cluster_bits, count << image.cluster_bits)
                want -= count
        except BaseException:
            self._release(claimed)
            raise
        return claimed

    def _release(self, claimed: Iterable[tuple[int, int]]) -> None:
        for first, count in claimed:
            self._image.allocator.release(first, count)

    def _make_tables(self, first: int, last: int) -> None:
        tables = self._image.tables
        for entry in range(tables.l1_index(first), tables.l1_index(last) + 1):
            if not tables.l1[entry]:
                self._tables.append(entry)
            tables.writable(entry << tables.table_bits)

    def map(self, mappings: Sequence[tuple[int, int, int]]) -> None:
        """``(offset, host, length)``: guest clusters that are written, in the order of the places that were claimed."""
        image = self._image
        bits = image.cluster_bits
        with image.lock:
            for offset, host, length in mappings:
                cluster, place, left = offset >> bits, host >> bits, length >> bits
                while left:
                    first, count, is_new = self._claimed.popleft()
                    assert first == place
                    used = min(count, left)
                    if used < count:
                        self._claimed.appendleft((first + used, count - used, is_new))
                    if is_new:
                        self._map(cluster, place, used)
                    cluster, place, left = cluster + used, place + used, left - used
        if mappings:
            start, (offset, host, length) = mappings[0][0], mappings[-1]
            image.data.written(host, length)
            image.node.moved(start, offset + length - start)

    def _map(self, cluster: int, place: int, count: int) -> None:
        """Let ``count`` guest clusters from ``cluster`` lie at the new clusters from ``place``."""
        image = self._image
        bits, tables = image.cluster_bits, image.tables
        self._unused -= count
        self._used(cluster, cluster + count)
        end = cluster + count
        word = place << bits | layout.COPIED
        while cluster < end:
            part = tables.writable(cluster)
            index = cluster & tables.slice_mask
            number = min(end - cluster, tables.slice_mask + 1 - index)
            stop = word + (number << bits)
            part.words[index : index + number] = array("Q", range(word, stop, image.cluster_size))
            tables.mark(cluster, part, index, index + number - 1)
            word = stop
            cluster += number

    def _used(self, cluster: int, end: int) -> None:
        """Guest clusters ``cluster`` up to ``end`` need no place any more."""
        for need in self._needs:
            if cluster >= end:
                break
            if cluster < need[0]:
                number = min(need[1], min(end, need[0]) - cluster)
                need[1] -= number
                self._needed -= number
                cluster = min(end, need[0])

    def passed(self, offset: int) -> None:
        """All runs before ``offset`` are written and mapped: what of them has no place is zero."""
        while self._needs and self._needs[0][0] << self._image.cluster_bits <= offset:
            self._needed -= self._needs.popleft()[1]

    def interrupted(self) -> None:
        """All runs so far are written and mapped, and something else is going to be written."""
        self._needs.clear()
        self._needed = 0
        self._known = -1

    def close(self) -> None:
        """Give back what was claimed and not used."""
        image = self._image
        with image.lock:
            self._release((first, count) for first, count, is_new in self._claimed if is_new)
            for entry in self._tables:
                self._drop_if_empty(entry)
        self._claimed.clear()
        self._unused = 0

    def _drop_if_empty(self, entry: int) -> None:
        image, tables = self._image, self._image.tables
        start = entry << tables.table_bits
        if self._is_free(start, start + (1 << tables.table_bits) - 1):
            place = tables.l1[entry] & layout.OFFSET_MASK
            tables.forget_table(entry)
            tables.l1[entry] = 0
            tables.l1_dirty.add(entry)
            image.forget_metadata(place, 1)
            image.free(place, image.cluster_size)

"""Clusters for a copy that fills parts of the disk that have none: claimed many at a time, mapped once written.

The data are written past the driver, straight to the file, by whoever has nobody beside him who writes to the image.
"""

from __future__ import annotations

from array import array
from collections import deque

from qobra.block.format.qcow2 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qobra.block.format.qcow2.image import Image


class Filling:
    """One copy into an image, from its beginning towards its end. Close it."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.fd = image.data.fd
        self.cluster = image.cluster_size
        self.base = 0
        self._claimed: deque[tuple[int, int]] = deque()
        """Clusters of the file that have no guest cluster yet, (first, how many), in the order of their use."""
        self._unused = 0
        """How many those are."""
        self._needs: deque[list[int]] = deque()
        """[end, how many at most] of the guest clusters of runs that are being written."""
        self._needed = 0
        self._known = -1
        """The guest cluster that the last run ended in: it may have its place already, from this copy."""
        self._tables: list[int] = []
        """L1 entries that got a table here."""

    def claim(self, runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """``(host, length)`` of places that ``runs`` need beyond those claimed before, in the order of their use.

        The runs are ``(offset, length)``. None if they cannot be written this way: there are clusters among them, or
        freed ones to be used first.
        """
        image = self._image
        image.writeback.commit_if_crowded()
        bits = image.cluster_bits
        need, first, last = 0, runs[0][0] >> bits, -1
        for offset, length in runs:
            begin, end = offset >> bits, (offset + length - 1) >> bits
            need += end - begin + (begin != last)
            last = end
        with image.lock:
            image.check_usable()
            image.before_allocating()
            if not self._is_free(first + (first == self._known), last):
                return None
            self._make_tables(first, last)
            claimed = self._allocate(need - (self._unused - self._needed))
            if claimed is None:
                return None
        self._known = last
        self._needs.append([last + 1, need])
        self._needed += need
        self._claimed.extend(claimed)
        self._unused += sum(count for _first, count in claimed)
        return [(first << bits, count << bits) for first, count in claimed]

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
                claimed.append(image.allocator.allocate(want))
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
        bits, tables = image.cluster_bits, image.tables
        step, mask = 1 << bits, tables.slice_mask
        with image.lock:
            for offset, host, length in mappings:
                count = length >> bits
                self._take_claimed(host >> bits, count)
                cluster = offset >> bits
                end = cluster + count
                self._used(cluster, end)
                word = host | layout.COPIED
                while cluster < end:
                    part = tables.writable(cluster)
                    index = cluster & mask
                    number = min(end - cluster, mask + 1 - index)
                    part.words[index : index + number] = array("Q", range(word, word + (number << bits), step))
                    tables.mark(cluster, part, index, index + number - 1)
                    word += number << bits
                    cluster += number
        if mappings:
            start, (offset, host, length) = mappings[0][0], mappings[-1]
            image.data.written(host, length)
            image.node.moved(start, offset + length - start)

    def _take_claimed(self, host: int, count: int) -> None:
        """Clusters from ``host``, the next in line, are in use."""
        while count:
            first, left = self._claimed[0]
            assert first == host
            used = min(left, count)
            if used == left:
                self._claimed.popleft()
            else:
                self._claimed[0] = first + used, left - used
            self._unused -= used
            host += used
            count -= used

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
            self._release(self._claimed)
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

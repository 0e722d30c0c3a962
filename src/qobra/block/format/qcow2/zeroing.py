"""Discarding guest data and turning it into zeroes, by changing the mapping alone where whole units are meant."""

from __future__ import annotations

from array import array

from qobra.block.extents import ZERO, resolve
from qobra.block.format.qcow2 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.image import Image

DISCARD = "discard"
"""The guest's discard: reads as zeroes afterwards where the format can say so, and the space is freed."""
FORGET = "forget"
"""The backing file shows through again."""
UNMAP = "unmap"
"""Zeroes, and the space is freed."""
KEEP = "keep"
"""Zeroes, and the space is kept."""

_COPIED = layout.COPIED
_OFFSET = layout.OFFSET_MASK
_COMPRESSED = layout.COMPRESSED_FLAG
_ZERO = layout.ZERO_FLAG


class Zeroing:
    """Discards and zeroes of one image."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def discard(self, offset: int, length: int) -> None:
        """The guest does not need this range any more; clusters that it covers only partly are left alone."""
        image = self._image
        if image.header.version < 3 and image.node.backing is not None:
            return  # without zero clusters, old data of the backing file would show up again
        if image.node.data_file_raw:
            self.zero(offset, length, True, False)
            return
        end = offset + length
        first = -(-offset >> image.cluster_bits)
        last = self._whole_end(end)
        if first < last:
            self.apply(first, last, DISCARD)

    def forget_clusters(self, first: int, end: int) -> None:
        """Unmap guest clusters ``first`` up to ``end``; the backing file shows through."""
        self.apply(first, end, FORGET)

    def _whole_end(self, end: int) -> int:
        """The guest cluster before which everything up to ``end`` lies in whole clusters."""
        image = self._image
        if end == image.node.length:
            return -(-end >> image.cluster_bits)
        return end >> image.cluster_bits

    def zero(self, offset: int, length: int, unmap: bool, no_fallback: bool) -> bool:
        """Make the range read as zeroes. False, and nothing done, where that takes writing zeroes but must not."""
        image = self._image
        bits = image.cluster_bits
        end = offset + length
        old = image.header.version < 3
        if old and image.node.backing is not None:
            return False
        first, last = -(-offset >> bits), self._whole_end(end)
        edges: list[tuple[int, int]] = []
        if first > last:
            edges.append((offset, end))
        else:
            if offset < first << bits:
                edges.append((offset, first << bits))
            if last << bits < end:
                edges.append((last << bits, end))
        if no_fallback and any(old or not self._edge_is_easy(start, stop) for start, stop in edges):
            return False
        if image.node.data_file_raw:
            may_unmap = unmap and image.data.discard_unmap
            image.data.write_zeroes(offset, length, may_unmap=may_unmap, no_fallback=no_fallback)
        if first < last:
            self.apply(first, last, DISCARD if old else UNMAP if unmap else KEEP)
        for start, stop in edges:
            self._zero_edge(start, stop, KEEP)
        return True

    def _edge_is_easy(self, start: int, end: int) -> bool:
        """Whether the part of one cluster from ``start`` to ``end`` can be zeroed without writing data."""
        image = self._image
        unit = image.cluster_size // layout.SUBCLUSTERS if image.extended else image.cluster_size
        low, high = start & -unit, min(-(-end // unit) * unit, image.node.length)
        return _reads_zero(image, low, start) and _reads_zero(image, end, high)

    def _zero_edge(self, start: int, end: int, mode: str) -> None:
        """Zero a part of one cluster: the mapping alone if the rest of its units reads as zeroes, else by writing."""
        image = self._image
        cluster = start >> image.cluster_bits
        if image.extended:
            self._zero_subclusters(start, end)
            return
        if self._edge_is_easy(start, end):
            if image.header.version < 3:
                self.apply(cluster, cluster + 1, DISCARD)
                return
            if self._zero_if_no_data(cluster, mode):
                return
        image.node.write_zero_bytes(start, end - start)

    def _zero_if_no_data(self, cluster: int, mode: str) -> bool:
        image = self._image
        with image.lock:
            image.await_range(cluster, cluster)
            part = image.tables.find(cluster)
            word = part.words[cluster & image.tables.slice_mask] if part is not None else 0
            if word and (word & _COMPRESSED or not word & _ZERO):
                return False  # someone has written to the rest meanwhile, or will in place
            self._change_standard(cluster, cluster + 1, mode)
        image.node.moved(cluster << image.cluster_bits, image.cluster_size)
        return True

    def _zero_subclusters(self, start: int, end: int) -> None:
        image = self._image
        size = image.cluster_size // layout.SUBCLUSTERS
        base = start & ~image.cluster_mask
        first = base // size
        low, high = -(-start // size), -(-end // size) if end == image.node.length else end // size
        if self._edge_is_easy(start, end):
            wide_low, wide_high = start // size, -(-end // size)
            partly = (1 << wide_low - first if wide_low < low else 0) | (1 << high - first if high < wide_high else 0)
            if partly and self._set_zero_bits(base, wide_low - first, wide_high - first, partly):
                return
        if low >= high or not self._set_zero_bits(base, low - first, high - first, 0):
            image.node.write_zero_bytes(start, end - start)
            return
        for piece_start, piece_end in ((start, low * size), (high * size, end)):
            if piece_start < piece_end:
                image.node.write_zero_bytes(piece_start, piece_end - piece_start)

    def _set_zero_bits(self, base: int, low: int, high: int, partly: int) -> bool:
        """Subclusters ``low`` to ``high`` of the cluster at guest ``base`` read as zeroes from now on.

        ``partly`` has the bits of those whose rest was found to read as zeroes: there must be no data in them.
        False, and nothing done, where that cannot be.
        """
        image = self._image
        cluster = base >> image.cluster_bits
        bits = ((1 << high) - 1) & ~((1 << low) - 1)
        with image.lock:
            image.await_range(cluster, cluster)
            part = image.tables.find(cluster)
            index = (cluster & image.tables.slice_mask) * 2
            if part is not None and part.words[index] & _COMPRESSED:
                return False
            if part is not None and part.words[index + 1] & partly:
                return False  # someone has written to the rest meanwhile, or will in place
            image.before_allocating()
            part = image.tables.writable(cluster)
            bitmap = (part.words[index + 1] | bits << 32) & ~bits
            part.words[index + 1] = bitmap
            image.tables.mark(cluster, part, index + 1, index + 1)
        image.node.moved(base, image.cluster_size)
        return True

    # -- whole clusters -------------------------------------------------------------------------------------------

    def apply(self, first: int, end: int, mode: str) -> None:
        """Change guest clusters ``first`` up to ``end`` as ``mode`` says, a slice at a time."""
        image = self._image
        tables = image.tables
        low, high = first << image.cluster_bits, min(end << image.cluster_bits, image.node.length)
        skip_absent = mode == FORGET or (mode == DISCARD and image.node.backing is None)
        try:
            while first < end:
                image.writeback.commit_if_crowded()
                discards: list[tuple[int, int]] = []
                with image.lock:
                    image.check_usable()
                    if skip_absent and not self._has_table(first):
                        first = ((first >> tables.table_bits) + 1) << tables.table_bits
                        continue
                    stop = min((first | tables.slice_mask) + 1, end)
                    image.await_range(first, stop - 1)
                    change = self._change_extended if image.extended else self._change_standard
                    change(first, stop, mode, discards)
                for offset, length in discards:
                    image.data.discard(offset, length)
                first = stop
        finally:  # what was changed before something failed stays changed
            if low < high:
                image.node.moved(low, high - low)

    def _has_table(self, cluster: int) -> bool:
        return bool(self._image.tables.l1[cluster >> self._image.tables.table_bits] & _OFFSET)

    def _change_standard(self, first: int, end: int, mode: str, discards: list[tuple[int, int]] | None = None) -> None:
        """Change plain L2 entries that lie in one slice. Under the lock."""
        image = self._image
        tables = image.tables
        index = first & tables.slice_mask
        stop = index + end - first
        part = tables.find(first)
        old = part.words[index:stop] if part is not None else array("Q", bytes(8 * (stop - index)))
        new = self._changed_words(old, mode)
        if new == old:
            return
        image.before_allocating()
        part = tables.writable(first)
        part.words[index:stop] = new
        tables.mark(first, part, index, stop - 1)
        passes = image.node.pass_discard and mode != KEEP
        # In a data file the first cluster lies at offset 0, and only the flag tells that it is there.
        of_nothing = _ZERO if image.external else _COPIED | _ZERO
        for at, (before, after) in enumerate(zip(old, new, strict=True)):
            if before == after or not before & ~of_nothing:
                continue
            if not before & _COMPRESSED and (before ^ after) & _OFFSET == 0 and not image.external:
                continue
            image.free_entry(before, discard=passes)
            if image.external and passes and discards is not None and not after & _OFFSET:
                discards.append(((first + at) << image.cluster_bits, image.cluster_size))

    def _changed_words(self, old: array[int], mode: str) -> array[int]:
        image = self._image
        count = len(old)
        if mode == FORGET or (mode == DISCARD and image.header.version < 3):
            return array("Q", bytes(8 * count))
        if mode == UNMAP or (mode == DISCARD and image.node.backing is not None):
            return array("Q", [_ZERO]) * count
        if mode == DISCARD:
            return array("Q", [word and _ZERO for word in old])
        external = image.external
        return array(
            "Q",
            [
                word | _ZERO if not word & _COMPRESSED and (word & _OFFSET or (external and word & _COPIED)) else _ZERO
                for word in old
            ],
        )

    def _change_extended(self, first: int, end: int, mode: str, discards: list[tuple[int, int]] | None = None) -> None:
        """Change extended L2 entries that lie in one slice. Under the lock."""
        image = self._image
        tables = image.tables
        index = (first & tables.slice_mask) * 2
        stop = index + (end - first) * 2
        part = tables.find(first)
        old = part.words[index:stop] if part is not None else array("Q", bytes(8 * (stop - index)))
        new = old[:]
        backing = image.node.backing is not None
        for at in range(0, len(old), 2):
            word, bitmap = old[at], old[at + 1]
            if mode == FORGET:
                new[at], new[at + 1] = 0, 0
            elif mode == KEEP and not word & _COMPRESSED:
                new[at + 1] = layout.ALL_ZERO
            elif mode != DISCARD or backing or word or bitmap:
                new[at], new[at + 1] = 0, layout.ALL_ZERO
        if new == old:
            return
        image.before_allocating()
        part = tables.writable(first)
        part.words[index:stop] = new
        tables.mark(first, part, index, stop - 1)
        passes = image.node.pass_discard and mode != KEEP
        for at in range(0, len(old), 2):
            if old[at] and old[at] != new[at]:
                image.free_entry(old[at], discard=passes)
                if image.external and passes and discards is not None:
                    discards.append(((first + at // 2) << image.cluster_bits, image.cluster_size))


def _reads_zero(image: Image, start: int, end: int) -> bool:
    return start >= end or all(run.kind == ZERO for run in resolve(image.node, start, end - start, want_zero=True))

"""Repairing what :mod:`check` found: counts, COPIED flags, and the refcount structures as a whole if need be."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.check import copied_cluster_text, copied_table_text
from qobra.block.format.qcow2.counts import CompactCounts
from qobra.block.format.qcow2.refcount import pack_counts, unpack_counts
from qobra.block.format.qcow2.writeback import words_to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.check import Checker, Report
    from qobra.block.format.qcow2.refcount import Counts
    from qobra.block.node import Options


def repair(checker: Checker, *, fix_leaks: bool, fix_errors: bool, report: Report) -> Options:
    """Repair, look again, and return what was repaired and what is left: the members of ImageCheck."""
    from qobra.block.format.qcow2.check import Checker

    image = checker.image
    node = checker.node
    # A cluster in use that counts as free may have been taken for something else already, refcount blocks too.
    structural = checker.rebuild or any(not checker.stored.get(cluster) for cluster in checker.too_low)
    if fix_errors and structural:
        report("Rebuilding refcount structure")
        for cluster, before, after in rebuild_refcounts(checker, image.header.refcount_order):
            report(f"Repairing cluster {cluster} refcount={before} reference={after}")
        counts = checker.seen.get
    elif structural:
        report("ERROR need to rebuild refcount structures")
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    else:
        repaired = sorted((checker.too_high if fix_leaks else []) + (checker.too_low if fix_errors else []))
        _set_counts(checker, repaired, report)
        accurate = set(repaired)

        def counts(cluster: int) -> int:
            return checker.seen.get(cluster) if cluster in accurate else checker.stored_count(cluster)

    if fix_errors:
        for place, word in checker.bad_zero:
            image.file.write(place, word.to_bytes(8, "big"))
    # Where only leaks are repaired, the counts are right if there was nothing but leaks.
    sure = fix_errors or not (checker.corruptions or checker.check_errors)
    flags = _set_copied(checker, counts, report, sure)
    image.writeback.barrier()
    image.reload()
    second = Checker(node, lambda _text: None)
    second.run()
    second.report_copied()
    if fix_errors and not second.corruptions:
        image.is_corrupt = False
        image.counts_doubtful = False
        clean = layout.CORRUPT | (layout.DIRTY if not second.leaks or fix_leaks else 0)
        if image.header.incompatible & clean:
            image.writeback.set_incompatible(clean, clear=True)
    result = second.result()
    corruptions_fixed, leaks_fixed = checker.corruptions + flags - second.corruptions, checker.leaks - second.leaks
    if corruptions_fixed > 0:
        result["corruptions-fixed"] = corruptions_fixed
    if leaks_fixed > 0:
        result["leaks-fixed"] = leaks_fixed
    return result


def _has_block(checker: Checker, cluster: int) -> bool:
    refcounts = checker.image.refcounts
    index = cluster >> refcounts.block_bits
    return index < len(refcounts.table) and bool(refcounts.table[index] & layout.REFTABLE_MASK)


def _set_counts(checker: Checker, clusters: list[int], report: Report) -> None:
    """Give ``clusters`` the counts that were found, block by block."""
    image = checker.image
    refcounts = image.refcounts
    by_block: dict[int, list[int]] = {}
    for cluster in clusters:
        if _has_block(checker, cluster):
            by_block.setdefault(cluster >> refcounts.block_bits, []).append(cluster)
    for index, members in by_block.items():
        offset = refcounts.table[index] & layout.REFTABLE_MASK
        counts = unpack_counts(image.read_meta(offset, image.cluster_size), refcounts.order)
        for cluster in members:
            seen = checker.seen.get(cluster)
            if seen > refcounts.maximum:
                report(
                    f"ERROR: overflow cluster offset={cluster << image.cluster_bits:#x}\n"
                    "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean "
                    "copy if the image cannot be opened for writing"
                )
                continue
            report(f"Repairing cluster {cluster} refcount={checker.stored.get(cluster)} reference={seen}")
            counts[cluster & (refcounts.entries_per_block - 1)] = min(seen, refcounts.maximum)
        image.file.write(offset, pack_counts(counts, refcounts.order))


def rebuild_refcounts(checker: Checker, order: int) -> list[tuple[int, int, int]]:
    """Write refcount blocks and table anew into free clusters, then let the header refer to them.

    The counts, of ``1 << order`` bits, are those that the checker has found, without the old structures. Returns
    ``(cluster, references before, and after)`` of the clusters of those. :meth:`Image.reload` must follow.
    """
    image, node = checker.image, checker.node
    header = image.header
    bits = image.cluster_bits
    seen = checker.seen
    old = _old_structures(checker)
    before = {cluster: seen.get(cluster) for cluster in sorted(old)}
    plan = _Plan(seen, old, bits, order)
    for place, size in ((header.l1_offset, 8 * len(image.tables.l1)), (header.snapshot_offset, node.snapshots.size)):
        plan.keep(place >> bits, (place + size + image.cluster_mask >> bits) - (place >> bits))
    # The old structures are not worth anything any more: their clusters are free unless something else uses them.
    for cluster in old:
        _drop(checker, cluster, 1)
    plan.make(seen)
    for index, place in plan.blocks.items():
        image.file.write(place << bits, pack_counts(plan.counts(index, seen), order))
    words = array("Q", bytes(8 * (max(plan.blocks) + 1)))
    for index, place in plan.blocks.items():
        words[index] = place << bits
    offset = plan.table << bits
    image.file.write(offset, words_to_bytes(words) + bytes((plan.table_clusters << bits) - 8 * len(words)))
    image.writeback.barrier()
    header.reftable_offset, header.reftable_clusters, header.refcount_order = offset, plan.table_clusters, order
    image.writeback.write_header()
    return [(cluster, count, seen.get(cluster)) for cluster, count in before.items() if count != seen.get(cluster)]


def _old_structures(checker: Checker) -> set[int]:
    """The clusters of the refcount table and its blocks, as far as they are there."""
    image = checker.image
    bits = image.cluster_bits
    first = image.header.reftable_offset >> bits
    old = set(range(first, first + image.header.reftable_clusters))
    for _index, entry in image.refcounts.entries():
        offset = entry & layout.REFTABLE_MASK
        if offset and not offset & image.cluster_mask and offset < checker.file_length:
            old.add(offset >> bits)
    return old


_REACH = 1 << 16
"""Clusters past the last one in use that new structures may come to lie in."""


class _Plan:
    """Where new refcount structures go: into the first clusters that are free, and that the old ones do not use.

    So the file does not grow if there is room in it; it may be a device, which cannot.
    """

    def __init__(self, seen: CompactCounts, old: set[int], cluster_bits: int, order: int) -> None:
        self._busy = bytearray(seen.low)
        for cluster in old:
            if cluster < len(self._busy):
                self._busy[cluster] = 1
        self._cluster_bits = cluster_bits
        self._order = order
        self._block_bits = cluster_bits + 3 - order
        self.blocks: dict[int, int] = {}
        """Block number to the cluster where it goes."""
        self.table = 0
        """The first cluster of the table."""
        self.table_clusters = 0
        self._structures: dict[int, list[int]] = {}
        """The clusters of all of these, by the number of the block that counts them."""

    def make(self, seen: CompactCounts) -> None:
        """Place what is needed to count ``seen``, and itself."""
        size = 1 << self._block_bits
        for index in range(-(-len(seen.low) >> self._block_bits)):
            if seen.low[index * size : (index + 1) * size].strip(b"\0"):
                self._place_block(index)
        needed = 1
        while needed > self.table_clusters:
            # Blocks for the table may make it longer, and then it may need another place.
            self.table_clusters = needed
            self.table = self._find(0, needed)
            for index in range(self.table >> self._block_bits, (self.table + needed - 1 >> self._block_bits) + 1):
                self._place_block(index)
            needed = -(-8 * (max(self.blocks) + 1) >> self._cluster_bits)
        for cluster in (*self.blocks.values(), *range(self.table, self.table + self.table_clusters)):
            self._structures.setdefault(cluster >> self._block_bits, []).append(cluster)

    def keep(self, first: int, count: int) -> None:
        """Clusters of a table that the header refers to past the end of the file, where nothing could be counted."""
        if first <= len(self._busy) + _REACH:
            for cluster in range(first, first + count):
                self._take(cluster)

    def _place_block(self, index: int) -> None:
        """No block goes before what it counts."""
        while index not in self.blocks:
            place = self._find(index << self._block_bits, 1)
            if self.table <= place < self.table + self.table_clusters:
                place = self._find(self.table + self.table_clusters, 1)
            self._take(place)
            self.blocks[index] = place
            index = place >> self._block_bits

    def _find(self, start: int, count: int) -> int:
        """The first of ``count`` free clusters in a row, from ``start`` on."""
        found = self._busy.find(bytes(count), start)
        if found >= 0:
            return found
        return max(start, len(self._busy.rstrip(b"\0")))

    def _take(self, cluster: int) -> None:
        if cluster >= len(self._busy):
            self._busy.extend(bytes(cluster + 1 - len(self._busy)))
        self._busy[cluster] = 1

    def counts(self, index: int, seen: CompactCounts) -> Counts:
        """What block ``index`` is to hold."""
        first = index << self._block_bits
        maximum = (1 << (1 << self._order)) - 1
        counts = unpack_counts(bytes(1 << self._cluster_bits), self._order)
        for at, count in enumerate(seen.low[first : first + len(counts)]):
            if count:
                counts[at] = min(seen.get(first + at), maximum)
        for cluster in self._structures.get(index, ()):
            counts[cluster - first] = 1
        return counts


def _drop(checker: Checker, first: int, count: int) -> None:
    low = checker.seen.low
    for cluster in range(first, min(first + count, len(low))):
        if 0 < low[cluster] < 255:
            low[cluster] -= 1


def _set_copied(checker: Checker, counts: Callable[[int], int], report: Report, sure: bool) -> int:
    """Let COPIED say of each active entry whether its count is 1; if not ``sure``, just report. How many were wrong."""
    image = checker.image
    bits = image.cluster_bits
    step = 1 << image.tables.word_bits
    verb = "Repairing" if sure else "ERROR"
    wrong = 0
    for index, entry in enumerate(image.tables.l1):
        table = entry & layout.OFFSET_MASK
        if table & image.cluster_mask or table >= checker.file_length:
            continue
        count = counts(table >> bits) if table else 0
        wanted = _flagged(entry, count == 1)
        if wanted != entry:
            wrong += 1
            report(f"{verb} {copied_table_text(index, entry, count)}")
            if sure:
                image.file.write(image.header.l1_offset + index * 8, wanted.to_bytes(8, "big"))
        if not table:
            continue
        words = image.read_array(table, image.cluster_size // 8)
        changed = False
        for at in range(0, len(words), step):
            word = words[at]
            host = word & layout.OFFSET_MASK
            if word & layout.COMPRESSED_FLAG:
                new = word & ~layout.COPIED
            elif not host:
                continue
            elif image.external:
                new = word | layout.COPIED
            else:
                count = counts(host >> bits)
                new = _flagged(word, count == 1)
                if new != word:
                    wrong += 1
                    report(f"{verb} {copied_cluster_text(word, count)}")
            if new != word:
                words[at] = new
                changed = True
        if changed and sure:
            image.file.write(table, words_to_bytes(words))
    return wrong


def _flagged(entry: int, copied: bool) -> int:
    return entry | layout.COPIED if copied else entry & ~layout.COPIED

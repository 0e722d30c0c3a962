"""Checking an image: every reference is counted anew and compared with the refcounts, every entry looked at.

Memory is two bytes for each cluster that is counted or referred to; an L2 table is read once, however many snapshots
share it.
"""

from __future__ import annotations

import errno
import os
import sys
from array import array
from collections.abc import Callable

from qobra.block.buffers import new_buffer
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.counts import LARGE, CompactCounts, differences
from qobra.block.format.qcow2.refcount import unpack_counts
from qobra.block.format.qcow2.snapshots import check_table
from qobra.errors import QobraError, errno_of
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.node import Options

Report = Callable[[str], None]

_COPIED = layout.COPIED
_OFFSET = layout.OFFSET_MASK
_COMPRESSED = layout.COMPRESSED_FLAG
_ZERO = layout.ZERO_FLAG
_SWAP = sys.byteorder == "little"
MAX_GROWTH = 1 << 30
"""Bytes by which a repair makes a file longer, so that it holds what is referred to; more is damage."""
_BATCH = 16
"""L2 tables read at once where they touch."""
_compiled = compiled("l2")


class Checker:
    """One look over an image that nobody changes meanwhile. :meth:`run` fills the counters."""

    def __init__(self, node: Qcow2Disk, report: Report, *, repairing: bool = False) -> None:
        self.node = node
        self.image = node.image
        self._repairing = repairing
        self._report = report
        self.file_length = node.file.length
        clusters = self._counted_clusters()
        self.seen = CompactCounts(clusters)
        """References found."""
        self.stored = CompactCounts(clusters)
        """Counts that the refcount blocks hold; of as many clusters as ``seen``."""
        self.corruptions = 0
        self.leaks = 0
        self.check_errors = 0
        self.allocated = self.fragmented = self.compressed = 0
        self._following = 0
        """Where the next cluster of the table that is walked lies if it goes on in a row; 0 at its beginning."""
        self.rebuild = False
        """The refcount structures themselves are damaged."""
        self.bad_zero: list[tuple[int, int]] = []
        """Entries of preallocated clusters whose place cannot be: where they lie, and what they are without it."""
        self._copied: list[tuple[int, str]] = []
        """(index in the active L1, what is wrong with a COPIED flag there)."""
        self.too_low: list[int] = []
        self.too_high: list[int] = []

    # -- counting -----------------------------------------------------------------------------------------------

    def error(self, text: str) -> None:
        """Damage was found."""
        self.corruptions += 1
        self._report(text)

    def count(self, offset: int, size: int, weight: int = 1) -> bool:
        """Count references to ``size`` bytes from host ``offset``; False where that is past the end of the file."""
        if size <= 0:
            return True
        image = self.image
        if offset + size - self.file_length >= image.cluster_size:
            self.error(
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset "
                f"{offset:#x} size {size:#x}"
            )
            return False
        first = offset >> image.cluster_bits
        end = ((offset + size - 1) >> image.cluster_bits) + 1
        if end > len(self.seen):
            self.seen.grow(end)
            self.stored.grow(end)
        self.seen.add(first, end - first, weight)
        return True

    def stored_count(self, cluster: int) -> int:
        """The count that the image has of any cluster, also of one past the end of the file."""
        if cluster < len(self.stored):
            return self.stored.get(cluster)
        try:
            return self.image.refcounts.get(cluster)
        except (OSError, QobraError):
            return 0  # what is the matter with the counts is told where they are looked at

    def _counted_clusters(self) -> int:
        """How far there are counts in the file: a file may be long beyond all measure, with nothing in it."""
        refcounts = self.image.refcounts
        blocks = max((index + 1 for index, entry in refcounts.entries() if entry & layout.REFTABLE_MASK), default=0)
        return min(-(-self.file_length >> self.image.cluster_bits) + 1, blocks << refcounts.block_bits)

    def run(self) -> None:
        """Look at everything."""
        image = self.image
        header = image.header
        self._load_stored()
        self.count(0, image.cluster_size)
        tables: dict[int, list[int]] = {}
        self._collect_l1(image.tables.l1, header.l1_offset, tables, active=True)
        for snapshot in self.node.snapshots.entries:
            about = f"ERROR snapshot {snapshot.id} ({snapshot.name})"
            if snapshot.l1_offset & image.cluster_mask:
                self.error(
                    f"{about} l1_offset={snapshot.l1_offset:#x}: L1 table is not cluster aligned; snapshot table entry "
                    "corrupted"
                )
                continue
            if snapshot.l1_entries * 8 > layout.MAX_L1_BYTES:
                self.error(
                    f"{about} l1_size={snapshot.l1_entries:#x}: L1 table is too large; snapshot table entry corrupted"
                )
                continue
            words = image.read_array(snapshot.l1_offset, snapshot.l1_entries)
            self._collect_l1(words, snapshot.l1_offset, tables, active=False)
        self._walk_tables(tables)
        self.count(header.snapshot_offset, self.node.snapshots.size)
        if header.crypto is not None:
            self.count(*header.crypto)
        if header.bitmaps is not None:
            self.node.stored_bitmaps.count_references(self)
        self.count(header.reftable_offset, header.reftable_clusters << image.cluster_bits)
        self._count_blocks()
        self._compare()

    def _load_stored(self) -> None:
        """Read all refcount blocks, seeing to it that each is a place that can be."""
        image = self.image
        refcounts = image.refcounts
        for index, entry in refcounts.entries():
            if index << refcounts.block_bits >= len(self.stored):
                break
            offset = entry & layout.REFTABLE_MASK
            if not offset or offset & image.cluster_mask or offset >= self.file_length:
                continue
            data = image.read_meta(offset, image.cluster_size)
            self.stored.take_block(index << refcounts.block_bits, unpack_counts(data, refcounts.order))

    def _count_blocks(self) -> None:
        image = self.image
        for index, entry in image.refcounts.entries():
            offset = entry & layout.REFTABLE_MASK
            if entry & layout.REFTABLE_RESERVED:
                self.error(f"ERROR refcount table entry {index} has reserved bits set")
                self.rebuild = True
                continue
            if offset & image.cluster_mask:
                self.error(f"ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted")
                self.rebuild = True
            elif offset >= self.file_length and offset and not self._reaches(index, offset):
                self.rebuild |= self._repairing  # else no count needs another place
            elif offset:
                self.count(offset, image.cluster_size)
                references = self.seen.get(offset >> image.cluster_bits)
                if references != 1:
                    self.error(f"ERROR refcount block {index} refcount={references}")
                    self.rebuild = True

    def _reaches(self, index: int, offset: int) -> bool:
        """Whether the file can be made to reach a refcount block past its end: then that is all that is wrong."""
        image = self.image
        if not self._repairing:
            self.error(f"ERROR refcount block {index} is outside image")
            return False
        self.error(f"Repairing refcount block {index} is outside image")
        length = offset + image.cluster_size
        try:
            if length > self.file_length + MAX_GROWTH:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            image.file.truncate(length)
        except (OSError, QobraError) as error:
            self._report(f"ERROR could not resize image: {os.strerror(errno_of(error))}")
            return False
        self.file_length = length
        clusters = max(len(self.seen), self._counted_clusters())
        self.seen.grow(clusters)
        self.stored = CompactCounts(clusters)
        self._load_stored()
        return True

    # -- tables -------------------------------------------------------------------------------------------------

    def _collect_l1(self, words: array[int], offset: int, tables: dict[int, list[int]], *, active: bool) -> None:
        """Count an L1 table and note the L2 tables in it: offset to [references, index in the active L1 or -1]."""
        image = self.image
        if words:
            self.count(offset, len(words) * 8)
        for index, entry in enumerate(words):
            if not entry:
                continue
            if entry & layout.L1_RESERVED:
                self.error(f"ERROR found L1 entry with reserved bits set: {entry:x}")
            table = entry & _OFFSET
            if table & image.cluster_mask:
                self.error(f"ERROR l2_offset={table:x}: Table is not cluster aligned; L1 entry corrupted")
                continue
            if not table:
                if active and entry & _COPIED:
                    self._copied.append((index, copied_table_text(index, entry, 0)))
                continue
            if not self.count(table, image.cluster_size):
                continue
            known = tables.setdefault(table, [0, -1])
            known[0] += 1
            if active:
                known[1] = index
                count = self.stored.get(table >> image.cluster_bits)
                if (count == 1) != bool(entry & _COPIED):
                    self._copied.append((index, copied_table_text(index, entry, count)))

    def _walk_tables(self, tables: dict[int, list[int]]) -> None:
        """Read the tables in the order in which they lie, several at once."""
        image = self.image
        size = image.cluster_size
        batch = max(1, min(_BATCH, (1 << 20) // size))
        order = sorted(tables)
        walk = self._walk_extended if image.extended else self._walk_standard
        quick = _compiled is not None and not image.extended and not image.external
        empty = bytes(size)
        position = 0
        buffer = new_buffer(batch * size)
        while position < len(order):
            first = order[position]
            count = 1
            while count < batch and position + count < len(order) and order[position + count] == first + count * size:
                count += 1
            view = memoryview(buffer)[: count * size]
            inside = max(0, min(len(view), self.file_length - first))
            image.file.read_into(first, view[:inside])
            if inside < len(view):
                view[inside:] = bytes(len(view) - inside)
            for number in range(count):
                offset = first + number * size
                weight, l1_index = tables[offset]
                start = number * size
                if quick and weight < LARGE:
                    self._count_entries(view[start : start + size], offset, weight, l1_index)
                    continue
                raw = buffer[start : start + size]
                if raw != empty:
                    words = array("Q", raw)
                    if _SWAP:
                        words.byteswap()
                    self._following = 0
                    walk(words, offset, weight, l1_index)
            position += count

    def _count_entries(self, table: memoryview, offset: int, weight: int, l1_index: int) -> None:
        """As :meth:`_walk_standard`, but only entries that something is the matter with are looked at here."""
        assert _compiled is not None
        bits, seen, stored = self.image.cluster_bits, self.seen.low, self.stored.low
        limit = (self.file_length + self.image.cluster_mask) >> bits
        tally = array("Q", bytes(32))
        entries = len(table) >> 3
        at = 0
        while True:
            at = _compiled.count_entries(table, at, seen, stored, bits, limit, weight, l1_index >= 0, tally)
            if at >= entries:
                break
            word = int.from_bytes(table[at * 8 : at * 8 + 8], "big")
            self._following = tally[3]
            self._walk_standard(array("Q", (word,)), offset, weight, l1_index, at)
            tally[3] = self._following
            at += 1
        self.allocated += tally[0]
        self.fragmented += tally[1]
        self.compressed += tally[2]

    def _walk_standard(self, words: array[int], table: int, weight: int, l1_index: int, first: int = 0) -> None:
        """Count what the entries of an L2 table refer to, of which ``words`` are those from the ``first`` on."""
        image = self.image
        bits, external = image.cluster_bits, image.external
        low, stored = self.seen.low, self.stored.low
        limit = min(len(low), (self.file_length + image.cluster_mask) >> bits)
        active = l1_index >= 0
        bad_bits = layout.L2_RESERVED | image.cluster_mask & ~_ZERO | _COMPRESSED
        for index, word in enumerate(words, first):
            if not word:
                continue
            if word & bad_bits or external or not word & _OFFSET:
                self._odd_entry(word, index, table, weight, l1_index)
                continue
            cluster = (word & _OFFSET) >> bits
            if active:
                self.allocated += 1
                self.fragmented += self._following not in (0, word & _OFFSET)
                self._following = (word & _OFFSET) + image.cluster_size
            if cluster >= limit:
                self.count(word & _OFFSET, image.cluster_size, weight)
                if active and (self.stored_count(cluster) == 1) != (word >= _COPIED):
                    self._copied_error(word, l1_index)
                continue
            if active:
                if (stored[cluster] == 1) != (word >= _COPIED):
                    self._copied_error(word, l1_index)
            if low[cluster] or weight != 1:
                self.seen.add(cluster, 1, weight)
            else:
                low[cluster] = 1

    def _odd_entry(self, word: int, index: int, table: int, weight: int, l1_index: int, bitmap: int = 0) -> None:
        """An entry, the ``index``-th of its table, that is not a plain data cluster; ``bitmap`` of its subclusters."""
        image = self.image
        active = l1_index >= 0
        if word & _COMPRESSED:
            self._compressed_entry(word, index, bitmap, weight, active)
            return
        if word & layout.L2_RESERVED:
            self.error(f"ERROR found l2 entry with reserved bits set: {word:x}")
        host = word & _OFFSET
        if not host and not (word & _COPIED and image.external):
            return
        if host & image.cluster_mask:
            holds_data = bitmap & layout.ALL_ALLOCATED if image.extended else not word & _ZERO
            what = "Data" if holds_data else "Preallocated"
            mends = self._repairing and not holds_data
            doing = "Repairing" if mends else "ERROR"
            self.error(f"{doing} offset={host:x}: {what} cluster is not properly aligned; L2 entry corrupted.")
            if mends:
                # Only a place is lost, which it does without.
                size, alone = (16, 0) if image.extended else (8, layout.ZERO_FLAG)
                self.bad_zero.append((table + index * size, alone))
                return
        if active:
            self.allocated += 1
            self.fragmented += self._following not in (0, host)
            self._following = host + image.cluster_size
        if image.external:
            guest = ((l1_index << image.tables.table_bits) + index) << image.cluster_bits
            if active and host != guest:
                self.error(f"ERROR offset={host:x}: data file offset does not match guest offset {guest:x}")
            return
        self.count(host, image.cluster_size, weight)
        if active:
            if (self.stored_count(host >> image.cluster_bits) == 1) != bool(word & _COPIED):
                self._copied_error(word, l1_index)

    def _compressed_entry(self, word: int, index: int, bitmap: int, weight: int, active: bool) -> None:
        image = self.image
        offset, size = layout.compressed_place(word, image.cluster_bits)
        if word & _COPIED:
            self.error(f"ERROR: coffset={offset:#x}: copied flag must never be set for compressed clusters")
            word &= ~_COPIED
        wrong = "data file" if image.external else "non-zero subcluster allocation bitmap" if bitmap else ""
        if wrong:
            self.error(f"ERROR compressed cluster {index} with {wrong}, entry={word:#x}")
            return
        self.count(offset, size, weight)
        if active:
            self.allocated += 1
            self.compressed += 1
            self.fragmented += 1

    def _walk_extended(self, words: array[int], table: int, weight: int, l1_index: int) -> None:
        """As :meth:`_walk_standard`, for extended entries."""
        for at in range(0, len(words), 2):
            word, bitmap = words[at], words[at + 1]
            if not word:
                if bitmap & layout.ALL_ALLOCATED and not self.image.external:
                    self.error("ERROR: Unallocated cluster has non-zero subcluster allocation map")
                continue
            if not word & _COMPRESSED and bitmap & bitmap >> 32 & layout.ALL_ALLOCATED:
                self.error(
                    f"ERROR offset={word & _OFFSET:x}: Allocated cluster has corrupted subcluster allocation bitmap"
                )
            self._odd_entry(word, at // 2, table, weight, l1_index, bitmap)

    def _copied_error(self, word: int, l1_index: int) -> None:
        count = self.stored_count((word & _OFFSET) >> self.image.cluster_bits)
        self._copied.append((l1_index, copied_cluster_text(word, count)))

    def report_copied(self) -> None:
        """Report COPIED flags that say otherwise than the refcounts as they are stored: whoever repairs those waits."""
        for _l1_index, text in sorted(self._copied, key=lambda found: found[0]):
            self.error(f"ERROR {text}")

    # -- comparing ----------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        # What is counted past the end of the file takes no space.
        end = max(-(-self.file_length >> self.image.cluster_bits), self.seen.last_used() + 1)
        for cluster in differences(self.stored, self.seen):
            if cluster >= end:
                break
            stored, seen = self.stored.get(cluster), self.seen.get(cluster)
            if stored > seen:
                self.leaks += 1
                self.too_high.append(cluster)
                self._report(f"Leaked cluster {cluster} refcount={stored} reference={seen}")
            else:
                self.too_low.append(cluster)
                self.error(f"ERROR cluster {cluster} refcount={stored} reference={seen}")

    def result(self) -> Options:
        """The members of ImageCheck; those that are optional only where they are not 0."""
        counters = {
            "image-end-offset": (self.seen.last_used() + 1) << self.image.cluster_bits,
            "corruptions": self.corruptions,
            "leaks": self.leaks,
            "total-clusters": -(-self.node.length >> self.image.cluster_bits),
            "allocated-clusters": self.allocated,
            "fragmented-clusters": self.fragmented,
            "compressed-clusters": self.compressed,
        }
        result: Options = {"check-errors": self.check_errors}
        result.update((name, value) for name, value in counters.items() if value)
        return result


def copied_table_text(index: int, entry: int, count: int) -> str:
    """What is said of the COPIED flag of an L1 entry."""
    return f"OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={count}"


def copied_cluster_text(entry: int, count: int) -> str:
    """What is said of the COPIED flag of an L2 entry."""
    return f"OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={count}"


def check(
    node: Qcow2Disk, *, fix_leaks: bool = False, fix_errors: bool = False, report: Report | None = None
) -> Options:
    """Check the image, and repair leaks or all damage: the members of ImageCheck without file name and format.

    ``report`` gets a line for each thing found. The node must be flushed and drained. Raises OSError where the image
    cannot be read.
    """
    say = report or (lambda _text: None)
    if not node.read_only:
        node.image.writeback.settle()
    faults = check_table(node, say, fix=fix_errors)
    checker = Checker(node, say, repairing=fix_errors)
    checker.run()
    if fix_leaks or fix_errors:
        from qobra.block.format.qcow2.repair import repair

        result = repair(checker, fix_leaks=fix_leaks, fix_errors=fix_errors, report=say)
    else:
        checker.report_copied()
        result = checker.result()
    counter = "corruptions"
    if faults and fix_errors:
        from qobra.block.format.qcow2.snapshot_ops import mend_table

        mend_table(node)
        counter = "corruptions-fixed"
    if faults:
        result[counter] = result.get(counter, 0) + faults
    return result

"""The metadata of an open qcow2 image, and what all parts of the driver share: lock, tables, counts, write-back.

One lock guards everything in memory. It is held for lookups and changes, and while metadata is read that a lookup
needs; guest data is read and written without it. A write that allocates marks its guest clusters as in flight; whoever
wants to change one of them waits until it is done.
"""

from __future__ import annotations

import errno
import sys
from array import array

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.allocator import Allocator
from qobra.block.format.qcow2.header import Header
from qobra.block.format.qcow2.overlap import Overlap
from qobra.block.format.qcow2.refcount import Refcounts
from qobra.block.format.qcow2.tables import Tables
from qobra.block.format.qcow2.writeback import Freed, Writeback
from qobra.block.node import BlockNode
from qobra.errors import QobraError
from qobra.lean import Condition, Lock
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from qobra.block.format.qcow2.crypt import Crypt
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.reserve import Reserve
elif (_compiled := compiled("places")) is not None:
    Lock = _compiled.Lock  # which loops without the GIL can take

_SWAP = sys.byteorder == "little"


class CacheSizes:
    """Bytes for the caches: of L2 slices, of one slice, of refcount blocks."""

    def __init__(self, l2: int, l2_entry: int, refcount: int) -> None:
        self.l2 = l2
        self.l2_entry = l2_entry
        self.refcount = refcount


class Image:
    """An open image. ``file`` holds the metadata, ``data`` the guest's clusters (the same, or an external file)."""

    def __init__(self, node: Qcow2Disk, file: BlockNode, header: Header, sizes: CacheSizes) -> None:
        self.node = node
        self.file = file
        self.data = file
        self.header = header
        self.cluster_bits = header.cluster_bits
        self.cluster_size = 1 << header.cluster_bits
        self.cluster_mask = self.cluster_size - 1
        self.extended = header.extended_l2
        self.external = header.external_data
        self.lock = Lock()
        self.landed = Condition(self.lock)
        """Notified when clusters leave ``in_flight`` and someone waits."""
        self.in_flight: set[int] = set()
        """Guest clusters that a write is allocating."""
        self.waiting = 0
        self.freed: list[Freed] = []
        """Host space whose last mapping is gone in memory but not yet on disk."""
        self.freed_bytes = 0
        self.reserve: Reserve | None = None
        """Clusters for loops without the GIL, once there are such."""
        self.is_corrupt = False
        self.counts_doubtful = False
        """Many counts were changed, and something went wrong: the dirty bit stays, so that they are counted anew."""
        self.crypt: Crypt | None = None
        self.encrypted = header.crypt_method != layout.CRYPT_NONE
        self.tables = Tables(self, sizes.l2, sizes.l2_entry)
        self.refcounts = Refcounts(self, sizes.refcount)
        self.allocator = Allocator(self, self.refcounts)
        self.overlap = Overlap(self)
        self.writeback = Writeback(self)

    def load(self) -> None:
        """Read the tables that are always in memory."""
        self.refcounts.load_table()
        self.tables.load_l1()
        self.allocator.start(self.file.length)

    def resize_caches(self, sizes: CacheSizes) -> None:
        """Start with new caches of other sizes; nothing may be dirty."""
        with self.lock:
            l1 = self.tables.l1
            if self.reserve is not None:
                self.reserve.close()
                self.reserve.serve(None)
                self.reserve = None  # its slices have another size
            self.tables = Tables(self, sizes.l2, sizes.l2_entry)
            self.tables.l1 = l1
            self.refcounts.resize_cache(sizes.refcount)

    def check_places(self) -> None:
        """Raise if a table that is written in place lies where the image file has never been."""
        header = self.header
        end = self.file.length + self.cluster_size
        for name, offset, size in (
            ("L1 table", header.l1_offset, header.l1_entries * 8),
            ("Refcount table", header.reftable_offset, header.reftable_clusters << self.cluster_bits),
        ):
            if offset + size > end:
                self.corrupt(f"{name} at {offset:#x} is past the end of the image file", fatal=True)

    def reload(self) -> None:
        """Read the tables anew and forget what is cached; nothing may be dirty."""
        with self.lock:
            self.tables.drop()
            self.overlap.rebuild()
            self.allocator.first_free = 0
            self.load()

    # -- metadata I/O -------------------------------------------------------------------------------------------

    def read_meta(self, offset: int, length: int) -> bytes:
        """``length`` bytes of the image file, with zeroes past its end."""
        file = self.file
        inside = max(0, min(length, file.length - offset))
        data = file.read(offset, inside) if inside else b""
        return data if inside == length else data + bytes(length - inside)

    def read_array(self, offset: int, entries: int) -> array[int]:
        """``entries`` big-endian words from ``offset``."""
        words = array("Q", bytes(8 * entries))
        view = memoryview(words).cast("B")
        inside = max(0, min(len(view), self.file.length - offset))
        if inside:
            self.file.read_into(offset, view[:inside])
        view.release()
        if _SWAP:
            words.byteswap()
        return words

    # -- allocating -----------------------------------------------------------------------------------------------

    def before_allocating(self) -> None:
        """Refcounts are about to change: with lazy ones, say so in the header first. Raises where they must not."""
        self.overlap.require_known()
        if self.node.lazy_refcounts and not self.header.incompatible & layout.DIRTY:
            self.writeback.set_incompatible(layout.DIRTY)

    def reads_zero(self, cluster: int) -> bool:
        """Whether guest cluster ``cluster`` reads as zeroes, as far as this image can tell without looking below."""
        part = self.tables.find(cluster)
        if part is not None:
            index = (cluster & self.tables.slice_mask) << self.tables.word_bits
            word = part.words[index]
            if self.extended:
                bitmap = part.words[index + 1]
                if word & layout.COMPRESSED_FLAG or bitmap & layout.ALL_ALLOCATED:
                    return False
                if bitmap == layout.ALL_ZERO:
                    return True
            elif word:
                return not word & layout.COMPRESSED_FLAG and bool(word & layout.ZERO_FLAG)
        backing = self.node.backing
        return backing is None or backing.length <= cluster << self.cluster_bits

    # -- freeing --------------------------------------------------------------------------------------------------

    def free(self, offset: int, length: int, *, discard: bool | None = None) -> None:
        """Nothing in memory refers to these host clusters any more: drop a reference once the disk says so too.

        ``discard``: if that was the last one, give the space back to the host; by ``pass-discard-other``, if not given.
        """
        if discard is None:
            discard = self.node.pass_discard_other
        freed = self.freed
        if freed and not length & self.cluster_mask:
            last_offset, last_length, last_discard = freed[-1]
            if last_offset + last_length == offset and last_discard == discard and not last_length & self.cluster_mask:
                freed[-1] = (last_offset, last_length + length, discard)
                self.freed_bytes += length
                return
        freed.append((offset, length, discard))
        self.freed_bytes += length

    def free_entry(self, entry: int, *, discard: bool = False) -> None:
        """:meth:`free` what an L2 entry, which was overwritten, referred to."""
        if entry & layout.COMPRESSED_FLAG:
            offset, length = layout.compressed_place(entry, self.cluster_bits)
            self.free(offset, length, discard=discard)
        elif not self.external:
            offset = entry & layout.OFFSET_MASK
            if offset & self.cluster_mask:
                # It may be anybody's; what was in the entry is gone all the same.
                self.overlap.signal(f"Cannot free unaligned cluster {offset:#x}", fatal=False)
            elif offset:
                self.free(offset, self.cluster_size, discard=discard)

    def last_used_cluster(self) -> int:
        """The highest host cluster with a count that is not 0."""
        with self.lock:
            refcounts = self.refcounts
            for index in range(len(refcounts.table) - 1, -1, -1):
                block = refcounts.block(index)
                if block is not None:
                    for position in range(len(block.counts) - 1, -1, -1):
                        if block.counts[position]:
                            return (index << refcounts.block_bits) + position
        return 0

    # -- waiting for others ---------------------------------------------------------------------------------------

    def wait_landed(self) -> None:
        """Wait, with the lock released meanwhile, until some write in flight has landed."""
        self.waiting += 1
        self.landed.wait()
        self.waiting -= 1

    def take_off(self, first: int, last: int) -> None:
        """Guest clusters ``first`` to ``last`` are being allocated."""
        if first == last:
            self.in_flight.add(first)
        else:
            self.in_flight.update(range(first, last + 1))
        if self.reserve is not None:
            self.reserve.note_busy()

    def land(self, first: int, last: int) -> None:
        """The reverse of :meth:`take_off`."""
        if first == last:
            self.in_flight.discard(first)
        else:
            self.in_flight.difference_update(range(first, last + 1))
        if self.reserve is not None:
            self.reserve.note_busy()
        if self.waiting:
            self.landed.notify_all()

    def await_range(self, first: int, last: int) -> None:
        """Wait until no write in flight touches guest clusters ``first`` to ``last``."""
        in_flight = self.in_flight
        while in_flight and (
            first in in_flight or (last > first and any(first <= cluster <= last for cluster in in_flight))
        ):
            self.wait_landed()

    # -- damage ---------------------------------------------------------------------------------------------------

    def note_metadata(self, offset: int, clusters: int) -> None:
        """``clusters`` host clusters from ``offset`` hold metadata from now on."""
        self.overlap.note(offset >> self.cluster_bits, clusters)

    def forget_metadata(self, offset: int, clusters: int) -> None:
        """The reverse of :meth:`note_metadata`."""
        self.overlap.forget(offset >> self.cluster_bits, clusters)

    def corrupt(self, message: str, *, fatal: bool, offset: int = -1, size: int = -1) -> NoReturn:
        """Damage was found: tell the user, mark the image if it is written to and ``fatal``, and fail the request."""
        self.overlap.signal(message, fatal=fatal, offset=offset, size=size)
        raise QobraError(message, errno=errno.EIO, node=self.node.node_name)

    def check_usable(self) -> None:
        """Raise once fatal damage was found."""
        if self.is_corrupt:
            raise QobraError("Image is corrupt", errno=errno.ENOMEDIUM, node=self.node.node_name)

"""Persistent dirty bitmaps: the bitmaps extension of an image ("Bitmaps" in the specification).

While an image is open for writing, its bitmaps are marked *in use* on disk: after a crash they are known to be stale
and are loaded as inconsistent. Closing stores them anew, in new clusters, and lets the header refer to those.
"""

from __future__ import annotations

import errno
from array import array

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.writeback import words_to_bytes
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.bitmap import DirtyBitmap
    from qobra.block.format.qcow2.check import Checker
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.image import Image
    from qobra.block.node import Options

IN_USE = 1
AUTO = 2
_RESERVED_FLAGS = ~(IN_USE | AUTO) & 0xFFFFFFFF
_MIN_GRANULARITY_BITS, _MAX_GRANULARITY_BITS = 9, 31
_DIRTY_TRACKING = 1
_MAX_BITMAP_BYTES = 0x20000000
_TABLE_RESERVED = 0xFF00_0000_0000_01FE


class Entry:
    """A bitmap in the directory: its table of ``table_entries`` words at ``table_offset``."""

    __slots__ = ("extra", "flags", "granularity_bits", "name", "table_entries", "table_offset")

    def __init__(self, name: str, granularity_bits: int, flags: int, table_offset: int, table_entries: int) -> None:
        self.name = name
        self.granularity_bits = granularity_bits
        self.flags = flags
        self.table_offset = table_offset
        self.table_entries = table_entries
        self.extra = b""

    def pack(self) -> bytes:
        """The directory entry."""
        name = self.name.encode("utf-8", "surrogateescape")
        data = layout.BITMAP_ENTRY.pack(
            self.table_offset,
            self.table_entries,
            self.flags,
            _DIRTY_TRACKING,
            self.granularity_bits,
            len(name),
            len(self.extra),
        )
        data += self.extra + name
        return data + bytes(-len(data) % 8)


class _ClusterReader:
    """Reads pieces of clusters, and keeps the cluster that was read last: pages are mostly asked for in order."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._last = (-1, b"")

    def read(self, offset: int, length: int) -> bytes:
        inside = offset & self._image.cluster_mask
        start, data = self._last
        if start != offset - inside:
            start = offset - inside
            data = self._image.read_meta(start, self._image.cluster_size)
            self._last = start, data
        return data[inside : inside + length]


class StoredBitmaps:
    """The bitmap directory of an image, and moving bitmaps between it and memory. Used while drained, or at opening."""

    def __init__(self, node: Qcow2Disk) -> None:
        self._node = node
        self.entries: list[Entry] = []
        self._marked = False
        """The bitmaps on disk are marked in use, because memory has newer ones."""

    # -- reading ------------------------------------------------------------------------------------------------

    def load_directory(self) -> None:
        """Read the directory that the header names. Raises QobraError where it is malformed."""
        bitmaps = self._node.header.bitmaps
        if bitmaps is None:
            return
        count, offset, size = bitmaps
        data = self._node.image.read_meta(offset, size)
        entries: list[Entry] = []
        position = 0
        while position < size:
            if len(entries) >= count:
                raise QobraError("More bitmaps found than specified in header extension", errno=errno.EINVAL)
            entry, length = self._parse(data, position)
            entries.append(entry)
            position += length
        if len(entries) != count:
            raise QobraError("Less bitmaps found than specified in header extension", errno=errno.EINVAL)
        if len({entry.name for entry in entries}) != count:
            raise QobraError("Bitmap directory has two bitmaps of one name", errno=errno.EINVAL)
        self.entries = entries

    def _parse(self, data: bytes, position: int) -> tuple[Entry, int]:
        if position + layout.BITMAP_ENTRY.size > len(data):
            raise QobraError("Broken bitmap directory", errno=errno.EINVAL)
        offset, entries, flags, kind, granularity, name_length, extra_length = layout.BITMAP_ENTRY.unpack_from(
            data, position
        )
        start = position + layout.BITMAP_ENTRY.size
        length = layout.BITMAP_ENTRY.size + name_length + extra_length
        if position + length > len(data):
            raise QobraError("Broken bitmap directory", errno=errno.EINVAL)
        name = data[start + extra_length : position + length].decode("utf-8", "surrogateescape")
        entry = Entry(name, granularity, flags, offset, entries)
        entry.extra = data[start : start + extra_length]
        if (
            flags & _RESERVED_FLAGS
            or extra_length
            or kind != _DIRTY_TRACKING
            or not 0 < name_length <= layout.MAX_BITMAP_NAME
            or not _MIN_GRANULARITY_BITS <= granularity <= _MAX_GRANULARITY_BITS
            or not offset
            or offset & self._node.image.cluster_mask
            or not 0 < entries <= layout.MAX_BITMAP_TABLE_ENTRIES
            or entries << self._node.image.cluster_bits > _MAX_BITMAP_BYTES + self._node.image.cluster_size
        ):
            raise QobraError(f"Bitmap '{name}' doesn't satisfy the constraints", errno=errno.EINVAL)
        return entry, length + (-length % 8)

    def load(self) -> None:
        """Make the node's bitmaps of those in the directory; one that is in use is inconsistent."""
        from qobra.block.bitmap import DirtyBitmap

        node = self._node
        for entry in self.entries:
            if entry.name in node.bitmaps:
                continue  # what came with a migration is newer
            granularity = 1 << entry.granularity_bits
            stale = bool(entry.flags & IN_USE)
            bitmap = DirtyBitmap(node, entry.name, granularity, enabled=False, persistent=True, length=node.header.size)
            if stale:
                bitmap.inconsistent = True
                continue
            self._load_bits(entry, bitmap)
            bitmap.loaded()
            bitmap.read_only = node.read_only
            if entry.flags & AUTO:
                bitmap.enable()

    def _span(self, granularity_bits: int) -> int:
        """Bytes of the disk that a cluster of bitmap data covers."""
        return self._node.image.cluster_size * 8 << granularity_bits

    def _load_bits(self, entry: Entry, bitmap: DirtyBitmap) -> None:
        node = self._node
        image = node.image
        reader = _ClusterReader(image) if node.options.get("_stored-bitmaps") else None
        span = self._span(entry.granularity_bits)
        if entry.table_entries != -(-node.header.size // span):
            raise QobraError(
                f"Could not read bitmap_table table from image for bitmap '{entry.name}'", errno=errno.EINVAL
            )
        for index, word in enumerate(self._table(entry)):
            start = index * span
            offset = word & layout.OFFSET_MASK
            if offset and reader is not None:
                bitmap.refer(start, reader.read, offset, image.cluster_size)
            elif offset:
                bitmap.load(start, image.read_meta(offset, image.cluster_size))
            elif word & 1:
                bitmap.set(start, min(span, node.header.size - start))

    def _table(self, entry: Entry) -> array[int]:
        """The bitmap's table. Raises QobraError where an entry cannot be."""
        image = self._node.image
        table = image.read_array(entry.table_offset, entry.table_entries)
        for word in table:
            offset = word & layout.OFFSET_MASK
            if word & _TABLE_RESERVED or offset & image.cluster_mask or (offset and word & 1):
                raise QobraError(
                    f"Could not read bitmap_table table from image for bitmap '{entry.name}'", errno=errno.EINVAL
                )
        return table

    def info(self) -> list[Options]:
        """Qcow2BitmapInfo of each bitmap in the directory."""
        result: list[Options] = []
        for entry in self.entries:
            flags = [name for bit, name in ((IN_USE, "in-use"), (AUTO, "auto")) if entry.flags & bit]
            result.append({"flags": flags, "name": entry.name, "granularity": 1 << entry.granularity_bits})
        return result

    # -- writing ------------------------------------------------------------------------------------------------

    def mark_in_use(self) -> None:
        """The image is about to change: say on disk that its bitmaps are not current."""
        if self._marked:
            return
        self._marked = bool(self.entries)
        for bitmap in self._node.bitmaps.values():
            bitmap.read_only = False
        if any(not entry.flags & IN_USE for entry in self.entries):
            for entry in self.entries:
                entry.flags |= IN_USE
            self._rewrite_flags()

    def _rewrite_flags(self) -> None:
        """Write the directory in its place. The header does not vouch for it meanwhile."""
        node = self._node
        header = node.header
        assert header.bitmaps is not None
        header.autoclear &= ~layout.BITMAPS_VALID
        node.image.writeback.write_header()
        node.image.file.write(header.bitmaps[1], b"".join(entry.pack() for entry in self.entries))
        node.image.writeback.barrier()
        header.autoclear |= layout.BITMAPS_VALID
        node.image.writeback.write_header()

    def store(self) -> None:
        """Write the node's persistent bitmaps; those that were there before go."""
        node = self._node
        kept = {entry.name: entry for entry in self.entries}
        # What is there keeps its place, as in QEMU; the newest of the others comes first.
        place = {name: number for number, name in enumerate(kept)}
        wanted = [bitmap for bitmap in reversed(node.bitmaps.values()) if bitmap.persistent and not bitmap.moving]
        wanted.sort(key=lambda bitmap: place.get(bitmap.name or "", len(place)))
        if not self._marked and not any(bitmap.name not in kept for bitmap in wanted):
            return  # nothing has changed since they were loaded
        fresh: list[Entry] = []
        dropped: list[Entry] = []
        for bitmap in wanted:
            assert bitmap.name is not None
            old = kept.pop(bitmap.name, None)
            if old is not None and (bitmap.inconsistent or not bitmap.changed):
                if not bitmap.inconsistent:
                    old.flags = AUTO if bitmap.enabled else 0
                fresh.append(old)
                continue
            if old is not None:
                dropped.append(old)
            if not bitmap.inconsistent and node.header.size:  # nobody reads a bitmap without a table
                fresh.append(self._store_bitmap(bitmap))
        # What is left in `kept` has no bitmap in memory any more, and so is not tracked.
        try:
            self._replace_directory(fresh)
        except OSError:
            if fresh != self.entries:
                raise
            self._rewrite_flags()  # on a full disk, say: no bit has changed, and this takes no room
        for entry in [*dropped, *kept.values()]:
            self._free(entry)
        self._marked = False

    def freeze(self) -> None:
        """The bitmaps stay as they are stored, until the image may change again."""
        for bitmap in self._node.bitmaps.values():
            bitmap.read_only = bitmap.persistent

    def let_go(self) -> None:
        """Store the bitmaps and forget those that are: whoever opens the image next has them."""
        self.store()
        for bitmap in list(self._node.bitmaps.values()):
            if bitmap.persistent and not bitmap.moving:
                bitmap.remove()

    def _store_bitmap(self, bitmap: DirtyBitmap) -> Entry:
        node = self._node
        image = node.image
        bits = bitmap.granularity.bit_length() - 1
        span = self._span(bits)
        table = array("Q", bytes(8 * -(-node.header.size // span)))
        position = 0
        while (position := bitmap.next_dirty(position, node.header.size)) < node.header.size:
            index = position // span
            start = index * span
            data = bitmap.to_bytes(start, min(span, node.header.size - start))
            offset = self._allocate(1)
            image.file.write(offset, data + bytes(image.cluster_size - len(data)))
            table[index] = offset
            position = start + span
        place = self._write(words_to_bytes(table)) if table else self._allocate(1)
        assert bitmap.name is not None
        return Entry(bitmap.name, bits, AUTO if bitmap.enabled else 0, place, len(table))

    def remove(self, name: str) -> None:
        """Take the bitmap out of the directory, if it is there."""
        gone = [entry for entry in self.entries if entry.name == name]
        if gone:
            self._replace_directory([entry for entry in self.entries if entry.name != name])
            self._free(gone[0])

    def _replace_directory(self, entries: list[Entry]) -> None:
        """Write a new directory and let the header refer to it."""
        node = self._node
        header = node.header
        image = node.image
        old = header.bitmaps
        data = b"".join(entry.pack() for entry in entries)
        offset = self._write(data) if data else 0
        image.writeback.commit()
        if data:
            header.bitmaps = (len(entries), offset, len(data))
            header.autoclear |= layout.BITMAPS_VALID
        else:
            header.bitmaps = None
            header.autoclear &= ~layout.BITMAPS_VALID
        if data or old is not None:
            image.writeback.write_header()
        self.entries = entries
        image.overlap.rebuild()
        if old is not None:
            image.free(old[1], -(-old[2] // image.cluster_size) * image.cluster_size)

    def _allocate(self, clusters: int) -> int:
        image = self._node.image
        with image.lock:
            image.before_allocating()
            first, _count = image.allocator.allocate(clusters, clusters)
            image.overlap.guard(first << image.cluster_bits, clusters << image.cluster_bits)
        return first << image.cluster_bits

    def _write(self, data: bytes) -> int:
        """Put ``data`` into new clusters; their offset."""
        image = self._node.image
        clusters = -(-len(data) >> image.cluster_bits)
        offset = self._allocate(clusters)
        try:
            image.file.write(offset, data)
        except OSError:
            image.free(offset, clusters << image.cluster_bits)
            raise
        return offset

    def _free(self, entry: Entry) -> None:
        image = self._node.image
        for word in self._table(entry):
            if word & layout.OFFSET_MASK:
                image.free(word & layout.OFFSET_MASK, image.cluster_size, discard=True)
        image.free(entry.table_offset, -(-entry.table_entries * 8 // image.cluster_size) * image.cluster_size)

    # -- others ask -----------------------------------------------------------------------------------------------

    def check_new(self, name: str, granularity: int) -> None:
        """Raise QobraError with the reason if there can be no stored bitmap like this."""
        node = self._node
        if node.header.version < 3:
            raise QobraError("Cannot store dirty bitmaps in qcow2 v2 files")
        bits = granularity.bit_length() - 1
        if bits > _MAX_GRANULARITY_BITS:
            raise QobraError(f"Granularity exceeds maximum ({1 << _MAX_GRANULARITY_BITS} bytes)")
        if bits < _MIN_GRANULARITY_BITS:
            raise QobraError(f"Granularity is under minimum ({1 << _MIN_GRANULARITY_BITS} bytes)")
        if (node.length + granularity - 1 >> bits) + 7 >> 3 > _MAX_BITMAP_BYTES:
            raise QobraError("Too much space will be occupied by the bitmap. Use larger granularity")
        persistent = [known for known, bitmap in node.bitmaps.items() if bitmap.persistent]
        if len(persistent) >= layout.MAX_BITMAPS:
            raise QobraError("Maximum number of persistent bitmaps is already reached")
        size = sum(len(Entry(each, 0, 0, 0, 0).pack()) for each in persistent)
        if size + len(Entry(name, 0, 0, 0, 0).pack()) > layout.MAX_BITMAP_DIRECTORY_BYTES:
            raise QobraError("Not enough space in the bitmap directory")

    def check_resizable(self) -> None:
        """Raise QobraError if a bitmap could not follow a change of size."""
        for bitmap in self._node.bitmaps.values():
            if bitmap.persistent:
                bitmap.check()

    def count_references(self, checker: Checker) -> None:
        """Count the clusters that bitmaps take, for a check."""
        bitmaps = self._node.header.bitmaps
        if bitmaps is None:
            return
        checker.count(bitmaps[1], bitmaps[2])
        for entry in self.entries:
            checker.count(entry.table_offset, entry.table_entries * 8)
            for word in self._node.image.read_array(entry.table_offset, entry.table_entries):
                offset = word & layout.OFFSET_MASK
                if word & _TABLE_RESERVED or offset & self._node.image.cluster_mask:
                    checker.error(f"ERROR bitmap '{entry.name}' has a bad table entry: {word:x}")
                elif offset:
                    checker.count(offset, self._node.image.cluster_size)

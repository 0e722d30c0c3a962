"""The qcow2 block driver: opens an image and hands requests to the modules that serve them."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qobra.block import permissions
from qobra.block.bitmap import BitmapStore
from qobra.block.extents import COMPUTED, DATA, Extent
from qobra.block.filename import parse_filename, relative_to
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.bitmaps import StoredBitmaps
from qobra.block.format.qcow2.header import l1_entries_for, l1_shift, parse_header
from qobra.block.format.qcow2.image import Image
from qobra.block.format.qcow2.mapping import map_range
from qobra.block.format.qcow2.options import cache_sizes, overlap_checks
from qobra.block.format.qcow2.snapshots import SnapshotTable
from qobra.block.node import BlockNode, Buffer, Opening, Options, drivers, read_or_zero
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.format.qcow2.compressed import ClusterCache
    from qobra.block.format.qcow2.writer import Writer


@drivers.register("qcow2")
class Qcow2Node(BlockNode, BitmapStore):
    """A qcow2 image. ``header``, ``snapshots`` and ``image`` are its metadata; see :mod:`.image`."""

    driver = "qcow2"
    strong_options = ("encrypt.key-secret",)
    is_format = True
    supports_backing = True
    creatable = True

    image: Image

    @classmethod
    def probe(cls, data: bytes, filename: str) -> int:
        return 100 if data[:4] == layout.MAGIC and int.from_bytes(data[4:8], "big") >= 2 else 0

    # -- life -------------------------------------------------------------------------------------------------

    def open(self, opening: Opening) -> None:
        options = opening.options
        opening.child("file", permissions.ROLE_IMAGE)
        self.checking = bool(options.get("_check"))
        """Opened to be checked: a corrupt or dirty image is let through as it is."""
        try:
            self.header = parse_header(self._read_file)
            self.snapshots = SnapshotTable(self.header)
            header = self.header
            if header.incompatible & layout.CORRUPT and not self.read_only and not self.checking:
                raise QobraError("qcow2: Image is corrupt; cannot be opened read/write", errno=errno.EACCES)
            self._check_encryption(options)
            self._take_options(options)
            self.image = Image(self, self.file, header, cache_sizes(header, options))
            self.stored_bitmaps = StoredBitmaps(self)
            self.image.overlap.checks = overlap_checks(options)
            self._open_data_file(opening)
            if header.crypt_method != layout.CRYPT_NONE and not options.get("_no-io") and not options.get("_keyless"):
                from qobra.block.format.qcow2.crypt import open_crypt

                self.image.crypt = open_crypt(self, options)
            self.image.load()
            self.snapshots.load(self._read_file)
            self.stored_bitmaps.load_directory()
        except OSError as error:
            raise QobraError.from_os("Could not read qcow2 header", error)
        self.backing_filename = header.backing_file
        self.backing_format = header.backing_format
        self.length = header.size
        self._decompressed: ClusterCache | None = None
        self._ready = False
        """What has to be written before the image may change is written."""
        if not options.get("_no-io"):
            self.stored_bitmaps.load()

    def _check_encryption(self, options: Options) -> None:
        if self.header.crypt_method != layout.CRYPT_NONE or options.get("encrypt") is not None:
            from qobra.block.format.qcow2.crypt import check_format

            check_format(self.header.crypt_method, options)

    def _read_file(self, offset: int, length: int) -> bytes:
        inside = max(0, min(length, self.file.length - offset))
        data = self.file.read(offset, inside) if inside else b""
        return data + bytes(length - inside)

    changeable_options = frozenset(
        {
            "lazy-refcounts",
            "pass-discard-request",
            "pass-discard-snapshot",
            "pass-discard-other",
            "overlap-check",
            "cache-size",
            "l2-cache-size",
            "l2-cache-entry-size",
            "refcount-cache-size",
            "cache-clean-interval",
        }
    )

    def take_options(self, options: Options) -> None:
        was_lazy = self.lazy_refcounts
        sizes = cache_sizes(self.header, options)
        checks = overlap_checks(options)
        self._take_options(options)
        if self._ready and not self.read_only:
            self.image.writeback.settle()
            if was_lazy and not self.lazy_refcounts:
                self.image.writeback.mark_clean()
        self.image.resize_caches(sizes)
        self.image.overlap.checks = checks
        self.image.overlap.rebuild()

    def _take_options(self, options: Options) -> None:
        header = self.header
        self.lazy_refcounts = bool(options.get("lazy-refcounts", header.compatible & layout.LAZY_REFCOUNTS))
        if self.lazy_refcounts and header.version < 3:
            raise QobraError(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level", errno=errno.EINVAL
            )
        self.pass_discard = bool(options.get("pass-discard-request", self.discard_unmap))
        self.pass_discard_snapshot = bool(options.get("pass-discard-snapshot", True))
        self.pass_discard_other = bool(options.get("pass-discard-other", False))

    def _open_data_file(self, opening: Opening) -> None:
        header = self.header
        self.data_file_raw = False
        if not header.external_data:
            if "data-file" in opening.options:
                raise QobraError("'data-file' can only be set for images with an external data file")
            return
        self.roles["file"] = permissions.ROLE_METADATA | permissions.ROLE_PRIMARY
        self.data_file_raw = bool(header.autoclear & layout.RAW_EXTERNAL)
        if opening.options.get("_no-io"):
            return
        if "data-file" in opening.options:
            opening.child("data-file", permissions.ROLE_DATA)
        elif header.data_file:
            reference = parse_filename(relative_to(header.data_file, self.file.filename))
            opening.attach("data-file", permissions.ROLE_DATA, reference)
        else:
            raise QobraError("'data-file' is required for this image")
        self.image.data = self.children["data-file"]

    def activate(self) -> None:
        if not self.read_only and not self.checking:
            self.get_ready()

    def get_ready(self) -> None:
        """The image is about to be changed: repair it if it is dirty, and drop what would not follow the changes."""
        if self._ready:
            return
        self._make_writers()
        header = self.header
        self.image.check_places()
        if header.autoclear & ~layout.KNOWN_AUTOCLEAR or header.stale_bitmaps:
            header.autoclear &= layout.KNOWN_AUTOCLEAR
            header.stale_bitmaps = False
            self.image.writeback.write_header()
        if header.incompatible & layout.DIRTY:
            self._repair_dirty()
        self.stored_bitmaps.mark_in_use()
        self._ready = True

    def _make_writers(self) -> None:
        """What only writing needs, so that whoever only reads starts sooner."""
        from qobra.block.format.qcow2.compressor import CompressedWriter
        from qobra.block.format.qcow2.zeroing import Zeroing

        self._writer: Writer
        if self.header.extended_l2:
            from qobra.block.format.qcow2.subclusters import SubclusterWriter

            self._writer = SubclusterWriter(self.image)
        else:
            from qobra.block.format.qcow2.writer import Writer

            self._writer = Writer(self.image)
        self._zeroing = Zeroing(self.image)
        self._compressor = CompressedWriter(self.image)
        self._sector_lock = threading.Lock()

    def inactivate(self) -> None:
        if not self.read_only and not self.image.is_corrupt:
            self.stored_bitmaps.store()
            self.image.writeback.finish()
            self._ready = False

    def _repair_dirty(self) -> None:
        """Lazy refcounts were not written before a crash: count anew."""
        result = self.check(fix_leaks=True, fix_errors=True)
        if result.get("corruptions") or result["check-errors"]:
            raise QobraError("Could not repair dirty image", errno=errno.EIO)

    def check(
        self, *, fix_leaks: bool = False, fix_errors: bool = False, report: Callable[[str], None] | None = None
    ) -> Options:
        """Check the image, and repair it; see :func:`.check.check`."""
        from qobra.block.format.qcow2.check import check

        return check(self, fix_leaks=fix_leaks, fix_errors=fix_errors, report=report)

    def close(self) -> None:
        if hasattr(self, "_ready") and self._ready:
            self.inactivate()

    # -- reading ----------------------------------------------------------------------------------------------

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        return map_range(self.image, offset, length)

    def read_old(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what guest ``offset`` holds, for copy-on-write."""
        self._read(offset, view)

    def read_computed(self, offset: int, view: memoryview) -> None:
        image = self.image
        if image.encrypted:
            self._read_encrypted(offset, view)
        else:
            self._read_clusters(offset, view)

    def _read_encrypted(self, offset: int, view: memoryview) -> None:
        image = self.image
        position = 0
        for extent in map_range(image, offset, len(view), raw=True):
            part = view[position : position + extent.length]
            here = offset + position
            if extent.kind == COMPUTED:
                self._read_clusters(here, part)
            elif extent.kind == DATA:
                if image.crypt is None:
                    raise QobraError("The image is encrypted and was opened without its key", errno=errno.EACCES)
                low = here & 511
                size = (low + len(part) + 511) & ~511
                stored = bytearray(size)
                read_or_zero(image.data, extent.offset - low, memoryview(stored))
                plain = image.crypt.decrypt(here - low, extent.offset - low, memoryview(stored))
                part[:] = plain[low : low + len(part)]
            else:
                self._read(here, part)  # it was changed just now
            position += extent.length

    def _read_clusters(self, offset: int, view: memoryview) -> None:
        """Fill ``view``, which lies in compressed clusters."""
        image = self.image
        size = image.cluster_size
        position = 0
        while position < len(view):
            inside = (offset + position) & image.cluster_mask
            part = view[position : position + size - inside]
            cluster = self._read_compressed((offset + position) >> image.cluster_bits)
            part[:] = cluster[inside : inside + len(part)]
            position += len(part)

    def _read_compressed(self, cluster: int) -> bytes:
        image = self.image
        with image.lock:
            part = image.tables.find(cluster)
            word = part.words[(cluster & image.tables.slice_mask) << image.tables.word_bits] if part is not None else 0
        if not word & layout.COMPRESSED_FLAG:
            return self.read(cluster << image.cluster_bits, image.cluster_size)  # it was overwritten just now
        from qobra.block.format.qcow2.compressed import ClusterCache, decompress

        place = layout.compressed_place(word, image.cluster_bits)
        if self._decompressed is None:
            self._decompressed = ClusterCache(image.cluster_size)
        data = self._decompressed.get(place)
        if data is None:
            self.file.debug_event("read_compressed")
            packed = image.read_meta(*place)
            data = decompress(packed, image.cluster_size, image.header.compression)
            self._decompressed.put(place, data)
        return data

    # -- writing ----------------------------------------------------------------------------------------------

    def _write(self, offset: int, data: Buffer) -> None:
        if not self._ready:
            self.get_ready()
        view = memoryview(data)
        if view.format != "B":
            view = view.cast("B")
        if self.image.encrypted and (offset | len(view)) & 511:
            self._write_unaligned(offset, view)
        else:
            self._writer.write(offset, view)

    def _write_unaligned(self, offset: int, view: memoryview) -> None:
        """Encryption works on whole sectors: read what is around, and write it with the data."""
        start, end = offset & ~511, (offset + len(view) + 511) & ~511
        with self._sector_lock:
            whole = memoryview(bytearray(end - start))
            self._read(start, whole[: min(end, self.length) - start])
            whole[offset - start : offset - start + len(view)] = view
            self._writer.write(start, whole)

    def write_plain(self, offset: int, view: memoryview) -> None:
        """Write guest data without compression, as the middle of another request."""
        self._writer.write(offset, view)

    def _write_compressed(self, offset: int, data: Buffer) -> None:
        if not self._ready:
            self.get_ready()
        self._compressor.write(offset, memoryview(data).cast("B"))

    def forget_decompressed(self) -> None:
        """Compressed data was written: places may hold other clusters than before."""
        if self._decompressed is not None:
            self._decompressed.clear()

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        if not self._ready:
            self.get_ready()
        return self._zeroing.zero(offset, length, may_unmap, no_fallback)

    def _discard(self, offset: int, length: int) -> None:
        if not self._ready:
            self.get_ready()
        self._zeroing.discard(offset, length)

    def forget_range(self, first: int, end: int) -> None:
        """Unmap guest clusters ``first`` up to ``end``."""
        self._zeroing.forget_clusters(first, end)

    def zero_new(self, offset: int, length: int) -> None:
        """Zero a range that was just added to the disk."""
        if not self._zeroing.zero(offset, length, False, False):
            self.write_zero_bytes(offset, length)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        from qobra.block.format.qcow2.resize import resize

        if not self._ready:
            self.get_ready()
        resize(self, length, preallocation, exact)

    def flush(self) -> None:
        if self.read_only:
            return
        self.file.debug_event("flush_to_os")
        self.image.writeback.commit()

    # -- bitmaps ----------------------------------------------------------------------------------------------

    def check_new_bitmap(self, name: str, granularity: int) -> None:
        try:
            self.stored_bitmaps.check_new(name, granularity)
        except QobraError as error:
            where = self.layer.device_or_node_name(self)
            raise error.prefixed(f"Can't make bitmap '{name}' persistent in '{where}': ")

    def remove_stored_bitmap(self, name: str) -> None:
        self.get_ready()
        self.stored_bitmaps.remove(name)

    # -- snapshots --------------------------------------------------------------------------------------------

    def snapshot_list(self) -> list[Options]:
        """The internal snapshots, as SnapshotInfo."""
        from qobra.block.format.qcow2.info import snapshot_info

        return [snapshot_info(each) for each in self.snapshots.entries]

    def snapshot_create(
        self, name: str, *, vm_state_size: int = 0, vm_clock: int = 0, now_ns: int | None = None
    ) -> Options:
        """Take an internal snapshot (the node is drained) and return its SnapshotInfo."""
        from qobra.block.format.qcow2 import snapshot_ops
        from qobra.block.format.qcow2.info import snapshot_info

        return snapshot_info(
            snapshot_ops.create(self, name, vm_state_size=vm_state_size, vm_clock=vm_clock, now_ns=now_ns)
        )

    def snapshot_delete(self, id: str | None, name: str | None) -> None:
        """Delete the snapshot with that id and name, as far as given. Raises QobraError (ENOENT)."""
        from qobra.block.format.qcow2 import snapshot_ops

        snapshot_ops.delete(self, snapshot_ops.find(self, id, name))

    def snapshot_apply(self, id_or_name: str) -> None:
        """Return the disk to the snapshot with that id or else name (the node is drained)."""
        from qobra.block.format.qcow2 import snapshot_ops

        snapshot_ops.apply(self, snapshot_ops.find_any(self, id_or_name))

    def snapshot_load(self, id_or_name: str) -> None:
        """Show a snapshot's contents on this read-only node."""
        from qobra.block.format.qcow2 import snapshot_ops

        snapshot_ops.load(self, snapshot_ops.find_any(self, id_or_name))

    # -- the state of a machine, which is kept past the end of the disk ------------------------------------------

    @property
    def vm_state_offset(self) -> int:
        """Where on the disk a machine's saved state begins: past its end."""
        shift = l1_shift(self.header)
        return -(-self.length >> shift) << shift

    def write_vm_state(self, position: int, data: Buffer) -> None:
        """Write a machine's saved state, which the next snapshot is to keep, from byte ``position`` of it on."""
        from qobra.block.format.qcow2.resize import grow_l1

        self.get_ready()
        self.file.debug_event("vmstate_save")
        offset = self.vm_state_offset + position
        grow_l1(self.image, l1_entries_for(self.header, offset + len(data)))
        self._writer.write(offset, memoryview(data).cast("B"))

    def read_vm_state(self, position: int, length: int) -> bytes:
        """Read the saved state of the snapshot that was applied last."""
        self.file.debug_event("vmstate_load")
        data = bytearray(length)
        self._read(self.vm_state_offset + position, memoryview(data))
        return bytes(data)

    def forget_vm_state(self) -> None:
        """Unmap the saved state."""
        image = self.image
        first = self.vm_state_offset >> image.cluster_bits
        self._zeroing.forget_clusters(first, image.header.l1_entries << image.tables.table_bits)

    def make_empty(self) -> None:
        """Give up all that the image holds itself, so that it shows its backing file (the node is drained)."""
        self.get_ready()
        self._zeroing.forget_clusters(0, -(-self.length >> self.image.cluster_bits))
        self.written(0, self.length)

    # -- what callers ask -------------------------------------------------------------------------------------

    def plain_writes(self) -> bool:
        return super().plain_writes() and not self.image.encrypted

    def cluster_size(self) -> int:
        return self.image.cluster_size

    def data_may_be_holes(self) -> bool:
        """Whether it is worth asking the file which of the data are holes."""
        from qobra.block.format.qcow2.holes import looks_preallocated

        return looks_preallocated(self.image)

    def has_zero_init(self) -> bool:
        if self.image.encrypted:
            return False
        return not self.image.external or self.image.data.has_zero_init()

    def info(self) -> Options:
        from qobra.block.format.qcow2.info import image_info

        return image_info(self)

    def device_name(self) -> str:
        """The name of the block device that uses this node, for events; empty where there is none."""
        for root in self.layer.graph.roots_of(self):
            name = getattr(root, "name", "")
            if name:
                return str(name)
        return ""

    def warn(self, text: str) -> None:
        """Tell whoever runs the program."""
        print(text, file=sys.stderr)

    def amend_encryption(self, options: Options, force: bool) -> None:
        """x-blockdev-amend (BlockdevAmendOptionsQcow2)."""
        if "encrypt" in options:
            raise QobraError("image is not encrypted, can't amend")

    def amend(
        self, options: Options, progress: Callable[[int, int], None] | None = None, *, force: bool = False
    ) -> None:
        """Change what can be changed (the node is drained); see :func:`.amend.amend`."""
        from qobra.block.format.qcow2.amend import amend

        self.get_ready()
        amend(self, options, progress, force=force)

    def change_backing_file(self, filename: str, backing_format: str) -> None:
        self.get_ready()
        if len(filename.encode("utf-8", "surrogateescape")) > layout.MAX_BACKING_NAME:
            raise QobraError("Backing file name too long", errno=errno.EINVAL)
        if filename and self.data_file_raw:
            raise QobraError("Cannot set a backing file with a raw external data file", errno=errno.EINVAL)
        header = self.header
        before = header.backing_file, header.backing_format
        header.backing_file, header.backing_format = filename, backing_format if filename else ""
        try:
            self.image.writeback.write_header()
        except QobraError:
            header.backing_file, header.backing_format = before
            raise
        self.backing_filename, self.backing_format = header.backing_file, header.backing_format

    @classmethod
    def measure(cls, options: Options, source: BlockNode | None = None) -> Options:
        """BlockMeasureInfo of a new image; see :func:`.measure.measure`."""
        from qobra.block.format.qcow2.measure import measure

        return measure(options, source)

    @classmethod
    def create(cls, options: Options, file: BlockNode, data_file: BlockNode | None = None) -> None:
        """blockdev-create (BlockdevCreateOptionsQcow2); see :mod:`.create`."""
        from qobra.block.format.qcow2.create import create

        create(options, file, data_file)

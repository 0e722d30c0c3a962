"""The qcow2 block driver: opens an image and hands requests to the modules that serve them."""

from __future__ import annotations

import errno

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.extents import Extent
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.mapping import map_range
from qobra.block.format.qcow2.opening import open_disk, read_anew
from qobra.block.format.qcow2.options import (
    CHANGEABLE,
    cache_sizes,
    drop_overridden,
    overlap_checks,
    take_behaviour,
)
from qobra.block.in_files import InFiles
from qobra.block.node import BlockNode, Options
from qobra.errors import QobraError, strerror
from qobra.lean import Lock, cached_property
from qobra.report import print_error, report_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qobra.block.format.qcow2.bitmaps import StoredBitmaps
    from qobra.block.format.qcow2.compressor import CompressedWriter
    from qobra.block.format.qcow2.filling import Filling
    from qobra.block.format.qcow2.header import Header
    from qobra.block.format.qcow2.image import Image
    from qobra.block.format.qcow2.linking import Linking
    from qobra.block.format.qcow2.packed import Block
    from qobra.block.format.qcow2.reading import ComputedReader, Packed
    from qobra.block.format.qcow2.snapshots import SnapshotTable
    from qobra.block.format.qcow2.writer import Writer
    from qobra.block.opening import Opening
    from qobra.block.table import ResolvedTable


class Qcow2Disk(BlockNode):
    """A qcow2 image. ``header``, ``snapshots`` and ``image`` are its metadata; see :mod:`.image`."""

    driver = "qcow2"
    strong_options = ("encrypt.key-secret",)
    is_format = True
    can_compress = True
    supports_backing = True

    header: Header
    snapshots: SnapshotTable
    image: Image
    checking: bool
    """Opened to be checked: a corrupt or dirty image is let through as it is."""
    ready = False
    """What has to be written before the image may change is written."""
    data_file_raw = False
    """The external data file is a raw image of the disk by itself."""
    lazy_refcounts: bool
    pass_discard: bool
    pass_discard_snapshot: bool
    pass_discard_other: bool

    @classmethod
    def probe(cls, data: bytes, filename: str) -> int:
        return 100 if data[:4] == layout.MAGIC and int.from_bytes(data[4:8], "big") >= 2 else 0

    # -- life -------------------------------------------------------------------------------------------------

    def open(self, opening: Opening) -> None:
        open_disk(self, opening)

    def invalidate_cache(self) -> None:
        read_anew(self)

    changeable_options = CHANGEABLE

    def drop_overridden(self, options: Options, new: Options) -> None:
        drop_overridden(options, new)

    def check_options(self, options: Options) -> None:
        if "encrypt" in options:
            from qobra.block.format.qcow2.crypt import check_format

            check_format(self.header.crypt_method, options)

    def take_options(self, options: Options) -> None:
        was_lazy = self.lazy_refcounts
        sizes = cache_sizes(self.header, options)
        checks = overlap_checks(options)
        take_behaviour(self, options)
        if self.ready and not self.read_only:
            self.image.writeback.settle()
            if was_lazy and not self.lazy_refcounts:
                self.image.writeback.mark_clean()
        self.image.resize_caches(sizes)
        self.image.overlap.checks = checks
        self.image.overlap.rebuild()

    @property
    def has_bitmaps(self) -> bool:
        """Whether there are any, in the image or in memory."""
        return self.header.bitmaps is not None or bool(self.bitmaps)

    @cached_property
    def stored_bitmaps(self) -> StoredBitmaps:
        """The bitmaps in the image. Where there are none nobody asks, and a program starts sooner."""
        from qobra.block.format.qcow2.bitmaps import StoredBitmaps

        return StoredBitmaps(self)

    def read_file(self, offset: int, length: int) -> bytes:
        """Bytes of the image file; zeroes past its end."""
        inside = max(0, min(length, self.file.length - offset))
        data = self.file.read(offset, inside) if inside else b""
        return data + bytes(length - inside)

    def activate(self) -> None:
        if not self.read_only:
            if self.checking:
                self._drop_stale()
            else:
                self.get_ready()

    def children_changed(self) -> None:
        self.image.file = self.file
        self.image.data = self.children.get("data-file", self.file)

    def get_ready(self) -> None:
        """The image is about to be changed: repair it if it is dirty, and drop what would not follow the changes."""
        if self.ready:
            return
        self._make_writers()
        header = self.header
        self.image.check_places()
        self._drop_stale()
        if header.incompatible & layout.DIRTY:
            self._repair_dirty()
        if self.has_bitmaps:
            self.stored_bitmaps.mark_in_use()
        self.ready = True

    def _drop_stale(self) -> None:
        """Drop from the header what only holds as long as nobody changes the image who does not know of it."""
        header = self.header
        if header.autoclear & ~layout.KNOWN_AUTOCLEAR or header.stale_bitmaps:
            header.autoclear &= layout.KNOWN_AUTOCLEAR
            header.stale_bitmaps = False
            self.image.writeback.write_header()

    def _make_writers(self) -> None:
        """What only writing needs, so that whoever only reads starts sooner."""
        from qobra.block.format.qcow2.zeroing import Zeroing

        self._writer: Writer
        if self.header.extended_l2:
            from qobra.block.format.qcow2.subclusters import SubclusterWriter

            self._writer = SubclusterWriter(self.image)
        else:
            from qobra.block.format.qcow2.writer import Writer

            self._writer = Writer(self.image)
        self._zeroing = Zeroing(self.image)
        self.__dict__.pop("_compressor", None)
        self._sector_lock = Lock()

    def check_write(self, offset: int, length: int) -> None:
        end = offset + length
        grows = end > self.length and offset >= 0 and bool(self.perm & permissions.RESIZE)
        super().check_write(min(offset, self.length) if grows else offset, 0 if grows else length)
        self.image.check_usable()
        if grows:
            # As a file does, it grows under a format: for as long as it is open, as its header keeps the old size.
            from qobra.block.format.qcow2.resize import make_room

            with self._sector_lock:
                make_room(self.image, end)

    def written(self, offset: int, length: int) -> None:
        if offset + length > self.length:
            self.length = -(-(offset + length) // 512) * 512
        super().written(offset, length)

    def inactivate(self) -> None:
        if not self.read_only and not self.image.is_corrupt:
            if self.has_bitmaps:
                self.stored_bitmaps.store()
                self.stored_bitmaps.freeze()
            self.image.writeback.finish()
            self.ready = False

    def hand_over(self) -> None:
        if not self.read_only and not self.image.is_corrupt:
            if self.has_bitmaps:
                self.stored_bitmaps.let_go()
            self.image.writeback.finish()
            self.ready = False

    def _repair_dirty(self) -> None:
        """Lazy refcounts were not written before a crash: count anew."""
        result = self.check(fix_leaks=True, fix_errors=True, report=self.warn)
        if result.get("corruptions") or result["check-errors"]:
            raise QobraError("Could not repair dirty image", errno=errno.EIO)

    def check(
        self, *, fix_leaks: bool = False, fix_errors: bool = False, report: Callable[[str], None] | None = None
    ) -> Options:
        """Check the image, and repair it; see :func:`.check.check`."""
        from qobra.block.format.qcow2.check import check

        return check(self, fix_leaks=fix_leaks, fix_errors=fix_errors, report=report)

    def close(self) -> None:
        if not self.ready or self.image.is_corrupt or self.abandoned:
            return
        try:
            if self.has_bitmaps:
                self.stored_bitmaps.store()
        except (OSError, QobraError) as error:
            why = strerror(error) if isinstance(error, OSError) else error
            report_error(f"Lost persistent bitmaps during inactivation of node '{self.node_name}': {why}")
        try:
            self.image.writeback.finish()
        except OSError as error:
            # One commit writes the tables and the counts: what fails is neither safe, and QEMU tells it of each.
            failure = QobraError.from_os("Failed to flush the L2 table cache", error)
            failure.add_note(str(QobraError.from_os("Failed to flush the refcount block cache", error)))
            raise failure
        # The parts of an image refer to each other, so they are there until Python's collector comes by, in a daemon
        # after some hundred images: then without what they have read.
        self.image.tables.drop()
        self.image.refcounts.drop()
        self.forget_computed()

    # -- reading ----------------------------------------------------------------------------------------------

    @cached_property
    def reader(self) -> ComputedReader:
        """Reads what does not lie raw in the file."""
        from qobra.block.format.qcow2.reading import ComputedReader

        return ComputedReader(self)

    def forget_computed(self) -> None:
        """Other data may have come to where what was decompressed lay. Where nothing was read, no reader is made."""
        reader: ComputedReader | None = self.__dict__.get("reader")
        if reader is not None:
            reader.forget()

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        return map_range(self.image, offset, length)

    def packed_map(self, start: int, end: int) -> Iterator[Block] | None:
        from qobra.block.format.qcow2.packed import packed_map

        return packed_map(self, start, end)

    def packed(self, offset: int, length: int) -> tuple[int, int, list[Packed]] | None:
        return self.reader.packed(offset, length)

    def read_old(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what guest ``offset`` holds, for copy-on-write."""
        self._read(offset, view)

    def read_computed(self, offset: int, view: memoryview) -> None:
        self.reader.read(offset, view)

    # -- writing ----------------------------------------------------------------------------------------------

    def _write(self, offset: int, data: Buffer) -> None:
        if not self.ready:
            self.get_ready()
        if isinstance(data, InFiles):
            self._writer.write(offset, data)
            return
        view = memoryview(data)
        if view.format != "B":
            view = view.cast("B")
        if self.image.encrypted and (offset | len(view)) & 511:
            self._write_unaligned(offset, view)
        else:
            self._writer.write(offset, view)

    def takes_files(self) -> bool:
        data = self.image.data
        plain = data.is_leaf and data.fd >= 0 and data.plain_writes() and not (data.trackers or data.cache_direct)
        return plain and not (self.image.encrypted or self.header.extended_l2 or self.detect_zeroes != "off")

    def filling(self, *, exact: bool) -> Filling | None:
        if (
            self.image.external
            or self.image.data.driver != "file"
            or not self.takes_files()
            or not self.plain_writes()
            or self.trackers
        ):
            return None
        from qobra.block.format.qcow2.filling import Filling

        if not self.ready:
            self.get_ready()
        return Filling(self.image, exact=exact)

    def linking(self) -> Linking | None:
        """What takes up clusters from below without keeping writes waiting, if the image can do that."""
        if self.image.external or self.image.encrypted or self.header.extended_l2:
            return None
        from qobra.block.format.qcow2.linking import Linking

        if not self.ready:
            self.get_ready()
        return Linking(self.image)

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

    @cached_property
    def _compressor(self) -> CompressedWriter:
        from qobra.block.format.qcow2.compressor import CompressedWriter

        return CompressedWriter(self.image)

    def _write_compressed(self, offset: int, data: Buffer) -> None:
        if not self.ready:
            self.get_ready()
        self._compressor.write(offset, memoryview(data).cast("B"))

    def set_compression_level(self, level: int) -> None:
        self._compressor.set_level(level)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        if not self.ready:
            self.get_ready()
        return self._zeroing.zero(offset, length, may_unmap, no_fallback)

    def _discard(self, offset: int, length: int) -> None:
        if not self.ready:
            self.get_ready()
        self._zeroing.discard(offset, length)

    def forget_range(self, first: int, end: int) -> None:
        """Unmap guest clusters ``first`` up to ``end``."""
        self._zeroing.forget_clusters(first, end)

    def write_past_end(self, offset: int, view: memoryview) -> None:
        """Write where a machine's state is kept; L1 reaches that far."""
        self._writer.write(offset, view)

    def zero_new(self, offset: int, length: int) -> None:
        """Zero a range that was just added to the disk."""
        if not self._zeroing.zero(offset, length, False, False):
            self.write_zero_bytes(offset, length)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        from qobra.block.format.qcow2.resize import resize

        if not self.ready:
            self.get_ready()
        resize(self, length, preallocation, exact)

    def flush(self) -> None:
        if self.read_only:
            return
        self.file.debug_event("flush_to_os")
        self.image.writeback.commit()

    # -- what callers ask -------------------------------------------------------------------------------------

    def plain_writes(self) -> bool:
        return super().plain_writes() and not self.image.encrypted

    def lend_reserve(self, table: ResolvedTable) -> None:
        if table.places is None or not table.writable:
            self.recall_reserve()
            return
        from qobra.block.format.qcow2.reserve import lend

        lend(self.image, table, table.places)

    def recall_reserve(self) -> None:
        if self.image.reserve is not None:
            with self.image.lock:
                self.image.reserve.serve(None)

    def cluster_size(self) -> int:
        return self.image.cluster_size

    def data_may_be_holes(self) -> bool:
        from qobra.block.format.qcow2.holes import looks_preallocated

        return looks_preallocated(self.image)

    def has_zero_init(self) -> bool:
        if self.image.encrypted:
            return False
        return not self.image.external or self.image.data.has_zero_init()

    def device_name(self) -> str:
        """The name of the block device that uses this node, for events; empty where there is none."""
        return self.layer.device_name(self)

    def warn(self, text: str) -> None:
        """Tell whoever runs the program."""
        print_error(text)

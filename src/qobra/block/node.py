"""A node of the block graph: what every driver is, and what is the same for all of them.

A driver is a subclass of :class:`BlockNode` in a module of its own under ``format/``, ``protocol/`` or ``filter/``,
registered under its schema name. Most drivers say only where bytes live (:meth:`BlockNode.map`); reading, and the
rest that follows from it, is here. The methods without an underscore are the contract that callers use; they check
bounds and permissions, then call the hook of the same name with one.
"""

from __future__ import annotations

import errno

from qobra.block import permissions
from qobra.block.buffers import BOUNCE_SIZE, ZEROES, Buffer, fill_zero, is_zero, new_buffer
from qobra.block.extents import ABSENT, COMPUTED, DATA, Extent
from qobra.block.vertex import Options as Options  # what drivers are written with comes from here
from qobra.block.vertex import Vertex
from qobra.errors import QobraError
from qobra.registry import Registry
from qobra.units import INT64_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence
    from typing import ClassVar

    from qobra.block.bitmap import DirtyBitmap
    from qobra.block.contracts import Keeper, Linking, WriteTracker
    from qobra.block.copy.moving import Filling
    from qobra.block.layer import BlockLayer
    from qobra.block.protocol._folios import Folios
    from qobra.block.table import ResolvedTable

drivers: Registry[type[BlockNode]] = Registry(
    "block driver", ["qobra.block.format", "qobra.block.protocol", "qobra.block.filter"]
)


def check_size(length: int) -> None:
    """Raise QobraError for what is no size of an image, in any format."""
    if not 0 <= length <= INT64_MAX:  # a size is a signed number of 64 bits
        raise QobraError("Image size cannot be negative", errno=errno.EINVAL)
    if length > MAX_LENGTH:
        raise QobraError(f"offset({length}) exceeds maximum({MAX_LENGTH})", errno=errno.EIO)


class BlockNode(Vertex):
    """A vertex with its data; ``length`` is its size in bytes. Any number of threads read and write at once."""

    is_leaf: ClassVar[bool] = False
    """Has a file descriptor ``fd`` from which a DATA run is read at its offset."""
    fd: int = -1
    """A leaf's file descriptor."""
    folios: Folios | None = None
    """How small writes are to be made to ``fd``, where that is a file in the page cache."""
    has_bitmap_format: ClassVar[bool] = False
    """Some images of the format can hold bitmaps: see :attr:`stores_bitmaps`."""
    shows_places: bool = False
    """A filter whose :meth:`map` says just that its data is that of the one child, and may be written there."""

    def __init__(self, layer: BlockLayer, node_name: str, options: Options) -> None:
        super().__init__(layer, node_name, options)
        self.length = 0
        self.request_alignment = 1
        self.bitmaps: dict[str, DirtyBitmap] = {}
        self.trackers: tuple[WriteTracker, ...] = ()
        """Told of every write after it was done: enabled dirty bitmaps, jobs, the write threshold."""
        self.tables: tuple[ResolvedTable, ...] = ()
        """Flat tables of roots above that hold places in this node; see :meth:`moved`."""
        self.highest_write_offset = 0
        self.written_around = False
        """Files changed of which ``highest_write_offset`` tells nothing: by writes around the nodes, by discards."""
        self.abandoned = False
        """Nobody is going to look at it again: what of it is not written need not be."""
        self.write_threshold = 0

    @property
    def virtual_size(self) -> int:
        """The length in bytes as it is told and compared: in whole blocks of 512 bytes, which files may end within."""
        return -(-self.length // 512) * 512

    # -- life ----------------------------------------------------------------------------------------------

    def inactivate(self) -> None:
        """Write out all that is cached, as if to be closed: the node is about to turn read-only or to be handed over.

        Drained. A write that comes nevertheless must find the node usable.
        """
        self.flush()

    def hand_over(self) -> None:
        """Write out all that is cached and keep nothing that another process may change. Drained."""
        if not self.read_only:
            self.inactivate()

    def cancel_in_flight(self) -> None:
        """Requests that wait for a server that is away fail now; whose they were has no use for them any more."""
        below = self.filtered or self.primary()
        if below is not None:
            below.cancel_in_flight()

    # -- where the data is ------------------------------------------------------------------------------------

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        """Extents that cover exactly ``length`` bytes from ``offset``, inside the node.

        ``want_zero`` False lets a leaf skip the search for holes and call them DATA.
        """
        raise NotImplementedError

    def debug_event(self, event: str) -> None:
        """A driver above came to ``event`` (a BlkdebugEvent): what blkdebug acts on. Others let it pass."""

    def moved(self, offset: int, length: int, *, may_look: bool = False) -> None:
        """The driver changed where ``length`` bytes from ``offset`` live, or that they exist: forget old places.

        To be called after the new place can be found by :meth:`map` and before the request that caused it returns.
        ``may_look``: the caller holds nothing that :meth:`map` needs, and the bytes are likely to stay.
        """
        for table in self.tables:
            if table.drop(offset, length, self) and may_look:
                table.look(offset, length)

    def lend_reserve(self, table: ResolvedTable) -> None:
        """A flat table of this root is new: where the driver can, it lets the table's loops allocate by themselves."""

    def recall_reserve(self) -> None:
        """The reverse of :meth:`lend_reserve`: others than one root here know places, and are told by :meth:`moved`."""

    # -- reading ----------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``."""
        data = new_buffer(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``. Raises OSError or QobraError with an errno."""
        self.check_range(offset, len(view))
        if len(view):
            self._read(offset, view)

    def read_vm_state(self, position: int, length: int) -> bytes:
        """The saved state of a machine, which the snapshot that was applied last has, from byte ``position`` on."""
        raise OSError(errno.ENOTSUP, "Operation not supported")

    def _read(self, offset: int, view: memoryview) -> None:
        position = 0
        for extent in self.map(offset, len(view), False):
            part = view[position : position + extent.length]
            here = offset + position
            kind = extent.kind
            if kind == DATA:
                assert extent.child is not None
                extent.child.debug_event("read_aio")
                read_or_zero(extent.child, extent.offset, part)
            elif kind == COMPUTED:
                self.read_computed(here, part)
            elif kind == ABSENT and self.backing is not None:
                if "file" in self.children:
                    self.file.debug_event("read_backing_aio")
                read_or_zero(self.backing, here, part)
            else:
                fill_zero(part)
            position += extent.length

    def read_computed(self, offset: int, view: memoryview) -> None:
        """Fill ``view``, which lies in a COMPUTED extent."""
        raise NotImplementedError

    # -- writing ----------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write ``data`` at ``offset``; with ``fua`` it is on stable storage when this returns."""
        length = len(data)
        self.check_write(offset, length)
        if not length:
            return
        try:
            if self.detect_zeroes != "off" and is_zero(data):
                self._zero(offset, length, self.detect_zeroes == "unmap" and self.discard_unmap, False)
            else:
                self._write(offset, data)
        except BaseException:
            self.note_change(offset, length)  # some of it may have been written
            raise
        self.written(offset, length)
        if fua:
            self.flush()

    def write_unchanged(self, offset: int, data: Buffer) -> None:
        """Write what the node shows at ``offset`` already, so that it is held here: nobody has to be told."""
        self.check_write(offset, len(data))
        if isinstance(data, (bytes, bytearray, memoryview)) and is_zero(data):
            self._zero(offset, len(data), False, False)
        else:
            self._write(offset, data)

    def _write(self, offset: int, data: Buffer) -> None:
        raise NotImplementedError

    def write_vm_state(self, position: int, data: Buffer) -> None:
        """Write a machine's saved state, which the next snapshot is to keep, from byte ``position`` of it on."""
        raise OSError(errno.ENOTSUP, "Operation not supported")

    def write_compressed(self, offset: int, data: Buffer) -> None:
        """Write whole clusters compressed. Raises ENOTSUP where the driver has no compression."""
        self.check_write(offset, len(data))
        try:
            self._write_compressed(offset, data)
        except BaseException:
            self.note_change(offset, len(data))
            raise
        self.written(offset, len(data))

    def set_compression_level(self, level: int) -> None:
        """How hard :meth:`write_compressed` tries from now on, in the compressor's own terms. Raises QobraError."""
        raise QobraError(f"Block format '{self.driver}' has no compression levels", errno=errno.ENOTSUP)

    def _write_compressed(self, offset: int, data: Buffer) -> None:
        raise QobraError(f"Block format '{self.driver}' does not support compression", errno=errno.ENOTSUP)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        may_unmap: bool = False,
        no_fallback: bool = False,
        fua: bool = False,
    ) -> None:
        """Make ``length`` bytes read as zero; ``may_unmap``: their space may be given back.

        As in QEMU, whoever asks at a root decides about the space even where the root has discard=ignore; a driver that
        passes a request on has to heed the child's ``discard_unmap``.

        With ``no_fallback``, raise ENOTSUP rather than write zeroes byte by byte.
        """
        self.check_write(offset, length)
        if length:
            try:
                self._zero(offset, length, may_unmap, no_fallback)
            except BaseException:
                self.note_change(offset, length)
                raise
            self.written(offset, length)
        if fua:
            self.flush()

    def _zero(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> None:
        if not self._write_zeroes(offset, length, may_unmap, no_fallback):
            if no_fallback:
                raise OSError(errno.ENOTSUP, "Operation not supported")
            self.write_zero_bytes(offset, length)

    def write_zero_bytes(self, offset: int, length: int) -> None:
        """The fallback of write_zeroes: real zeroes, a bounded buffer at a time."""
        end = offset + length
        while offset < end:
            size = min(BOUNCE_SIZE, end - offset)
            self._write(offset, memoryview(ZEROES)[:size])
            offset += size

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        """Zero efficiently; False if the driver has no way for this range (nothing was done then)."""
        return False

    def discard(self, offset: int, length: int) -> None:
        """Give back the space of ``length`` bytes from ``offset``, if the node was opened with discard=unmap."""
        self.check_write(offset, length)
        if length and self.discard_unmap:
            try:
                self._discard(offset, length)
            finally:
                # No write: how far the node was written stays what it is.
                self.written_around = True
                self._mark(offset, length)

    def _discard(self, offset: int, length: int) -> None:
        """Discard; a driver without a way does nothing, which is always right."""

    def flush(self) -> None:
        """Everything written before is on stable storage when this returns (except with cache.no-flush)."""
        if self.read_only:
            return
        file = self.children.get("file")
        if file is not None:
            file.debug_event("flush_to_os")
        self._flush()
        if self.cache_no_flush:
            return
        if file is not None:
            file.debug_event("flush_to_disk")
        for name, child in self.children.items():
            if name != "backing" or self.is_filter:
                child.flush()

    def _flush(self) -> None:
        """Hand what the node caches to its children."""

    def truncate(self, length: int, *, preallocation: str = "off", exact: bool = True) -> None:
        """Change the size to ``length`` bytes; ``exact`` False lets it become larger."""
        if self.read_only:
            raise QobraError("Image is read-only", errno=errno.EACCES)
        if self.inactive:
            raise QobraError("Block node is inactive", errno=errno.EPERM)
        check_size(length)
        old = self.length
        self._truncate(length, preallocation, exact)
        self.moved(min(old, self.length), max(old, self.length) - min(old, self.length))
        self.layer.node_resized(self, old)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        raise QobraError("Image format driver does not support resize", errno=errno.ENOTSUP)

    def written(self, offset: int, length: int) -> None:
        """Note that ``length`` bytes from ``offset`` were written or zeroed."""
        self.note_change(offset, length)

    def note_change(self, offset: int, length: int) -> None:
        """Tell who wants to know that ``length`` bytes from ``offset`` are, or may be, other ones than before."""
        end = offset + length
        if end > self.highest_write_offset:
            self.highest_write_offset = end
        self._mark(offset, length)

    def _mark(self, offset: int, length: int) -> None:
        for tracker in self.trackers:
            tracker.mark(offset, length)

    def highest_write(self) -> int:
        """The end of the highest write so far, also of those past the node."""
        for table in self.tables:
            table.settle()
        return self.highest_write_offset

    def add_tracker(self, tracker: WriteTracker) -> None:
        """Tell ``tracker`` of every write from now on."""
        self.trackers = (*self.trackers, tracker)
        self.layer.changed()

    def remove_tracker(self, tracker: WriteTracker) -> None:
        """Undo :meth:`add_tracker`."""
        self.trackers = tuple(each for each in self.trackers if each is not tracker)
        self.layer.changed()

    # -- what callers ask ---------------------------------------------------------------------------------------

    def check_range(self, offset: int, length: int) -> None:
        """Raise EIO unless the range lies inside the node."""
        if offset < 0 or length < 0 or offset + length > self.length:
            raise OSError(errno.EIO, "Request beyond the end of the node")

    def check_write(self, offset: int, length: int) -> None:
        """Raise unless the node is writable and the range lies inside it."""
        self.check_range(offset, length)
        if self.read_only:
            raise OSError(errno.EPERM, "Block node is read-only")
        if self.inactive:
            raise OSError(errno.EPERM, "Block node is inactive")

    def linear_child(self) -> tuple[BlockNode, int] | None:
        """For a transparent node: the child that it shows as it is and the offset in it; None if it is not so plain."""
        return None

    def child_resized(self, name: str) -> None:
        """The child ``name`` of this filter or transparent node has a new length: adapt ``length``."""
        self.length = self.children[name].length

    def keeper(self) -> Keeper | None:
        """Who has to keep old data before somebody writes past the node."""
        return None

    def plain_writes(self) -> bool:
        """Whether writing straight to a WRITABLE place misses nothing that :meth:`write` would do, but telling the
        :attr:`trackers`."""
        return not (self.read_only or self.inactive or self.detect_zeroes != "off")

    def linking(self) -> Linking | None:
        """What takes up data from below while guests write; None where each has to wait for the other."""
        return None

    def takes_files(self) -> bool:
        """Whether whole clusters may be written from :class:`InFiles`: they then lie in a local file as they are."""
        return False

    def filling(self, *, exact: bool) -> Filling | None:
        """For a copy by whoever is alone with the image: where its data may be written to. None if it may not be so.

        ``exact``: the copy does not look for zeroes.
        """
        return None

    def packed(self, offset: int, length: int) -> tuple[int, int, list[tuple[int, int, int, int]]] | None:
        """For who unpacks them himself: the file and the size of the compressed clusters that a range consists of, and
        of each the place in the file, the bytes there, the offset and the length in the node. None: not possible."""
        return None

    def packed_map(self, start: int, end: int) -> Iterator[tuple[array[int], int]] | None:
        """The map of a large image in blocks: packed runs (see :mod:`.packed`) and how many; None: no way."""
        return None

    def make_empty(self) -> bool:
        """Give up all that the image holds itself, so that it shows its backing file; False: it cannot. Drained."""
        return False

    def cluster_size(self) -> int:
        """Bytes of the unit in which the node allocates; 0 where it has none."""
        return 0

    def allocated_size(self) -> int | None:
        """Bytes that the node takes on the host, or None where nobody can tell."""
        total = None
        for name, child in self.children.items():
            if self.roles[name] & (permissions.ROLE_DATA | permissions.ROLE_METADATA | permissions.ROLE_FILTERED):
                size = child.allocated_size()
                if size is None:
                    return None
                total = (total or 0) + size
        return total

    def info(self) -> Options:
        """Driver-specific members of ImageInfo (``cluster-size``, ``format-specific``, ``encrypted``, ...)."""
        return {}

    @property
    def stores_bitmaps(self) -> bool:
        """Whether this image can hold bitmaps."""
        return False

    def data_may_be_holes(self) -> bool:
        """Whether it is worth asking the file which of the data are holes of it."""
        return False

    def has_zero_init(self) -> bool:
        """Whether a freshly created image of this kind reads as zeroes."""
        return False

    def stats(self) -> Options | None:
        """BlockStatsSpecific of the driver, or None."""
        return None

    def change_backing_file(self, filename: str, backing_format: str) -> None:
        """Record in the image that ``filename`` (empty: nothing) of that format is its backing file."""
        raise QobraError("Operation not supported", errno=errno.ENOTSUP)


MAX_LENGTH = (1 << 63) - (1 << 30)
"""Largest size of a node in bytes."""


def read_or_zero(node: BlockNode, offset: int, view: memoryview) -> None:
    """Read from ``node``, with zeroes past its end."""
    inside = max(0, min(len(view), node.length - offset))
    if inside:
        node.read_into(offset, view[:inside])
    if inside < len(view):
        fill_zero(view[inside:])

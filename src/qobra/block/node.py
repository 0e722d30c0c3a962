"""A node of the block graph: what every driver is, and what is the same for all of them.

A driver is a subclass of :class:`BlockNode` in a module of its own under ``format/``, ``protocol/`` or ``filter/``,
registered under its schema name. Most drivers say only where bytes live (:meth:`BlockNode.map`); reading, and the
rest that follows from it, is here. The methods without an underscore are the contract that callers use; they check
bounds and permissions, then call the hook of the same name with one.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from qobra.block import permissions
from qobra.block.buffers import BOUNCE_SIZE, ZEROES, Buffer, fill_zero, is_zero
from qobra.block.extents import ABSENT, COMPUTED, DATA, Extent
from qobra.errors import QobraError
from qobra.registry import Registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from qobra.block.bitmap import DirtyBitmap
    from qobra.block.layer import BlockLayer
    from qobra.block.opening import Opening
    from qobra.block.table import ResolvedTable
else:
    Any = object

Options = dict[str, Any]

drivers: Registry[type[BlockNode]] = Registry(
    "block driver", ["qobra.block.format", "qobra.block.protocol", "qobra.block.filter"]
)


class BlockNode:
    """A vertex of the graph. Thread-safe: any number of threads read and write at once.

    ``length`` is the size in bytes. ``children`` maps a child's name to the node, as the newest graph has it; it
    changes only while the graph is drained. ``options`` are the options that the node was opened with, as a
    BlockdevOptions whose children are node names.
    """

    driver: ClassVar[str] = ""
    is_filter: ClassVar[bool] = False
    """Presents the data of its one filtered child unchanged, as QEMU's filters do."""
    is_leaf: ClassVar[bool] = False
    """Has a file descriptor ``fd`` from which a DATA run is read at its offset."""
    is_format: ClassVar[bool] = False
    """Interprets a file; the opposite of a protocol."""
    named_by_prefix: ClassVar[bool] = False
    """A filter that a file name with a prefix can stand for, so that it may take a protocol's place."""
    is_transparent: ClassVar[bool] = False
    """Holds no data of its own: depth counts what lies below in its place (raw, filters)."""
    supports_backing: ClassVar[bool] = False
    reports_info: ClassVar[bool] = True
    """Whether the driver can tell of a dirty image; what it shows unchanged of another is asked of that."""
    creatable: ClassVar[bool] = False
    """Has :meth:`create` for blockdev-create."""
    fd: int = -1
    """A leaf's file descriptor."""

    def __init__(self, layer: BlockLayer, node_name: str, options: Options) -> None:
        self.layer = layer
        self.node_name = node_name
        self.options = options
        self.length = 0
        self.children: dict[str, BlockNode] = {}
        self.roles: dict[str, int] = {}
        self.take_generic_options(options)
        self.force_share = bool(options.get("force-share", False))
        self.explicit_options: Options = {}
        """The options that the user gave, without those inherited from a parent."""
        self.opened_by: BlockNode | None = None
        """The parent that this node was opened inline with, whose options it follows."""
        self.serial = 0
        """Counts nodes in the order in which lists of nodes have them."""
        self.request_alignment = 1
        self.inactive = layer.opens_inactive
        """Its image is another process's to change; see :mod:`qobra.block.activation`."""
        self.probed = False
        """Nobody said which format it is; it was told from its first bytes."""
        self.monitor_owned = False
        """Made by blockdev-add: lives until blockdev-del."""
        self.implicit = False
        """A filter that a job put in unasked; queries by device skip it."""
        self._names: tuple[str, Options] = "", {}
        self._names_generation = -1
        self._json_filename: str | None = None
        self.auto_backing: tuple[str, str] | None = None
        """The backing file's name in the header and the name of the node that was opened for it."""
        self.perm = 0
        self.shared = permissions.ALL
        self.has_users = False
        """Whether anybody uses the node in the graph whose permissions are being computed."""
        self.bitmaps: dict[str, DirtyBitmap] = {}
        self.trackers: tuple[WriteTracker, ...] = ()
        """Told of every write after it was done: enabled dirty bitmaps, jobs, the write threshold."""
        self.tables: tuple[ResolvedTable, ...] = ()
        """Flat tables of roots above that hold places in this node; see :meth:`moved`."""
        self.highest_write_offset = 0
        self.write_threshold = 0
        self.iothread: Any = None
        """The iothread object that x-blockdev-set-iothread named; requests stay in the thread that makes them."""
        self.closed = False

    def __repr__(self) -> str:
        return f"<{self.driver} node {self.node_name!r}>"

    # -- children ---------------------------------------------------------------------------------------------

    @property
    def file(self) -> BlockNode:
        """The child that holds this node's data or metadata."""
        return self.children["file"]

    @property
    def backing(self) -> BlockNode | None:
        """The node that ABSENT extents come from."""
        return self.children.get("backing")

    @property
    def filtered(self) -> BlockNode | None:
        """The one child whose data a filter presents."""
        return (self.children.get("file") or self.children.get("backing")) if self.is_filter else None

    # -- life -------------------------------------------------------------------------------------------------

    def open(self, opening: Opening) -> None:
        """Open: take the driver's options and children from ``opening``, read the metadata, set ``length``.

        Must not write: permissions are only granted afterwards (see :meth:`activate`).
        """
        raise NotImplementedError

    def activate(self) -> None:
        """Called once the node is in the graph with its permissions: repairs and marks that opening calls for."""

    def children_changed(self) -> None:
        """``children`` is not what it was: forget what was kept of it. Called while everything is drained."""

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

    def close(self) -> None:
        """Write out what is cached and let go of the host's resources. Children are closed after this."""

    def close_node(self) -> None:
        """Close once; errors of a late flush are the caller's to report."""
        if not self.closed:
            self.closed = True
            self.close()

    @classmethod
    def probe(cls, data: bytes, filename: str) -> int:
        """How sure the driver is that an image that begins with ``data`` is its own: 0 (no) to 100."""
        return 0

    @classmethod
    def parse_filename(cls, filename: str) -> Options | None:
        """The driver's options for a legacy ``filename`` (a URI or a prefix), or None if it is not this driver's."""
        return None

    @property
    def filename(self) -> str:
        """The node's name as queries and tools give it: :attr:`exact_filename`, or else a ``json:`` name."""
        exact, options = self._current_names()
        if exact:
            return exact
        if self._json_filename is None:
            from qobra.block.filename import json_filename

            self._json_filename = json_filename(options)
        return self._json_filename

    @property
    def exact_filename(self) -> str:
        """The plain name that would open the same node, or "" if none would; see :mod:`qobra.block.filename`."""
        return self._current_names()[0]

    @property
    def full_options(self) -> Options:
        """Options that would open the same node with all that is under it."""
        return self._current_names()[1]

    def names_changed(self) -> None:
        """Work the names out anew when they are asked for. A change of the graph does the same for all nodes."""
        self._names_generation = -1

    def _current_names(self) -> tuple[str, Options]:
        if self._names_generation != self.layer.generation:
            from qobra.block.filename import names

            self._names_generation = self.layer.generation
            self._json_filename = None
            self._names = names(self)
        return self._names

    strong_options: ClassVar[tuple[str, ...] | None] = None
    """The driver's options that decide what data the node shows: only a ``json:`` name can tell them. ``x.`` stands for
    all that begin with it; None for every option that is the driver's own."""

    def plain_filename(self, options: Options) -> str:
        """The plain name that would open the same node, or "", if its full options are ``options``.

        A format's is that of its file, a filter has none.
        """
        from qobra.block.filename import format_filename

        return format_filename(self)

    @classmethod
    def is_protocol(cls) -> bool:
        """Whether a plain file name can mean a node of this driver."""
        return cls.named_by_prefix if cls.is_filter else not cls.is_format

    def child_options(self) -> Options:
        """The children as they stand in :attr:`full_options`."""
        return {name: child.full_options for name, child in self.children.items()}

    def take_generic_options(self, options: Options) -> None:
        """Use the options that every node has. Raises QobraError for a combination that makes no sense."""
        detect_zeroes: str = options.get("detect-zeroes", "off")
        discard_unmap = options.get("discard", "ignore") == "unmap"
        if detect_zeroes == "unmap" and not discard_unmap:
            raise QobraError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
        self.detect_zeroes = detect_zeroes
        self.discard_unmap = discard_unmap
        self.read_only = bool(options.get("read-only", False))
        self.auto_read_only = bool(options.get("auto-read-only", False))
        cache = options.get("cache") or {}
        self.cache_direct = bool(cache.get("direct", False))
        self.cache_no_flush = bool(cache.get("no-flush", False))

    can_reopen: ClassVar[bool] = True
    """Whether blockdev-reopen takes nodes of this driver at all."""
    changeable_options: ClassVar[frozenset[str]] = frozenset()
    """Driver options that blockdev-reopen may change; :meth:`take_options` takes them."""

    def take_options(self, options: Options) -> None:
        """blockdev-reopen: use the changeable options in ``options``, defaults for those that are not there.

        Called while the node is drained, and again with the old options if the transaction fails. Raises QobraError.
        """

    def default_option(self, name: str) -> Any:
        """What the driver takes where its option ``name`` is not given; for comparing in blockdev-reopen."""
        return None

    # -- permissions ------------------------------------------------------------------------------------------

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        """What this node asks of its child ``name`` and lets others do with it; see :mod:`permissions`."""
        return permissions.default_child_permissions(role, not self.read_only, perm, shared)

    def asks_of(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        """:meth:`child_permissions`, but that an inactive node changes nothing and lets others do so."""
        perm, shared = self.child_permissions(name, role, perm, shared)
        if self.inactive:
            return perm & permissions.CONSISTENT_READ, permissions.ALL
        return perm, shared

    def prepare_permissions(self, perm: int, shared: int) -> None:
        """The node's users are about to ask ``perm`` and share ``shared``: refuse, or take locks, here."""
        if perm & (permissions.WRITE | permissions.WRITE_UNCHANGED) and self.read_only:
            if self.auto_read_only:
                self.reopen_writable()
            else:
                raise QobraError("Block node is read-only")

    def reopen_writable(self) -> None:
        """Turn an auto-read-only node writable; protocols that can, override it."""
        raise QobraError("Block node is read-only")

    def set_permissions(self, perm: int, shared: int) -> None:
        """The permissions are granted; or given back, after a change that failed."""
        self.perm = perm
        self.shared = shared

    # -- where the data is ------------------------------------------------------------------------------------

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        """Extents that cover exactly ``length`` bytes from ``offset``, inside the node.

        ``want_zero`` False lets a leaf skip the search for holes and call them DATA.
        """
        raise NotImplementedError

    def debug_event(self, event: str) -> None:
        """A driver above came to ``event`` (a BlkdebugEvent): what blkdebug acts on. Others let it pass."""

    def moved(self, offset: int, length: int) -> None:
        """The driver changed where ``length`` bytes from ``offset`` live, or that they exist: forget old places.

        To be called after the new place can be found by :meth:`map` and before the request that caused it returns.
        """
        for table in self.tables:
            table.drop(offset, length)

    # -- reading ----------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``. Raises OSError or QobraError with an errno."""
        self.check_range(offset, len(view))
        if len(view):
            self._read(offset, view)

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

    def write_compressed(self, offset: int, data: Buffer) -> None:
        """Write whole clusters compressed. Raises ENOTSUP where the driver has no compression."""
        self.check_write(offset, len(data))
        try:
            self._write_compressed(offset, data)
        except BaseException:
            self.note_change(offset, len(data))
            raise
        self.written(offset, len(data))

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
            except BaseException:
                self.note_change(offset, length)
                raise
            self.written(offset, length)

    def _discard(self, offset: int, length: int) -> None:
        """Discard; a driver without a way does nothing, which is always right."""

    def flush(self) -> None:
        """Everything written before is on stable storage when this returns (except with cache.no-flush)."""
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
        if length < 0:
            raise QobraError("Image size cannot be negative", errno=errno.EINVAL)
        if length > MAX_LENGTH:
            raise QobraError(f"offset({length}) exceeds maximum({MAX_LENGTH})", errno=errno.EIO)
        old = self.length
        self._truncate(length, preallocation, exact)
        self.moved(min(old, self.length), max(old, self.length) - min(old, self.length))
        self.layer.node_resized(self, old)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        raise QobraError("Image format driver does not support resize", errno=errno.ENOTSUP)

    def written(self, offset: int, length: int) -> None:
        """Note that ``length`` bytes from ``offset`` were written, zeroed or discarded."""
        self.note_change(offset, length)

    def note_change(self, offset: int, length: int) -> None:
        """Tell who wants to know that ``length`` bytes from ``offset`` are, or may be, other ones than before."""
        end = offset + length
        if end > self.highest_write_offset:
            self.highest_write_offset = end
        for tracker in self.trackers:
            tracker.mark(offset, length)

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

    def plain_writes(self) -> bool:
        """Whether writing straight to a WRITABLE place misses nothing that :meth:`write` would do."""
        return not (self.read_only or self.inactive or self.trackers or self.detect_zeroes != "off")

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

    def has_zero_init(self) -> bool:
        """Whether a freshly created image of this kind reads as zeroes."""
        return False

    def primary(self) -> BlockNode | None:
        """The child that stands for the node's data, or None where several do."""
        for name, child in self.children.items():
            if self.roles[name] & permissions.ROLE_PRIMARY:
                if self.roles[name] & (permissions.ROLE_DATA | permissions.ROLE_FILTERED):
                    return child
        data = [child for name, child in self.children.items() if self.roles[name] & permissions.ROLE_DATA]
        return data[0] if len(data) == 1 else None

    def stats(self) -> Options | None:
        """BlockStatsSpecific of the driver, or None."""
        return None

    def change_backing_file(self, filename: str, backing_format: str) -> None:
        """Record in the image that ``filename`` (empty: nothing) of that format is its backing file."""
        raise QobraError("Image format driver does not support backing files", errno=errno.ENOTSUP)

    def invalidate_cache(self) -> None:
        """Forget cached metadata and read it again (incoming migration, reopen)."""


class WriteTracker:
    """Someone who is told of writes; see :attr:`BlockNode.trackers`. ``mark`` runs in the writer's thread."""

    def mark(self, offset: int, length: int) -> None:
        """``length`` bytes from ``offset`` were written, zeroed or discarded."""
        raise NotImplementedError


MAX_LENGTH = (1 << 63) - (1 << 30)
"""Largest size of a node in bytes."""

GENERIC_OPTIONS = frozenset(
    {
        "node-name",
        "discard",
        "cache",
        "read-only",
        "auto-read-only",
        "detect-zeroes",
        "force-share",
    }
)


def read_or_zero(node: BlockNode, offset: int, view: memoryview) -> None:
    """Read from ``node``, with zeroes past its end."""
    inside = max(0, min(len(view), node.length - offset))
    if inside:
        node.read_into(offset, view[:inside])
    if inside < len(view):
        fill_zero(view[inside:])

"""A vertex of the block graph: which driver, options, children, names and permissions a node has.

What flows along the edges is the business of :class:`qobra.block.node.BlockNode`, which every driver is.
"""

from __future__ import annotations

from qobra.block import permissions
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode
    from qobra.block.opening import Opening
else:
    Any = object

Options = dict[str, Any]

TEXTS = "_texts"
"""The key of those of a node's options that were given as text and are something else: option to text."""
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


def check_detect_zeroes(options: Options) -> None:
    """Raise QobraError where a node is to unmap zeroes but may not discard."""
    if options.get("detect-zeroes", "off") == "unmap" and options.get("discard", "ignore") != "unmap":
        raise QobraError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")


class Vertex:
    """What the graph knows of a node. ``children`` maps a child's name to the node, as the newest graph has it; it
    changes only while the graph is drained. ``options`` are the options that the node was opened with, as a
    BlockdevOptions whose children are node names.
    """

    driver: ClassVar[str] = ""
    is_filter: ClassVar[bool] = False
    """Presents the data of its one filtered child unchanged, as QEMU's filters do."""
    is_format: ClassVar[bool] = False
    """Interprets a file; the opposite of a protocol."""
    takes_old_options: ClassVar[bool] = False
    """Texts may have options for it that are not in the schema; which ones is its own to say."""
    named_by_prefix: ClassVar[bool] = False
    """A filter that a file name with a prefix can stand for, so that it may take a protocol's place."""
    sees_reads: ClassVar[bool] = False
    """Has to be asked for data, even where its map says in which child they are (to count, delay or refuse)."""
    is_transparent: ClassVar[bool] = False
    """Holds no data of its own: depth counts what lies below in its place (raw, filters)."""
    supports_backing: ClassVar[bool] = False
    backing_filename: str = ""
    """The backing file as the image's header has it."""
    backing_format: str = ""
    """Its format, as far as the header tells."""
    keeps_snapshots: ClassVar[bool] = False
    """Has internal snapshots: ``snapshot_create``, ``snapshot_delete``, ``snapshot_apply``."""
    can_amend_encryption: ClassVar[bool] = False
    """Has ``amend_encryption(options, force)`` for x-blockdev-amend."""
    reports_info: ClassVar[bool] = True
    """Whether the driver can tell of a dirty image; what it shows unchanged of another is asked of that."""
    needs_filename: ClassVar[bool] = False
    """Cannot do without ``filename``."""
    creatable: ClassVar[bool] = False
    """Has :meth:`create` for blockdev-create."""
    can_compress: ClassVar[bool] = False
    """Takes compressed writes, or a filter that is known to pass them on."""

    @classmethod
    def create(cls, options: Options, *args: Any, **kwargs: Any) -> None:
        """blockdev-create, where the driver is ``creatable``: after ``options`` come the nodes that they name.

        Raises QobraError.
        """
        raise NotImplementedError

    def amend_encryption(self, options: Options, force: bool) -> None:
        """x-blockdev-amend, where the driver ``can_amend_encryption``. Raises QobraError."""
        raise NotImplementedError

    def __init__(self, layer: BlockLayer, node_name: str, options: Options) -> None:
        self.layer = layer
        self.node_name = node_name
        self.options = options
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
        self.iothread: Any = None
        """The iothread object that it belongs to (None: the main loop); see :mod:`qobra.block.iothreads`."""
        self.closed = False

    def __repr__(self) -> str:
        return f"<{self.driver} node {self.node_name!r}>"

    # -- children ------------------------------------------------------------------------------------------

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

    def primary(self) -> BlockNode | None:
        """The child that stands for the node's data, or None where several do."""
        for name, child in self.children.items():
            if self.roles[name] & permissions.ROLE_PRIMARY:
                if self.roles[name] & (permissions.ROLE_DATA | permissions.ROLE_FILTERED):
                    return child
        data = [child for name, child in self.children.items() if self.roles[name] & permissions.ROLE_DATA]
        return data[0] if len(data) == 1 else None

    def snapshot_keeper(self) -> Any | None:
        """The node that keeps this one's internal snapshots: itself, or the one child that has all of its data."""
        if self.keeps_snapshots:
            return self
        below = next((name for name in self.children if self.roles[name] & permissions.ROLE_PRIMARY), None)
        for name in self.children:
            if name != below and self.roles[name] & ~(permissions.ROLE_COW | permissions.ROLE_PRIMARY):
                return None
        return self.children[below].snapshot_keeper() if below is not None else None

    def snapshot_list(self) -> list[Options]:
        """The internal snapshots, as SnapshotInfo."""
        return []

    @property
    def vm_state_offset(self) -> int:
        """Where on the disk a machine's saved state begins: past its end. 0 where none is kept."""
        return 0

    def children_changed(self) -> None:
        """``children`` is not what it was: forget what was kept of it. Called while everything is drained."""

    # -- life ----------------------------------------------------------------------------------------------

    def open(self, opening: Opening) -> None:
        """Open: take the driver's options and children from ``opening``, read the metadata, set ``length``.

        Must not write: permissions are only granted afterwards (see :meth:`activate`).
        """
        raise NotImplementedError

    def activate(self) -> None:
        """Called once the node is in the graph with its permissions: repairs and marks that opening calls for."""

    def close(self) -> None:
        """Write out what is cached and let go of the host's resources. Children are closed after this."""

    def close_node(self) -> None:
        """Close once; errors of a late flush are the caller's to report."""
        if not self.closed:
            self.closed = True
            self.close()

    def invalidate_cache(self) -> None:
        """Forget cached metadata and read it again (incoming migration, reopen)."""

    @classmethod
    def probe(cls, data: bytes, filename: str) -> int:
        """How sure the driver is that an image that begins with ``data`` is its own: 0 (no) to 100."""
        return 0

    @classmethod
    def check_creation(cls, options: Options) -> None:
        """Raise QobraError for options of blockdev-create that cannot be, before anything is asked of the file."""

    @classmethod
    def delete(cls, options: Options) -> None:
        """Remove what ``options`` name, where a protocol can do that. Raises OSError."""

    protocols: ClassVar[tuple[str, ...]] = ()
    """What a ``filename`` that is the driver's may begin with, before the colon."""

    @classmethod
    def parse_filename(cls, filename: str) -> Options | None:
        """The driver's options for a legacy ``filename`` (a URI or a prefix), or None if it is not this driver's."""
        return None

    # -- names ---------------------------------------------------------------------------------------------

    strong_options: ClassVar[tuple[str, ...] | None] = None
    """The driver's options that decide what data the node shows: only a ``json:`` name can tell them. ``x.`` stands for
    all that begin with it; None for every option that is the driver's own."""

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

    # -- options -------------------------------------------------------------------------------------------

    can_reopen: ClassVar[bool] = True
    """Whether blockdev-reopen takes nodes of this driver at all."""
    changeable_options: ClassVar[frozenset[str]] = frozenset()
    """Driver options that blockdev-reopen may change; :meth:`take_options` takes them."""
    lasting_options: ClassVar[frozenset[str]] = frozenset()
    """Those of the changeable ones that cannot be left out once they were given."""

    def take_generic_options(self, options: Options) -> None:
        """Use the options that every node has. Raises QobraError for a combination that makes no sense."""
        check_detect_zeroes(options)
        self.detect_zeroes: str = options.get("detect-zeroes", "off")
        self.discard_unmap = options.get("discard", "ignore") == "unmap"
        self.read_only = bool(options.get("read-only", False))
        self.auto_read_only = bool(options.get("auto-read-only", False))
        cache = options.get("cache") or {}
        self.cache_direct = bool(cache.get("direct", False))
        self.cache_no_flush = bool(cache.get("no-flush", False))

    def drop_overridden(self, options: Options, new: Options) -> None:
        """qemu-io's reopen: take out of ``options``, old and new ones, old ones that contradict the ``new``."""

    def check_options(self, options: Options) -> None:
        """blockdev-reopen: raise QobraError for options that are wrong whatever the children are."""

    def take_options(self, options: Options) -> None:
        """blockdev-reopen: use the changeable options in ``options``, defaults for those that are not there.

        Called while the node is drained, and again with the old options if the transaction fails. Raises QobraError.
        """

    # -- permissions ---------------------------------------------------------------------------------------

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        """What this node asks of its child ``name`` and lets others do with it; see :mod:`permissions`."""
        return permissions.default_child_permissions(role, not self.read_only, perm, shared)

    def asks_of(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        """:meth:`child_permissions`, but that an inactive node changes nothing and lets others do so."""
        perm, shared = self.child_permissions(name, role, perm, shared)
        if self.inactive:
            return perm & permissions.CONSISTENT_READ, permissions.ALL
        return perm, shared

    def lets(self, shared: int) -> int:
        """What others may do with a child of which the node shares ``shared``: with ``force-share``, everything."""
        return permissions.ALL if self.force_share else shared

    def refuses(self, perm: int) -> bool:
        """Whether the node is read-only and stays so, or its image another process's, and its users ask for more."""
        writes = permissions.WRITE | permissions.WRITE_UNCHANGED
        return bool(perm & writes) and (self.inactive or (self.read_only and not self.auto_read_only))

    def prepare_permissions(self, perm: int, shared: int) -> None:
        """The node's users are about to ask ``perm`` and share ``shared``: refuse, or take locks, here."""
        if self.refuses(perm):
            raise QobraError("Block node is read-only")
        if perm & (permissions.WRITE | permissions.WRITE_UNCHANGED) and self.read_only:
            self.reopen_writable()

    def reopen_writable(self) -> None:
        """Turn an auto-read-only node writable; protocols that can, override it."""
        raise QobraError("Block node is read-only")

    def set_permissions(self, perm: int, shared: int) -> None:
        """The permissions are granted; or given back, after a change that failed."""
        self.perm = perm
        self.shared = shared

"""A block backend: a root of the graph, where an export, a device, a job or a tool enters.

It holds what belongs to the user and not to the node: the gate that drains it, the permissions that the user needs, the
throttle group, the accounting and the error policy. A worker takes a :class:`Slot` and brackets its requests with it;
the methods here do that for callers that do not care, with one slot for each thread.
"""

from __future__ import annotations

from qobra.block import permissions
from qobra.block.accounting import FLUSH, READ, UNMAP, WRITE, Accounting
from qobra.block.buffers import Buffer
from qobra.block.node import BlockNode
from qobra.block.slots import Gate, Slot
from qobra.errors import QobraError
from qobra.lean import local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol, TypeVar

    from qobra.block.error_policy import ErrorPolicy
    from qobra.block.job.block_job import BlockJob
    from qobra.block.layer import BlockLayer
    from qobra.block.table import ResolvedTable

    T = TypeVar("T")
else:
    Protocol = object


class Throttle(Protocol):
    """A backend's membership of a throttle group."""

    def wait(self, length: int, is_write: bool) -> None:
        """Wait until a request of ``length`` bytes may go; returns at once while the backend is drained."""

    def release(self) -> None:
        """Requests that wait go on; those that come later have to wait as before."""

    def leave(self) -> None:
        """Leave the group; requests that wait go on."""

    def limits(self) -> dict[str, Any]:
        """The members of BlockDeviceInfo that tell the limits in force."""


class Device(Protocol):
    """The device model that a backend serves, as far as queries and tray commands know it."""

    @property
    def qom_path(self) -> str:
        """The id that its user gave it, or its path in the composition tree."""

    @property
    def is_removable(self) -> bool:
        """Whether its medium can be changed."""

    @property
    def has_tray(self) -> bool:
        """Whether the medium lies in a tray that opens."""

    @property
    def tray_open(self) -> bool:
        """Whether the tray is open."""

    @property
    def medium_locked(self) -> bool:
        """Whether the guest holds the medium."""

    def matches(self, id: str) -> bool:
        """Whether ``id``, an id or a path, means this device."""

    def eject_request(self, force: bool) -> None:
        """Ask the guest to let go of the medium; ``force``: it is taken away anyhow."""

    def move_tray(self, opened: bool) -> None:
        """Open or close the tray on behalf of the user."""

    def medium_changed(self) -> None:
        """The backend has another node, or none."""


class BlockBackend:
    """A root. ``name`` is the name that ``query-block`` and the device argument of commands know, or "".

    ``description`` says who uses it, for conflicts: ``block device 'x'``.
    """

    job: BlockJob | None = None
    """The job whose hold on a node it is."""
    edge_name: str = "root"
    """What the graph's listing and conflicts call the link to the node."""

    def __init__(
        self,
        layer: BlockLayer,
        name: str = "",
        *,
        perm: int = permissions.CONSISTENT_READ,
        shared: int = permissions.ALL,
        description: str = "",
    ) -> None:
        self.layer = layer
        self.name = name
        self.serial = layer.opener.next_serial()
        """Counts backends in the order in which queries list them."""
        self.perm = perm
        self.shared = shared
        self._description = description
        self.node: BlockNode | None = None
        self.gate = Gate()
        self.throttle: Throttle | None = None
        self.accounting = Accounting(*layer.account_time)
        self.writeback = True
        """False: each write is flushed before it completes."""
        self.device: Device | None = None
        self.medium_read_only = False
        """Whether a medium that is put in is to be read-only, unless one says otherwise."""
        self.on_error: dict[str, str] = {}
        """``rerror`` and ``werror`` as the drive has them, for a device that does not say itself."""
        self.yields = False
        """Gives up its permissions while its node is inactive; devices and named backends always do."""
        self.auto_delete = False
        """A drive that goes when its device is unplugged."""
        self.iothread: Any = None
        """The iothread object that its user works in, if that is kept (None: the main loop)."""
        self.fixed_iothread = False
        """Whether a user that is no device insists on ``iothread``."""
        self.policy: ErrorPolicy | None = None
        """What to do about failed requests; None where the user is no guest device."""
        self.resized: list[Callable[[], None]] = []
        """Called after the node's length changed."""
        self.ejecting: list[Callable[[], None]] = []
        """Called before the node is taken out."""
        self._local = local()
        self._table: ResolvedTable | None = None

    def __repr__(self) -> str:
        return f"<backend {self.name or self._description!r}>"

    @property
    def gives_way(self) -> bool:
        """Whether it gives up its permissions while its node is inactive: the guest's devices do, and drives."""
        return self.yields or bool(self.name) or self.device is not None

    @property
    def keeps_iothread(self) -> bool:
        """Whether the node has to stay in ``iothread``; see :mod:`qobra.block.iothreads`."""
        return self.fixed_iothread or self.device is not None

    def description(self) -> str:
        """Who it is, as error texts name users: ``block device 'x'``, ``block job 'y'``, ..."""
        return self._description or (f"block device '{self.name}'" if self.name else "an unnamed block device")

    def attach_device(self, device: Device) -> None:
        """``device`` uses this backend; queries by device list it from now on."""
        self.device = device
        self.iothread = self.node.iothread if self.node is not None else None
        self.layer.devices.append(self)

    def detach_device(self) -> None:
        """The device is gone."""
        if self.device is not None:
            self.device = None
            self.layer.devices.remove(self)
            try:
                self.move(None)
            except QobraError:
                pass  # others keep it there

    def device_path(self) -> str:
        """The path or id of the device that uses the backend, or ""."""
        return self.device.qom_path if self.device is not None else ""

    def insert(self, node: BlockNode, perm: int | None = None, shared: int | None = None) -> None:
        """Enter the graph at ``node``. Raises QobraError where permissions conflict."""
        with self.layer.graph.change() as change:
            change.set_root(self, node, perm, shared)

    def remove(self) -> None:
        """Leave the graph; a node that nobody else uses is closed."""
        for call in tuple(self.ejecting):
            call()
        if self.node is not None:
            with self.layer.graph.change() as change:
                change.set_root(self, None)
        if self._table is not None:
            self._table.close()
            self._table = None

    def move(self, iothread: Any) -> None:
        """The user works in ``iothread`` from now on. Raises QobraError where another one keeps the node elsewhere."""
        if self.node is not None:
            self.layer.set_iothread(self.node, iothread, but=self)
        self.iothread = iothread

    def set_permissions(self, perm: int, shared: int) -> None:
        """Ask for other permissions than before."""
        if self.node is None:
            self.perm, self.shared = perm, shared
        else:
            self.insert(self.node, perm, shared)

    # -- requests -----------------------------------------------------------------------------------------------

    def new_slot(self, *, background: bool = False) -> Slot:
        """A place for one worker; close it when the worker ends. ``background``: no guest waits for what it does."""
        return self.layer.flight.slot(self.gate, background=background)

    def slot(self) -> Slot:
        """The calling thread's own place."""
        slot: Slot | None = getattr(self._local, "slot", None)
        if slot is None:
            slot = self._local.slot = self.new_slot()
        return slot

    def table(self) -> ResolvedTable:
        """The flat table of this root, up to date. To be called inside a slot."""
        table = self._table
        node = self.inserted()
        if table is not None and (table.root is node or table.may_follow(node)):
            if table.generation != self.layer.generation or table.root is not node:
                table.refresh(node)
            return table
        if table is not None:
            table.close()
        from qobra.block.table import ResolvedTable

        table = self._table = ResolvedTable(node)
        return table

    def inserted(self) -> BlockNode:
        """The node. Raises QobraError if there is none (an empty drive)."""
        if self.node is None:
            raise QobraError(f"Device '{self.name}' has no medium", errno=123)  # ENOMEDIUM
        return self.node

    @property
    def length(self) -> int:
        """Size in bytes; 0 without a medium."""
        return self.node.length if self.node is not None else 0

    # ``counted`` False: the statistics do not know of the request.

    def read(self, offset: int, length: int) -> bytes:
        """See :meth:`BlockNode.read`."""
        return self._request(READ, length, BlockNode.read, offset, length)

    def read_into(self, offset: int, view: memoryview, *, counted: bool = True) -> None:
        """See :meth:`BlockNode.read_into`."""
        self._request(READ, len(view), BlockNode.read_into, offset, view, counted=counted)

    def read_views(self, offset: int, views: Sequence[memoryview]) -> None:
        """One request that fills ``views``, one after the other."""
        self._request(READ, sum(map(len, views)), _read_views, offset, views)

    def write(self, offset: int, data: Buffer, *, fua: bool = False, counted: bool = True) -> None:
        """See :meth:`BlockNode.write`."""
        fua = fua or not self.writeback
        self._request(WRITE, len(data), BlockNode.write, offset, data, fua=fua, counted=counted)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        may_unmap: bool = False,
        no_fallback: bool = False,
        fua: bool = False,
        counted: bool = True,
    ) -> None:
        """See :meth:`BlockNode.write_zeroes`."""
        self._request(
            WRITE,
            length,
            BlockNode.write_zeroes,
            offset,
            length,
            may_unmap=may_unmap,
            no_fallback=no_fallback,
            fua=fua or not self.writeback,
            counted=counted,
        )

    def discard(self, offset: int, length: int, *, counted: bool = True) -> None:
        """See :meth:`BlockNode.discard`."""
        self._request(UNMAP, length, BlockNode.discard, offset, length, counted=counted)

    def flush(self, *, counted: bool = True) -> None:
        """See :meth:`BlockNode.flush`."""
        self._request(FLUSH, 0, _flush, counted=counted)

    def _request(
        self, kind: int, length: int, method: Callable[..., T], *args: Any, counted: bool = True, **kwargs: Any
    ) -> T:
        clock = self.layer.clock
        start_ns = clock.monotonic_ns()
        if self.throttle is not None and length:
            self.throttle.wait(length, kind != READ)
        try:
            with self.slot():
                result = method(self.inserted(), *args, **kwargs)
        except (OSError, QobraError):
            if counted:
                self.accounting.add_failed(kind, clock.monotonic_ns() - start_ns)
                self._local.failed = kind, length
            raise
        if counted:
            self.accounting.add(kind, 1, length, clock.monotonic_ns() - start_ns)
        return result

    def pardon(self, *, done: bool, transfers: bool = True) -> None:
        """The guest is not told of the last failure in this thread; see :meth:`Accounting.pardon`.

        ``transfers`` False: that of a read or write counts nevertheless.
        """
        failed: tuple[int, int] | None = getattr(self._local, "failed", None)
        if failed is not None:
            self._local.failed = None
            if transfers or failed[0] not in (READ, WRITE):
                self.accounting.pardon(*failed, done=done)


def _read_views(node: BlockNode, offset: int, views: Sequence[memoryview]) -> None:
    for view in views:
        node.read_into(offset, view)
        offset += len(view)


def _flush(node: BlockNode) -> None:
    # Not BlockNode.flush itself: a driver that must order its own barriers replaces the whole of it.
    node.flush()

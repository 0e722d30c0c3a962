"""The block layer of one machine: the owner of nodes, backends, jobs and exports, and of what they share."""

from __future__ import annotations

import sys

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.extents import MAX_DEPTH
from qobra.block.graph import Graph
from qobra.block.node import BlockNode, Options
from qobra.block.opener import Opener
from qobra.block.slots import Flight, Gate
from qobra.clock import HostClock
from qobra.control import Control
from qobra.errors import DEVICE_NOT_FOUND, GENERIC_ERROR, QobraError
from qobra.lean import cached_property, contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from qobra.block.export.exports import Exports
    from qobra.block.job.jobs import Jobs
    from qobra.block.throttle import ThrottleGroup

    Emit = Callable[[str, dict[str, Any] | None], None]

# A request goes down a chain of MAX_DEPTH nodes by a few calls for each, and so does opening one.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 20 * MAX_DEPTH))


class BlockLayer:
    """Everything of block devices that a machine has. Made without arguments it serves a tool or a test.

    ``emit`` sends an event (inside the strand), ``find_object(id, type_name)`` looks up a user-created object,
    ``open_path(path, flags)`` opens a path that may be ``/dev/fdset/N``, ``find_fd(name)`` takes a passed descriptor.
    """

    def __init__(
        self,
        *,
        control: Control | None = None,
        emit: Emit | None = None,
        find_object: Callable[..., Any] | None = None,
        random: random.Random | None = None,
        open_path: Callable[[str, int], int] | None = None,
        find_fd: Callable[[str], int] | None = None,
    ) -> None:
        self.control = control or Control(HostClock())
        self.emit: Emit = emit or _ignore_event
        self.find_object: Callable[..., Any] = find_object or (lambda *_args, **_kwargs: None)
        self.find_iothread: Callable[[str], Any] = lambda _path: None
        """The iothread at a path in the tree of objects, which may be no more than its id; None if there is none."""
        self.open_path = open_path
        self.find_fd = find_fd
        self.opener = Opener(self, random)
        self.open = self.opener.open
        """See :meth:`.Opener.open`."""
        self.open_image = self.opener.open_image
        """See :meth:`.Opener.open_image`."""
        self.flight = Flight()
        self.gates: list[Gate] = []
        """The gates of those who work on nodes without a root of their own."""
        self.graph = Graph(self)
        self.backends: dict[str, BlockBackend] = {}
        """The named backends (drives), by name."""
        self.devices: list[BlockBackend] = []
        """The backends that device models use, named or not."""
        self.check_device: Callable[[str], None] = _no_device
        """Raise QobraError (DeviceNotFound) unless an id or path means a device at all; the machine knows."""
        self.say: Callable[[str], None] = lambda _text: None
        """Tell whoever runs the program what is being done; the program says how."""
        self.warn: Callable[[str], None] = lambda _text: None
        """The same for what may be wrong."""
        self.tell_held: Callable[[str], None] = lambda _text: None
        """Tell whoever runs the program of a request that is stopped, or let go, at a breakpoint of blkdebug."""
        self.account_time: tuple[Callable[[], int], int | None] = (self.control.clock.monotonic_ns, None)
        """What statistics go by: the time, and how long each request is said to take (None: as long as it does)."""
        self.stop_machine: Callable[[], None] = lambda: None
        """Stop the guest because of an I/O error; the machine's."""
        self.opens_inactive = False
        """Nodes that are opened leave their images to another process until they are activated."""
        self._throttle_groups: dict[str, ThrottleGroup] = {}
        self._blockers: dict[BlockNode, list[tuple[int, str]]] = {}

    @cached_property
    def jobs(self) -> Jobs:
        """The background jobs."""
        from qobra.block.job.jobs import Jobs

        return Jobs(self)

    @cached_property
    def exports(self) -> Exports:
        """The exports and their servers."""
        from qobra.block.export.exports import Exports

        return Exports(self)

    @property
    def clock(self) -> Any:
        """The machine's clock."""
        return self.control.clock

    def emit_from_request(self, name: str, data: dict[str, Any]) -> None:
        """Emit an event from inside a request: soon, in the strand, in another thread."""
        self.control.defer(self.emit, name, data)

    # -- draining -----------------------------------------------------------------------------------------------

    @contextmanager
    def drained(self) -> Iterator[None]:
        """While the body runs no request is in flight at any root, and none starts. May be nested.

        Not to be entered by a thread that is inside a slot.
        """
        with self.flight.drained(self._gates):
            yield

    def unthrottled(self) -> AbstractContextManager[None]:
        """While the body runs, requests that a throttle group holds back are let go."""
        return self.flight.drained(list)

    def _gates(self) -> list[Gate]:
        return [*self.gates, *(root.gate for root in self.graph.state.roots)]

    @property
    def generation(self) -> int:
        """Counts changes of the graph and of who is told of writes; flat tables are checked against it."""
        return self.flight.words.generation

    def changed(self) -> None:
        """Flat tables are to be made anew."""
        self.flight.words.generation += 1

    def node_resized(self, node: BlockNode, old_length: int) -> None:
        """``node`` has another length: adapt its bitmaps, what shows it, and tell the roots above."""
        for bitmap in node.bitmaps.values():
            bitmap.resize(node.length)
        for parent, name in self.graph.parents(node):
            if parent.is_filter or parent.is_transparent:
                before = parent.length
                parent.child_resized(name)
                if parent.length != before:
                    self.node_resized(parent, before)
        for root in self.graph.roots_of(node):
            for call in tuple(root.resized):
                call()
        self.changed()

    # -- finding ------------------------------------------------------------------------------------------------

    def find_node(self, node_name: str) -> BlockNode:
        """The node of that name. Raises QobraError."""
        node = self.graph.find(node_name)
        if node is None:
            raise QobraError(f"Cannot find device='' nor node-name='{node_name}'")
        return node

    def find_device_or_node(self, name: str, error_class: str = GENERIC_ERROR) -> BlockNode:
        """The node in the backend ``name``, or the node of that name.

        Raises QobraError in QEMU's words; of the class ``error_class``, for which the manual has its own word with
        each command, where there is neither.
        """
        backend = self.backends.get(name)
        if backend is not None:
            if backend.node is None:
                raise QobraError(f"Device '{name}' has no medium")
            return backend.node
        node = self.graph.find(name)
        if node is None:
            raise QobraError(f"Cannot find device='{name}' nor node-name='{name}'", error_class)
        return node

    def find_backend(self, device: str) -> BlockBackend:
        """The backend of that name. Raises QobraError (DeviceNotFound)."""
        backend = self.backends.get(device)
        if backend is None:
            raise QobraError(f"Device '{device}' not found", DEVICE_NOT_FOUND)
        return backend

    def visible_backends(self) -> list[BlockBackend]:
        """The backends that have a name or a device, in the order in which they came to be."""
        return sorted({*self.backends.values(), *self.devices}, key=lambda backend: backend.serial)

    def find_qdev(self, id: str) -> BlockBackend:
        """The backend of the device with that id or path. Raises QobraError (DeviceNotFound)."""
        for backend in self.devices:
            if backend.device is not None and backend.device.matches(id):
                return backend
        self.check_device(id)
        raise QobraError("Device does not have a block device backend")

    def find_throttle_group(self, name: str) -> ThrottleGroup | None:
        """The throttle group of that name: an object, or one that its members made and keep."""
        known = self.find_object(name, "throttle-group")
        if known is not None:
            group: ThrottleGroup | None = known.group
            return group
        self._throttle_groups = {key: group for key, group in self._throttle_groups.items() if group.members}
        return self._throttle_groups.get(name)

    def throttle_group(self, name: str) -> ThrottleGroup:
        """The throttle group of that name, a new one if there is none."""
        group = self.find_throttle_group(name)
        if group is None:
            from qobra.block.throttle import ThrottleGroup

            group = self._throttle_groups[name] = ThrottleGroup(name, self.clock)
        return group

    def set_iothread(self, node: BlockNode, iothread: Any, *, but: BlockBackend | None = None) -> None:
        """Take ``node`` and all that it is connected with into ``iothread`` (None: the main loop).

        Raises QobraError where a user other than ``but`` keeps them where they are.
        """
        if iothread is not None or self.graph.has_iothreads:
            from qobra.block.iothreads import move

            self.graph.has_iothreads = True
            move(self.graph.state, node, iothread, but=but)

    # -- blocking -----------------------------------------------------------------------------------------------

    def block_node(self, node: BlockNode, reason: str) -> None:
        """Refuse what :meth:`check_blockers` guards on ``node``, because of ``reason``, until unblocked."""
        self._blockers.setdefault(node, []).append((self.graph.age, reason))

    def unblock_node(self, node: BlockNode, reason: str) -> None:
        """Undo :meth:`block_node`."""
        kept = self._blockers.get(node, [])
        last = next((each for each in reversed(kept) if each[1] == reason), None)
        if last is not None:
            kept.remove(last)
        if not kept:
            self._blockers.pop(node, None)

    def check_blockers(self, node: BlockNode) -> None:
        """Raise QobraError if something keeps ``node`` busy."""
        blockers = self._blockers.get(node)
        if blockers:
            raise self._busy(node, blockers[-1][1])

    def check_free(self, node: BlockNode) -> None:
        """:meth:`check_blockers`, and refuse also a node that is the backing file of another."""
        ages = self.graph.state.ages
        overlays = [
            (ages[parent, name, node], f"node is used as backing hd of '{parent.node_name}'")
            for parent, name in self.graph.parents(node)
            if name == "backing" and not parent.is_filter
        ]
        blockers = overlays + self._blockers.get(node, [])
        if blockers:
            raise self._busy(node, max(reversed(blockers), key=lambda each: each[0])[1])

    def _busy(self, node: BlockNode, reason: str) -> QobraError:
        """Of several reasons, the last to have come is told."""
        return QobraError(f"Node '{self.device_or_node_name(node)}' is busy: {reason}")

    def find_device(self, device: str | None, node_name: str | None) -> BlockNode:
        """The node that a command's ``device`` or ``node-name`` means, of which there has to be exactly one.

        An empty ``device`` beside a ``node-name`` is none, as avocado-vt sends both, always. Raises QobraError, in
        QEMU's words where QEMU refuses it too.
        """
        if device and node_name is not None:
            raise QobraError("Need exactly one of 'device' and 'node-name'")
        if device is not None and device in self.backends:
            backend = self.backends[device]
            if backend.node is None:
                raise QobraError(f"Device '{device}' has no medium")
            return backend.node
        node = self.graph.find(node_name) if node_name is not None else None
        if node is None:
            given = device is not None or node_name is not None
            raise QobraError(
                f"Cannot find device='{device or ''}' nor node-name='{node_name or ''}'",
                DEVICE_NOT_FOUND if given else GENERIC_ERROR,
            )
        return node

    def device_or_node_name(self, node: BlockNode) -> str:
        """How error texts call ``node``: the name of the device that it is in, else its own."""
        return self.device_name(node) or node.node_name

    def device_name(self, node: BlockNode) -> str:
        """The name of the device that ``node`` is in; empty where it is in none."""
        return next((root.name for root in self.graph.roots_of(node) if root.name), "")

    # -- the monitor's nodes ----------------------------------------------------------------------------------

    def add_node(self, options: Options) -> BlockNode:
        """blockdev-add: open the node that ``options`` (a BlockdevOptions) describes, for the monitor to own."""
        if "node-name" not in options:
            raise QobraError("'node-name' must be specified for the root node")
        return self.open(options, monitor_owned=True)

    def resize(self, node: BlockNode, length: int, *, preallocation: str = "off", exact: bool = True) -> None:
        """Change the length of ``node`` on behalf of the monitor. Raises QobraError where a user forbids it."""
        user = BlockBackend(self, perm=permissions.RESIZE, shared=permissions.ALL)
        user.insert(node)
        try:
            with self.drained():
                node.truncate(length, preallocation=preallocation, exact=exact)
        except OSError as error:
            raise QobraError.from_os("Could not resize the image", error, node=node.node_name)
        finally:
            user.remove()

    def delete_node(self, node_name: str) -> None:
        """blockdev-del. Raises QobraError where the node is in use or not the monitor's."""
        node = self.graph.find(node_name)
        if node is None:
            raise QobraError(f"Failed to find node with node-name='{node_name}'")
        parents = self.graph.parents(node)
        if any(root.job is None for root in self.graph.roots_of(node)):
            raise QobraError(f"Node {node_name} is in use")
        self.check_free(node)
        if not node.monitor_owned:
            raise QobraError(f"Node {node_name} is not owned by the monitor")
        if parents or self.graph.roots_of(node):
            raise QobraError(f"Block device {node_name} is in use")
        node.monitor_owned = False
        try:
            with self.graph.change():
                pass
        except BaseException:
            node.monitor_owned = True
            raise

    def flush(self) -> None:
        """Let everything that was written be on stable storage; what fails is passed over.

        Limits are not in force meanwhile, as an image's metadata waits for whoever is writing to it.
        """
        with self.unthrottled():
            for node in self.graph.nodes.values():
                if not node.inactive and not self._flushed_with_another(node):
                    try:
                        node.flush()
                    except (OSError, QobraError):
                        pass

    def _flushed_with_another(self, node: BlockNode) -> bool:
        return any(
            (name != "backing" or parent.is_filter) and not parent.read_only and not parent.inactive
            for parent, name in self.graph.parents(node)
        )

    # -- ending -------------------------------------------------------------------------------------------------

    def close_nodes(self, nodes: list[BlockNode]) -> None:
        """Close ``nodes``, parents first; the first error is raised once all are closed."""
        failure: Exception | None = None
        for node in nodes:
            try:
                node.close_node()
            except (OSError, QobraError) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End exports and jobs, then flush and close every node."""
        with self.unthrottled():
            for part in ("exports", "jobs"):
                if part in self.__dict__:
                    self.__dict__[part].close()
        for backend in list(self.backends.values()):
            backend.remove()
        self.backends.clear()
        for node in self.graph.nodes.values():
            node.monitor_owned = False
        with self.graph.change() as change:
            for root in tuple(self.graph.state.roots):
                change.set_root(root, None)


def _no_device(id: str) -> None:
    raise QobraError(f"Device '{id}' not found", DEVICE_NOT_FOUND)


def _ignore_event(_name: str, _data: dict[str, Any] | None) -> None:
    pass

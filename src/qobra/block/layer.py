"""The block layer of one machine: the owner of nodes, backends, jobs and exports, and the way nodes are opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.extents import MAX_DEPTH
from qobra.block.filename import full_backing_filename, parse_filename
from qobra.block.format._magic import candidates
from qobra.block.graph import Graph
from qobra.block.node import BlockNode, OpenedNodes, Opening, Options, drivers
from qobra.block.slots import Flight, Gate
from qobra.clock import HostClock
from qobra.control import Control
from qobra.errors import DEVICE_NOT_FOUND, QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    from typing import Any

    from qobra.block.export.exports import Exports
    from qobra.block.job.jobs import Jobs
    from qobra.block.throttle import ThrottleGroup
else:
    Any = object

# A request goes down a chain of MAX_DEPTH nodes by a few calls for each, and so does opening one.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 20 * MAX_DEPTH))

Emit = Callable[[str, dict[str, Any] | None], None]

_BACKING_FAILED = "Could not open backing file: "

PROBE_SIZE = 2048
"""Bytes of an image that are looked at to tell its format."""


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
        self.open_path = open_path
        self.find_fd = find_fd
        self._random = random
        self._node_counter = 0
        self._serial = 0
        self._opening_depth = 0
        self._backing_chain: list[str | Options] = []
        """What the backing files that are being opened were named by, to notice a loop."""
        self.flight = Flight()
        self.generation = 0
        """Counts changes of the graph and of who is told of writes; flat tables are checked against it."""
        self.graph = Graph(self)
        self.backends: dict[str, BlockBackend] = {}
        """The named backends (drives), by name."""
        self.devices: list[BlockBackend] = []
        """The backends that device models use, named or not."""
        self.device_exists: Callable[[str], bool] = lambda _id: False
        """Whether an id or path means a device at all; the machine says."""
        self.say: Callable[[str], None] = lambda _text: None
        """Tell whoever runs the program what is being done; the program says how."""
        self.warn: Callable[[str], None] = lambda _text: None
        """The same for what may be wrong."""
        self.stop_machine: Callable[[], None] = lambda: None
        """Stop the guest because of an I/O error; the machine's."""
        self._throttle_groups: dict[str, ThrottleGroup] = {}
        self._blockers: dict[BlockNode, list[str]] = {}

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

    def _gates(self) -> list[Gate]:
        return [root.gate for root in self.graph.state.roots if isinstance(root, BlockBackend)]

    def changed(self) -> None:
        """Flat tables are to be made anew."""
        self.generation += 1

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
            if isinstance(root, BlockBackend):
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

    def find_device_or_node(self, name: str) -> BlockNode:
        """The node in the backend ``name``, or the node of that name. Raises QobraError in QEMU's words."""
        backend = self.backends.get(name)
        if backend is not None:
            if backend.node is None:
                raise QobraError(f"Device '{name}' has no medium")
            return backend.node
        node = self.graph.find(name)
        if node is None:
            raise QobraError(f"Cannot find device='{name}' nor node-name='{name}'")
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
        from qobra.block.media import find_qdev_backend

        return find_qdev_backend(self.devices, id, self.device_exists(id))

    def throttle_group(self, name: str) -> ThrottleGroup:
        """The throttle group of that name, a new one if there is none."""
        from qobra.block.throttle import ThrottleGroup

        known = self.find_object(name, "throttle-group")
        if known is not None:
            return known.group  # type: ignore[no-any-return]
        self._throttle_groups = {key: group for key, group in self._throttle_groups.items() if group.members}
        return self._throttle_groups.setdefault(name, ThrottleGroup(name, self.clock))

    def set_iothread(self, node: BlockNode, iothread: Any) -> None:
        """Record the iothread (None: none) of ``node`` and all that is under it."""
        pending = [node]
        while pending:
            each = pending.pop()
            each.iothread = iothread
            pending.extend(each.children.values())

    # -- blocking -----------------------------------------------------------------------------------------------

    def block_node(self, node: BlockNode, reason: str) -> None:
        """Refuse what :meth:`check_blockers` guards on ``node``, because of ``reason``, until unblocked."""
        self._blockers.setdefault(node, []).append(reason)

    def unblock_node(self, node: BlockNode, reason: str) -> None:
        """Undo :meth:`block_node`."""
        reasons = self._blockers.get(node, [])
        if reason in reasons:
            reasons.remove(reason)
        if not reasons:
            self._blockers.pop(node, None)

    def check_blockers(self, node: BlockNode) -> None:
        """Raise QobraError if something keeps ``node`` busy."""
        reasons = self._blockers.get(node)
        if reasons:
            raise QobraError(f"Node '{self.device_or_node_name(node)}' is busy: {reasons[0]}")

    def find_device(self, device: str | None, node_name: str | None) -> BlockNode:
        """The node that a command's ``device`` or ``node-name`` argument means. Raises QobraError in QEMU's words."""
        if device is not None and device in self.backends:
            backend = self.backends[device]
            if backend.node is None:
                raise QobraError(f"Device '{device}' has no medium")
            return backend.node
        if node_name is not None:
            node = self.graph.find(node_name)
            if node is not None:
                return node
        raise QobraError(f"Cannot find device='{device or ''}' nor node-name='{node_name or ''}'")

    def device_or_node_name(self, node: BlockNode) -> str:
        """How error texts call ``node``: the name of the device that it is in, else its own."""
        for root in self.graph.roots_of(node):
            if isinstance(root, BlockBackend) and root.name:
                return root.name
        return node.node_name

    # -- opening ------------------------------------------------------------------------------------------------

    def add_node(self, options: Options) -> BlockNode:
        """blockdev-add: open the node that ``options`` (a BlockdevOptions) describes, for the monitor to own."""
        if "node-name" not in options:
            raise QobraError("'node-name' must be specified for the root node")
        return self.open(options, monitor_owned=True)

    def open(self, options: Options, *, monitor_owned: bool = False, root: BlockBackend | None = None) -> BlockNode:
        """Open a node with all its children and put them into the graph, owned by the monitor or by ``root``.

        Without ``driver``, the format is probed as for a legacy file name. Raises QobraError; then nothing is left.
        """
        opened = OpenedNodes()
        try:
            node = self.open_reference(options, opened, {})
            node.monitor_owned = node.monitor_owned or monitor_owned
            with self.graph.change() as change:
                for each in sorted(opened, key=lambda node: node.serial):
                    change.insert(each)
                if root is not None:
                    change.set_root(root, node)
            return node
        except BaseException as error:
            self.close_nodes([each for each in reversed(opened) if self.graph.find(each.node_name) is not each])
            opened.withdraw()
            if isinstance(error, QobraError):
                raise error.prefixed(_BACKING_FAILED * _implicit_depth(opened, error.node))
            raise

    def open_image(
        self,
        filename: str,
        options: Options | None = None,
        *,
        root: BlockBackend | None = None,
        monitor_owned: bool = False,
    ) -> BlockNode:
        """Open an image by a legacy ``filename`` (a path, a protocol name, ``json:``) and more ``options``.

        ``options["driver"]`` is the format; without it, it is probed.
        """
        return self.open(self.image_options(filename, options or {}), root=root, monitor_owned=monitor_owned)

    def image_options(self, filename: str, options: Options) -> Options:
        """The options of the node that :meth:`open_image` opens."""
        merged = dict(options)
        protocol_options = parse_filename(filename)
        own = merged.get("driver")
        if filename.startswith("json:"):
            if own is not None and protocol_options.get("driver", own) != own:
                raise QobraError("Driver specified twice")
            merged = {**protocol_options, **merged}
        elif own == protocol_options["driver"]:
            merged = {**protocol_options, **merged}
        elif own is not None and _is_protocol(own):
            merged = {**_protocol_options(own, filename), **merged}
        else:
            merged["file"] = {**protocol_options, **merged.get("file", {})}
        return merged

    def open_reference(self, reference: str | Options, opened: list[BlockNode], inherited: Options) -> BlockNode:
        """The node that ``reference`` names, or a new one for the options that it is.

        New nodes are appended to ``opened``; the caller puts them into the graph or closes them.
        """
        if isinstance(reference, _Opened):
            return reference.node
        if isinstance(reference, str):
            return self.find_device_or_node(reference)
        if self._opening_depth >= MAX_DEPTH:
            raise QobraError(f"Nodes cannot lie more than {MAX_DEPTH} deep on one another")
        self._opening_depth += 1
        try:
            return self._open_new(reference, opened, inherited)
        finally:
            self._opening_depth -= 1

    def _open_new(self, reference: Options, opened: list[BlockNode], inherited: Options) -> BlockNode:
        options = {**inherited, **reference}
        name = options.get("node-name")
        if name is not None:
            self.check_node_name(name)
        probed = "driver" not in options
        if probed:
            options = self._probed(options, opened)
        driver = drivers.find(options["driver"])
        if driver is None:
            raise QobraError(f"Unknown driver '{options['driver']}'")
        node = driver(self, name or self.new_node_name(), options)
        node.explicit_options = reference
        node.probed = probed
        if node.force_share and not node.read_only:
            raise QobraError("force-share=on can only be used with read-only images")
        opening = Opening(node, self, options, opened)
        try:
            node.open(opening)
        except BaseException:
            node.close_node()
            raise
        opening.take_place()
        opened.append(node)
        if driver.supports_backing and "backing" not in node.children and not options.get("_no-backing"):
            self._open_backing(node, opening)
        node.names_changed()
        return node

    def _open_backing(self, node: BlockNode, opening: Opening) -> None:
        if "backing" in opening.options:
            reference = opening.options["backing"]
            if reference is None or reference == "":
                return
            from_header = isinstance(reference, dict) and self._is_partial(node, reference)
            if from_header:
                reference = self._completed(node, reference)
        else:
            from_header = True
            reference = self.backing_options(node)
            if reference is None:
                return
        if reference in self._backing_chain:
            name = node.backing_filename  # type: ignore[attr-defined]
            raise QobraError(f"Backing file '{name}' creates an infinite loop.")
        if len(self._backing_chain) >= MAX_DEPTH:
            raise QobraError(f"The backing chain is longer than {MAX_DEPTH} images")
        self._backing_chain.append(reference)
        try:
            backing = opening.attach("backing", permissions.ROLE_COW, reference)
        except QobraError as error:
            raise error.prefixed(_BACKING_FAILED) if from_header else error
        else:
            if from_header:
                node.auto_backing = node.backing_filename, backing.filename  # type: ignore[attr-defined]
        finally:
            self._backing_chain.pop()

    def _is_partial(self, node: BlockNode, options: Options) -> bool:
        """Whether ``options`` (``backing.x=y`` of a command line) only add to what the header of ``node`` names."""
        driver = drivers.find(options.get("driver", "raw"))
        file = options.get("file")
        in_parts = file is None or (isinstance(file, dict) and not file.keys() & {"driver", "filename"})
        return bool(node.backing_filename) and in_parts and driver is not None and driver.is_format  # type: ignore[attr-defined]

    def _completed(self, node: BlockNode, options: Options) -> Options:
        """``options`` with the rest from the header of ``node``."""
        from qobra.block.typed_options import typed

        named = self.backing_options(node) or {}
        if "file" not in named and "file" in options:
            named = {"file": named}
        merged = {**named, **options}
        if isinstance(named.get("file"), dict) and "file" in options:
            merged["file"] = {**named["file"], **options["file"]}
        return typed(merged)

    def backing_options(self, node: BlockNode) -> Options | None:
        """Options that open what the header of ``node`` names as its backing file, or None if it names nothing."""
        name = node.backing_filename  # type: ignore[attr-defined]
        if not name:
            return None
        full = full_backing_filename(node)
        try:
            options = parse_filename(full)
        except QobraError as error:
            raise error.prefixed(_BACKING_FAILED)
        backing_format = node.backing_format  # type: ignore[attr-defined]
        if full.startswith("json:"):
            return {**options, "driver": backing_format} if backing_format else options
        if backing_format == options["driver"]:
            return options
        result: Options = {"file": options}
        if backing_format:
            result["driver"] = backing_format
        return result

    def _probed(self, options: Options, opened: list[BlockNode]) -> Options:
        file = options.get("file")
        if file is None:
            raise QobraError("Must specify either driver or file")
        if isinstance(file, dict) and "driver" not in file:
            file = {**file, "driver": "file"}
        inherited: Options = {
            key: options[key] for key in ("cache", "read-only", "auto-read-only", "force-share") if key in options
        }
        child = self.open_reference(file, opened, {**inherited, "discard": "unmap"})
        driver = self.probe_format(child)
        # The child is open already and not yet in the graph, so it is handed over as it is.
        from qobra.block.typed_options import typed

        # Only now it can be told what the format's own options mean.
        own = {
            key: value
            for key, value in options.items()
            if key != "file" and not key.startswith("_") and value is not None
        }
        return {**options, **typed({**own, "driver": driver}), "file": _Opened(child)}

    def probe_format(self, node: BlockNode) -> str:
        """The format of the image in ``node``, told from its first bytes; ``raw`` where none is sure."""
        return self.format_of(node.read(0, min(PROBE_SIZE, node.length)), node.filename)

    def format_of(self, data: bytes, filename: str) -> str:
        """The format of an image that begins with ``data``."""
        best, score = "raw", 0
        loaded = dict(drivers.loaded())
        for name in candidates(data, filename):
            driver = drivers.find(name)
            if driver is not None:
                loaded[name] = driver
        for name, driver in sorted(loaded.items()):
            if driver.is_format:
                sure = driver.probe(data, filename)
                if sure > score:
                    best, score = name, sure
        return best

    def check_node_name(self, name: str) -> None:
        """Refuse a node name that is malformed or taken."""
        if not valid_id(name):
            raise QobraError(f"Invalid node-name: '{name}'")
        if name in self.backends:
            raise QobraError(f"node-name={name} is conflicting with a device id")
        if self.graph.find(name) is not None:
            raise QobraError(f"Duplicate nodes with node-name='{name}'")
        if len(name) > 31:
            raise QobraError("Node name too long")

    def new_node_name(self) -> str:
        """A name for a node that was given none: ``#block`` with a number that was not used before."""
        self._node_counter += 1
        tail = self._random.randrange(100) if self._random is not None else os.urandom(1)[0] % 100
        return f"#block{self._node_counter}{tail:02d}"

    def next_serial(self) -> int:
        """A number for a new node; see :attr:`BlockNode.serial`."""
        self._serial += 1
        return self._serial

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
        if any(getattr(root, "job", None) is None for root in self.graph.roots_of(node)):
            raise QobraError(f"Node {node_name} is in use")
        for parent, name in parents:
            if name == "backing" and not parent.is_filter:
                raise QobraError(f"Node '{node_name}' is busy: node is used as backing hd of '{parent.node_name}'")
        self.check_blockers(node)
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


class _Opened(dict[str, Any]):
    """Stands for a node that is open already where options are expected."""

    def __init__(self, node: BlockNode) -> None:
        super().__init__()
        self.node = node


def _implicit_depth(opened: list[BlockNode], node_name: str | None) -> int:
    """How many of the nodes above ``node_name`` in ``opened`` have what is under them because their header says so."""
    node = next((each for each in opened if each.node_name == node_name), None)
    depth = 0
    while node is not None and node.opened_by is not None:
        parent = node.opened_by
        depth += parent.backing is node and parent.auto_backing is not None
        node = parent
    return depth


def valid_id(name: str) -> bool:
    """Whether ``name`` is well-formed as QEMU's ids are: a letter, then letters, digits, ``-``, ``.``, ``_``."""
    if not name or not (name[0].isascii() and name[0].isalpha()):
        return False
    return all(each.isascii() and (each.isalnum() or each in "-._") for each in name)


def _is_protocol(name: str) -> bool:
    driver = drivers.find(name)
    return driver is not None and driver.is_protocol()


def _protocol_options(name: str, filename: str) -> Options:
    driver = drivers.find(name)
    options = driver.parse_filename(filename) if driver is not None else None
    if options is None:
        raise QobraError(f"The only allowed filename for this driver is '{name}://'")
    return options


def _ignore_event(_name: str, _data: dict[str, Any] | None) -> None:
    pass

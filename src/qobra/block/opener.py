"""Opening nodes: from options, references and file names, with the backing files that images name, probing formats."""

from __future__ import annotations

import errno
import os

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.extents import MAX_DEPTH
from qobra.block.filename import AMBIGUOUS_REFERENCE, flat_name, full_backing_filename, parse_filename
from qobra.block.format._magic import candidates
from qobra.block.node import MAX_LENGTH, BlockNode, Options, drivers
from qobra.block.opening import OpenedNodes, Opening, inherited_options, with_inherited
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    from typing import Any

    from qobra.block.layer import BlockLayer
else:
    Any = object

_OF_EVERY_NODE = ("node-name", "discard", "cache", "read-only", "auto-read-only", "force-share", "detect-zeroes")
"""What BlockdevOptions has whatever the driver is: of the right types before the driver is known."""

_BACKING_FAILED = "Could not open backing file: "

PROBE_SIZE = 2048
"""Bytes of an image that are looked at to tell its format."""


class Opener:
    """Opens the nodes of one block layer."""

    def __init__(self, layer: BlockLayer, random: random.Random | None) -> None:
        self._layer = layer
        self._random = random
        self._node_counter = 0
        self._serial = 0
        self._depth = 0
        self._backing_chain: list[str | Options] = []
        """What the backing files that are being opened were named by, to notice a loop."""
        self._unfinished: list[BlockNode] = []
        """Nodes that are being opened, each for the one before it."""

    def open(
        self,
        options: Options,
        *,
        monitor_owned: bool = False,
        root: BlockBackend | None = None,
        active: bool = False,
    ) -> BlockNode:
        """Open a node with all its children and put them into the graph, owned by the monitor or by ``root``.

        Without ``driver``, the format is probed as for a legacy file name. ``active`` nodes are this process's to
        change also where others wait for an incoming migration: a new image is.
        Raises QobraError; then nothing is left.
        """
        opened = OpenedNodes()
        waits = self._layer.opens_inactive
        try:
            self._layer.opens_inactive = waits and not active
            try:
                node = self.open_reference(options, opened, {})
            finally:
                self._layer.opens_inactive = waits
            node.monitor_owned = node.monitor_owned or monitor_owned
            with self._layer.graph.change() as change:
                for each in sorted(opened, key=lambda node: node.serial):
                    change.insert(each)
                change.attached = opened.links
                if root is not None:
                    change.set_root(root, node)
            return node
        except BaseException as error:
            self._layer.close_nodes(
                [each for each in reversed(opened) if self._layer.graph.find(each.node_name) is not each]
            )
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
        own = merged.get("driver")
        if filename.startswith("json:"):
            merged = {**parse_filename(filename), **merged}
        elif own is not None and _is_protocol(own):
            merged = _merged(_protocol_options(own, filename), merged)
        else:
            file = merged.get("file", {})
            if isinstance(file, str):
                raise QobraError(AMBIGUOUS_REFERENCE)
            protocol = file.get("driver")
            if protocol is not None and _is_protocol(protocol):
                protocol_options = _protocol_options(protocol, filename)
            else:
                protocol_options = parse_filename(filename)
            # Only now it can be told what the options of the file mean.
            merged["file"] = _typed(_merged(protocol_options, file))
        return merged

    def open_reference(self, reference: str | Options, opened: list[BlockNode], inherited: Options) -> BlockNode:
        """The node that ``reference`` names, or a new one for the options that it is.

        New nodes are appended to ``opened``; the caller puts them into the graph or closes them.
        """
        if isinstance(reference, _Opened):
            return reference.node
        if isinstance(reference, str):
            for node in opened:
                if node.node_name == reference:
                    return node
            return self._layer.find_device_or_node(reference)
        if self._depth >= MAX_DEPTH:
            raise QobraError(f"Nodes cannot lie more than {MAX_DEPTH} deep on one another")
        self._depth += 1
        try:
            return self._open_new(reference, opened, inherited)
        finally:
            self._depth -= 1

    def _open_new(self, reference: Options, opened: list[BlockNode], inherited: Options) -> BlockNode:
        options = with_inherited(inherited, reference)
        name = options.get("node-name")
        probed = "driver" not in options
        if probed:
            options = self._probed(options, opened)
        driver = drivers.find(options["driver"])
        if driver is None:
            raise QobraError(f"Unknown driver '{options['driver']}'")
        options = self._file_first(options, opened)
        if options.get("force-share") and not options.get("read-only"):
            raise QobraError("force-share=on can only be used with read-only images")
        if options.get("_copy-on-read") and options.get("read-only"):
            raise QobraError("Can't use copy-on-read on read-only device")
        if driver.needs_filename and not options.get("filename"):
            raise QobraError(f"The '{driver.driver}' block driver requires a file name")
        node = driver(self._layer, name if name is not None else self.new_node_name(), options)
        node.serial = self.next_serial()
        node.explicit_options = reference
        node.probed = probed
        if name is not None:
            self.check_node_name(name, opened)
        opening = Opening(node, self._layer, options, opened)
        self._unfinished.append(node)
        try:
            node.open(opening)
            if node.length > MAX_LENGTH:
                raise QobraError("Could not refresh total sector count: File too large", errno=errno.EFBIG)
        except BaseException:
            node.close_node()
            raise
        finally:
            self._unfinished.pop()
        opened.append(node)
        if "backing" not in node.children:
            if not driver.supports_backing:
                if options.get("backing"):
                    raise QobraError("Driver doesn't support backing files")
            elif not options.get("_no-backing"):
                self._open_backing(node, opening)
            elif options.get("backing"):
                unused = flat_name("backing", options["backing"])
                raise QobraError(f"Block format '{driver.driver}' does not support the option '{unused}'")
        node.names_changed()
        return node

    def _file_first(self, options: Options, opened: list[BlockNode]) -> Options:
        """``options`` of a node with its file opened, which comes before the node has a name and its driver looks."""
        file = options.get("file")
        if isinstance(file, str):
            node = self.open_reference(file, opened, {})
            if isinstance(opened, OpenedNodes):
                opened.look_at(self._layer, node)
        elif isinstance(file, dict) and not isinstance(file, _Opened):
            inherited = inherited_options(options, permissions.ROLE_IMAGE)
            return {**options, "file": _Opened(self.open_reference(file, opened, inherited))}
        return options

    def _open_backing(self, node: BlockNode, opening: Opening) -> None:
        if "backing" in opening.options:
            reference = opening.options["backing"]
            if reference is None or reference == "":
                return
            from_header = isinstance(reference, dict) and self._is_partial(node, reference)
            if from_header:
                try:
                    reference = self._completed(node, reference)
                except QobraError as error:
                    raise error.prefixed(_BACKING_FAILED)
        else:
            from_header = True
            reference = self.backing_options(node)
            if reference is None:
                return
        if reference in self._backing_chain:
            name = node.backing_filename
            raise QobraError(f"Backing file '{name}' creates an infinite loop.")
        if len(self._backing_chain) >= MAX_DEPTH:
            raise QobraError(f"The backing chain is longer than {MAX_DEPTH} images")
        opening.check_cycle("backing", reference)
        self._backing_chain.append(reference)
        try:
            backing = opening.attach("backing", permissions.ROLE_COW, reference)
        except QobraError as error:
            raise error.prefixed(_BACKING_FAILED)
        else:
            if from_header:
                node.auto_backing = node.backing_filename, backing.filename
        finally:
            self._backing_chain.pop()

    def _is_partial(self, node: BlockNode, options: Options) -> bool:
        """Whether ``options`` (``backing.x=y`` of a command line) only add to what the header of ``node`` names."""
        driver = drivers.find(options.get("driver", "raw"))
        file = options.get("file")
        in_parts = file is None or (isinstance(file, dict) and not file.keys() & {"driver", "filename"})
        return bool(node.backing_filename) and in_parts and driver is not None and driver.is_format

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
        name = node.backing_filename
        if not name:
            return None
        full = full_backing_filename(node)
        try:
            options = parse_filename(full)
        except QobraError as error:
            raise error.prefixed(_BACKING_FAILED)
        backing_format = node.backing_format
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
        # Only now it can be told what the format's own options mean.
        own = {
            key: value
            for key, value in options.items()
            if (key not in _OF_EVERY_NODE or key == "cache")
            and key != "file"
            and not key.startswith("_")
            and value is not None
        }
        if own:
            from qobra.block.typed_options import typed

            own = typed({**own, "driver": driver}, file_follows=True)
        # The child is open already and not yet in the graph, so it is handed over as it is.
        return {**options, **own, "driver": driver, "file": _Opened(child)}

    def probe_format(self, node: BlockNode) -> str:
        """The format of the image in ``node``, told from its first bytes; ``raw`` where none is sure.

        Raises QobraError where they cannot be read.
        """
        try:
            first = node.read(0, min(PROBE_SIZE, node.length))
        except OSError as error:
            raise QobraError.from_os("Could not read image for determining its format", error)
        return self.format_of(first, node.filename)

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

    def is_unfinished(self, name: str) -> bool:
        """Whether the node ``name`` is being opened."""
        return any(node.node_name == name for node in self._unfinished)

    def check_node_name(self, name: str, opened: list[BlockNode]) -> None:
        """Refuse a node name that is malformed or taken, perhaps by one of the nodes that are ``opened`` together."""
        if not valid_id(name):
            raise QobraError(f"Invalid node-name: '{name}'")
        if name in self._layer.backends:
            raise QobraError(f"node-name={name} is conflicting with a device id")
        together = self.is_unfinished(name) or any(node.node_name == name for node in opened)
        if together or self._layer.graph.find(name) is not None:
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


def _typed(options: Options) -> Options:
    """``options`` with values of their types; a plain file's name is of its type as it is."""
    if options.keys() == {"driver", "filename"} and options["driver"] in ("file", "host_device"):
        return options
    from qobra.block.typed_options import typed

    return typed(options)


def _merged(defaults: Options, options: Options) -> Options:
    """``options`` over ``defaults``, also inside of children that both have.

    Where ``defaults`` are a protocol's and ``options`` a format's, the protocol is for what the format lies on.
    """
    layered = options.get("driver")
    if layered is not None and not _is_protocol(layered) and _is_protocol(defaults.get("driver", "raw")):
        return {**options, "file": _merged(defaults, options.get("file", {}))}
    result = {**defaults, **options}
    for name in defaults.keys() & options.keys():
        if isinstance(defaults[name], dict) and isinstance(options[name], dict):
            result[name] = _merged(defaults[name], options[name])
    return result


def _protocol_options(name: str, filename: str) -> Options:
    driver = drivers.find(name)
    options = driver.parse_filename(filename) if driver is not None else None
    if options is None:
        raise QobraError(f"The only allowed filename for this driver is '{name}://'")
    return options

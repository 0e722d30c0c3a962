"""blockdev-reopen: change the options of open nodes, and which nodes their children are, as one transaction.

An option that is not given goes back to its default, as if the node had been opened anew. What a node can change while
it is open its driver says in ``changeable_options``; everything else must be what it was. A child that was opened
inline with its parent follows it; a child that has a name of its own is only ever referred to.
"""

from __future__ import annotations

from qobra.block import permissions
from qobra.block.filename import flatten
from qobra.block.graph import GraphChange, reaches
from qobra.block.node import BlockNode, Options
from qobra.block.opening import inherited_options, with_inherited
from qobra.block.query import without_implicit
from qobra.block.vertex import GENERIC_OPTIONS, TEXTS, check_detect_zeroes
from qobra.errors import QobraError
from qobra.json_text import ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.layer import BlockLayer

_REPLACEABLE = ("backing", "file")
"""Children that another node may be put in the place of."""


def reopen(layer: BlockLayer, all_options: list[Options]) -> None:
    """Reopen every node that ``all_options`` (BlockdevOptions) names, or none. Raises QobraError."""
    undo: list[Callable[[], None]] = []
    with layer.drained():
        read_only = [node for node in layer.graph.nodes.values() if node.read_only]
        nodes = [_named(layer, options.get("node-name")) for options in all_options]
        try:
            with layer.graph.change() as change:
                change.touches_existing = True
                for node, options in zip(nodes, all_options, strict=True):
                    _prepare(layer, change, node, options, undo)
        except BaseException:
            for call in reversed(undo):
                call()
            raise
        for node in read_only:
            if not node.read_only and not node.closed:
                node.activate()  # as one that is opened to be written


def _named(layer: BlockLayer, name: str | None) -> BlockNode:
    if name is None:
        raise QobraError("node-name not specified")
    node = layer.graph.find(name)
    if node is None:
        raise QobraError(f"Failed to find node with node-name='{name}'")
    return node


def _prepare(
    layer: BlockLayer,
    change: GraphChange,
    node: BlockNode,
    options: Options,
    undo: list[Callable[[], None]],
    *,
    explicit: Options | None = None,
) -> None:
    """``explicit``: those of ``options`` that the node does not have from its parent, if not all."""
    check_detect_zeroes(options)
    if not node.can_reopen:
        raise QobraError(
            f"Block format '{node.driver}' used by node '{node.node_name}' does not support reopening files"
        )
    named = node.supports_backing and (node.backing is not None or node.backing_filename)
    if named and "backing" not in options:
        raise QobraError(f"backing is missing for '{node.node_name}'")
    if not node.read_only and options.get("read-only", False):
        # Before the children, which it writes to, turn read-only.
        node.inactivate()
    node.check_options(options)
    given = [name for name in {**node.children, **dict.fromkeys(_REPLACEABLE)} if name in options]
    for name in given:
        if not isinstance(options[name], dict):
            _replace_child(layer, change, node, name, options[name])
    _check_unchanged(node, options)
    followers: set[BlockNode] = set()
    for name in given:
        child = node.children.get(name)
        if child is not None and child.opened_by is node and options[name] is not None and child not in followers:
            followers.add(child)  # one that is file and backing file at once follows as what it was opened as
            _prepare_follower(layer, change, node, name, options, undo)
    old, old_explicit = node.options, node.explicit_options
    undo.append(lambda: _take(node, old, old_explicit))
    _take(node, options, options if explicit is None else explicit)
    change.recheck.add(node)
    if node.read_only and not old.get("read-only", False):
        # Only now read-only: say so in the words that a reopen is refused with.
        change.refusals[node] = f"Read-only block node '{node.node_name}' cannot support read-write users"


def _prepare_follower(
    layer: BlockLayer,
    change: GraphChange,
    node: BlockNode,
    name: str,
    options: Options,
    undo: list[Callable[[], None]],
) -> None:
    """The child ``name``, which was opened inline with ``node``, gets options, or is referred to and follows."""
    child, wanted = node.children[name], options[name]
    inherited = inherited_options(options, node.roles[name])
    if isinstance(wanted, dict):
        own = {"driver": child.driver, "node-name": child.node_name, **wanted}
    elif wanted == child.node_name:
        wanted = child.explicit_options
        own = {key: value for key, value in child.options.items() if key not in GENERIC_OPTIONS}
        own.update(wanted)
        # Also those that only the header names, and what was put between them since.
        own.update({key: below.node_name for key, below in child.children.items()})
    else:
        return
    _prepare(layer, change, child, with_inherited(inherited, own), undo, explicit=wanted)


def _replace_child(layer: BlockLayer, change: GraphChange, node: BlockNode, name: str, wanted: str | None) -> None:
    current = node.children.get(name)
    if wanted is None:
        if current is not None:
            if current.implicit:
                raise QobraError(f"Cannot replace implicit {name} child of {node.node_name}")
            layer.graph.frozen.check(node, name)
            change.detach(node, name)
        return
    if name not in _REPLACEABLE:
        return  # one of the options that cannot change
    replaceable = name != "backing" or node.supports_backing or node.is_filter
    if not replaceable and (current is None or wanted != current.node_name):
        raise QobraError(f"Cannot change the option '{name}'")
    child = layer.graph.find(wanted)
    if child is None:
        raise QobraError(f"Cannot find device='' nor node-name='{wanted}'")
    if child is current or (current is not None and without_implicit(current) is child):
        return
    if current is not None and current.implicit:
        raise QobraError(f"Cannot replace implicit {name} child of {node.node_name}")
    layer.graph.frozen.check(node, name)
    if reaches(child, node):
        raise QobraError(f"Making '{child.node_name}' a {name} child of '{node.node_name}' would create a cycle")
    role = node.roles.get(name, permissions.ROLE_COW)
    if not node.read_only:
        node.flush()  # what the driver holds back belongs into the child that it leaves
    change.attach(node, name, child, role)


def _follows(node: BlockNode, name: str) -> bool:
    """Whether the child ``name`` was opened inline with ``node``."""
    child = node.children.get(name)
    return child is not None and child.opened_by is node


def _check_unchanged(node: BlockNode, options: Options) -> None:
    children = node.children.keys() | set(_REPLACEABLE)
    free = node.changeable_options | GENERIC_OPTIONS
    resettable = free - node.lasting_options
    given = flatten(options)
    for key, _value in ordered(_flat(node.explicit_options, but=resettable | children)):
        if key not in given and options.get(key) != []:
            raise QobraError(f"Option '{key}' cannot be reset to its default value")
    own = {"driver": node.driver, "node-name": node.node_name}
    before = {**_flat(node.options, but=free | children), **own}
    fixed = _flat(options, but=(free | children) - own.keys())
    for name in children & options.keys():
        wanted = options[name]
        if isinstance(wanted, dict) and not _follows(node, name):
            fixed.update(flatten({name: wanted}))
        elif isinstance(wanted, str) and name not in _REPLACEABLE and wanted != node.children[name].node_name:
            fixed[name] = wanted
    # Of several that cannot change, the one is named that QEMU comes to first.
    for key, value in ordered(fixed):
        if value != before.get(key) or key.partition(".")[0] in children:
            raise QobraError(f"Cannot change the option '{key}'")
    if options.get("force-share", False) != node.force_share:
        raise QobraError("Cannot change the option 'force-share'")


def _flat(options: Options, *, but: frozenset[str] | set[str]) -> Options:
    """``options`` without those of the names ``but``, by dotted names; a list without members has its own."""
    chosen = {name: value for name, value in options.items() if name not in but and name != TEXTS}
    return {**{name: value for name, value in chosen.items() if value == []}, **flatten(chosen)}


def _take(node: BlockNode, options: Options, explicit: Options) -> None:
    """Use ``options`` (all of them) from now on."""
    node.explicit_options = explicit
    node.options = {
        **{
            key: value
            for key, value in node.options.items()
            if key not in node.changeable_options | GENERIC_OPTIONS | {TEXTS}
        },
        **options,
    }
    node.take_generic_options(options)
    node.take_options(options)

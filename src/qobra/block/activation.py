"""Who may change an image: nodes that are inactive leave their images to another process, as around a migration.

While a node is inactive the devices above it ask for nothing and let others do all, so that no locks are held; what it
knows of its image may be out of date. To activate it takes the locks, reads the metadata again and then lets the
devices have what they asked for.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from qobra.block import permissions
from qobra.block.node import BlockNode
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer

_CHANGES = permissions.WRITE | permissions.WRITE_UNCHANGED | permissions.RESIZE


def activate(layer: BlockLayer, roots: Iterable[BlockNode]) -> None:
    """Take ``roots``, and all below them, over: all or none.

    Raises QobraError where an image is somebody else's, or unreadable.
    """
    taken: list[BlockNode] = []
    try:
        for node in _children_first(roots):
            if node.inactive:
                _activate_one(layer, node)
                taken.append(node)
    except BaseException:
        with layer.drained():
            for node in reversed(taken):
                node.hand_over()
                node.inactive = True
            with layer.graph.change() as change:
                change.touches_existing = True
        raise


def activate_all(layer: BlockLayer) -> None:
    """Take every node over; those that are opened later are active from the start."""
    waited, layer.opens_inactive = layer.opens_inactive, False
    try:
        activate(layer, tuple(layer.graph.nodes.values()))
        if waited:
            # Devices share their disks no longer as those did that waited for the guest.
            with layer.graph.change() as change:
                change.touches_existing = True
    except BaseException:
        layer.opens_inactive = waited
        raise


def _activate_one(layer: BlockLayer, node: BlockNode) -> None:
    before = node.length
    with layer.drained():
        node.inactive = False
        try:
            with layer.graph.change() as change:
                change.touches_existing = True
            node.invalidate_cache()
        except (OSError, QobraError) as error:
            node.inactive = True
            with layer.graph.change() as change:
                change.touches_existing = True
            if isinstance(error, QobraError):
                raise error
            raise QobraError.from_os(f"Could not activate node '{node.node_name}'", error)
        if node.length != before:
            layer.node_resized(node, before)
        node.activate()
        layer.changed()


def deactivate_all(layer: BlockLayer) -> None:
    """Write everything out and let go of every image. Raises QobraError where a user would go on changing one.

    Nothing has changed hands then.
    """
    nodes = tuple(layer.graph.nodes.values())
    active = [node for node in reversed(_children_first(nodes)) if not node.inactive]
    for root in layer.graph.state.roots:
        node = root.node
        if node is not None and node in active and root.perm & _CHANGES and not root.gives_way:
            raise QobraError("Operation not permitted", errno=errno.EPERM, node=node.node_name)
    for node in active:
        if node.is_filter and any(_writes_itself(node, name) for name in node.children):
            raise QobraError("Operation not permitted", errno=errno.EPERM, node=node.node_name)
    handed: list[BlockNode] = []
    with layer.drained():
        try:
            for node in active:
                node.hand_over()
                handed.append(node)
        except (OSError, QobraError) as error:
            for each in handed:
                each.inactive = True
            activate(layer, handed)
            if isinstance(error, QobraError):
                raise error
            raise QobraError.from_os("Could not write out the disks", error)
        for node in active:
            node.inactive = True
        with layer.graph.change() as change:
            change.touches_existing = True


def _writes_itself(node: BlockNode, name: str) -> bool:
    """Whether a filter changes a child that is not the one it presents, whatever its users do: a backup's target."""
    role = node.roles[name]
    return not role & permissions.ROLE_FILTERED and bool(
        node.child_permissions(name, role, 0, permissions.ALL)[0] & _CHANGES
    )


def _children_first(roots: Iterable[BlockNode]) -> list[BlockNode]:
    order: dict[BlockNode, None] = {}
    for start in roots:
        pending = [start]
        while pending:
            node = pending[-1]
            missing = [child for child in node.children.values() if child not in order]
            if node not in order and missing:
                pending += missing
                continue
            order.setdefault(pending.pop())
    return list(order)

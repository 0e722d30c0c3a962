"""x-blockdev-change: children that come and go while the parent is in use; a quorum has such."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block import permissions
from qobra.block.filter.quorum import QuorumNode
from qobra.block.graph import reaches
from qobra.block.node import BlockNode
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer


def add(layer: BlockLayer, parent: BlockNode, node: BlockNode) -> None:
    """Make ``node`` one more child of ``parent``. Raises QobraError where the driver has no such children."""
    if not isinstance(parent, QuorumNode):
        raise QobraError(f"The node {layer.device_or_node_name(parent)} does not support adding a child")
    if layer.graph.parents(node):
        raise QobraError(f"The node {node.node_name} already has a parent")
    parent.check_addition()
    name = parent.next_child_name()
    if reaches(node, parent):
        raise QobraError(f"Making '{node.node_name}' a {name} child of '{parent.node_name}' would create a cycle")
    with layer.graph.change() as change:
        change.attach(parent, name, node, permissions.ROLE_DATA | permissions.ROLE_FILTERED)
    parent.child_added()


def remove(layer: BlockLayer, parent: BlockNode, child: str) -> None:
    """Take the child called ``child`` from ``parent``. Raises QobraError where it cannot do without."""
    if child not in parent.children:
        raise QobraError(f"Node '{parent.node_name}' does not have child '{child}'")
    if not isinstance(parent, QuorumNode):
        raise QobraError(f"The node {layer.device_or_node_name(parent)} does not support removing a child")
    parent.check_removal()
    with layer.graph.change() as change:
        change.detach(parent, child)
    parent.child_resized("")

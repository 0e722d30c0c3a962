"""Put a filter over a node for a job, and take it away again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.opening import OpenedNodes
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.graph import GraphChange
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode, Options


def insert_filter(
    layer: BlockLayer,
    below: BlockNode,
    options: Options,
    *,
    prepare: Callable[[BlockNode], None] | None = None,
    refusal: str = "",
) -> tuple[BlockNode, BlockBackend]:
    """Open the filter that ``options`` describe and let everyone who uses ``below`` use it instead.

    Without a ``node-name`` it is implicit. ``prepare`` is called with the filter before it takes part. The returned
    backend keeps it in the graph until something else does; the caller removes it. Raises QobraError, with ``refusal``
    before the reason where that is the filter's own; then nothing has changed.
    """
    opened = OpenedNodes()
    holder = BlockBackend(layer, perm=0, shared=permissions.ALL, description="a filter that is being put in place")
    try:
        try:
            node = layer.opener.open_reference(options, opened, {})
        except QobraError as error:
            raise error.prefixed(refusal)
        node.implicit = "node-name" not in options
        if prepare is not None:
            prepare(node)
        with layer.graph.change() as change:
            for each in opened:
                change.insert(each)
            change.replace(below, node)
            change.set_root(holder, node)
    except BaseException:
        layer.close_nodes(list(reversed(opened)))
        opened.withdraw()
        raise
    return node, holder


def remove_filter(layer: BlockLayer, node: BlockNode) -> None:
    """Let everyone who uses the filter ``node`` use what is under it; with that, the filter is gone."""
    with layer.graph.change() as change:
        take_out_filter(change, node)


def take_out_filter(change: GraphChange, node: BlockNode) -> None:
    """:func:`remove_filter` as a part of ``change``."""
    below = node.filtered
    assert below is not None
    change.replace(node, below)
    for name in tuple(node.children):
        change.detach(node, name)

"""Put a filter over a node for a job, and take it away again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
    implicit: bool = True,
    refusals: tuple[str, str] = ("", ""),
) -> tuple[BlockNode, Holder]:
    """Open the filter that ``options`` describe and let everyone who uses ``below`` use it instead.

    Without a ``node-name`` it is implicit, if it may be. ``prepare`` is called with the filter before anybody uses it.
    The holder keeps it in the graph until something else does; the caller removes that. Raises QobraError, with
    the first of ``refusals`` before the reason where the filter cannot be, with the second where its users are against
    it; then nothing has changed.
    """
    opened = OpenedNodes()
    try:
        with telling(refusals[0]):
            node = layer.opener.open_reference(options, opened, {})
            node.implicit = implicit and "node-name" not in options
            for each in opened:
                each.inactive = False  # it asks what its users need of images that wait for a migration, and is refused
            with layer.graph.change() as change:
                for each in opened:
                    change.insert(each)
                node.monitor_owned = True
    except BaseException:
        layer.close_nodes(list(reversed(opened)))
        opened.withdraw()
        raise
    try:
        if prepare is not None:
            prepare(node)
        with telling(refusals[1]), layer.graph.change() as change:
            layer.graph.check_replaceable(below, keep=(node,))
            change.replace(below, node)
    except BaseException:
        Holder(layer, node).remove()
        raise
    return node, Holder(layer, node)


class Holder:
    """Keeps a filter in the graph, without being a user that would count for its permissions."""

    def __init__(self, layer: BlockLayer, node: BlockNode) -> None:
        self._layer = layer
        self._node = node

    def remove(self) -> None:
        """Let go of it."""
        self._node.monitor_owned = False
        with self._layer.graph.change():
            pass  # a node that nobody uses goes


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Put ``what`` before the reason of a QobraError that is raised inside."""
    try:
        yield
    except QobraError as error:
        raise error.prefixed(what)


def remove_filter(layer: BlockLayer, node: BlockNode) -> None:
    """Let everyone who uses the filter ``node`` use what is under it; with that, the filter is gone."""
    with layer.graph.change() as change:
        take_out_filter(change, node)


def take_out_filter(change: GraphChange, node: BlockNode) -> None:
    """:func:`remove_filter` as a part of ``change``."""
    below = node.filtered
    assert below is not None
    node.monitor_owned = False
    change.replace(node, below)
    for name in tuple(node.children):
        change.detach(node, name)

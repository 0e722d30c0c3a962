"""What a flat table asks of the graph: what its places depend on, and who has to see what is written past the nodes."""

from __future__ import annotations

from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.contracts import Keeper, Marks
    from qobra.block.node import BlockNode
    from qobra.native.in_step import InStep

MAX_MARKS = 32
"""Dirty bitmaps that a write past the nodes is marked in; where there are more, all writes go through the nodes."""
MAX_KEEPERS = 8
"""The same for copies of a point in time."""

_old_blocks = compiled("old_blocks") if compiled("places") is not None else None

Basis = list[object]


def basis(root: BlockNode) -> Basis:
    """What the places that are found under ``root`` depend on, but for what drivers tell by :meth:`BlockNode.moved`.

    Filters that show the places of their child do not count: where two states of the graph have the same basis, they
    have the same places.
    """
    found: Basis = []
    seen: set[BlockNode] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        while node.shows_places and node.filtered is not None:
            node = node.filtered
        found.append(node)
        if node not in seen:
            seen.add(node)
            found += (0 if node.is_leaf else node.length, node.request_alignment, tuple(node.children))
            pending += node.children.values()
    return found


def path(root: BlockNode) -> list[BlockNode]:
    """Every node under ``root`` that keeps the guest's offsets: what moves in them moves for the root."""
    path = []
    node: BlockNode | None = root
    while node is not None:
        path.append(node)
        node = node.backing or (node.children.get("file") if node.is_transparent else None)
    return path


def written_nodes(root: BlockNode) -> list[BlockNode]:
    """The nodes that a write to ``root``, to a place that is WRITABLE, passes through."""
    nodes = []
    pending = [root]
    while pending:
        node = pending.pop()
        nodes.append(node)
        below = node.filtered
        if below is not None:
            pending.append(below)
        else:
            pending.extend(child for name, child in node.children.items() if name != "backing")
    return nodes


def marks_of(root: BlockNode) -> tuple[tuple[Marks, int], ...] | None:
    """Where a write to ``root`` is to be marked, and what to add to its offset there; None if the nodes have to see it.

    Where a tracked node has other offsets than the root, as an image's file has, only the nodes know which.
    """
    shifts = _shifts(root)
    found: list[tuple[Marks, int]] = []
    for node in written_nodes(root):
        for tracker in node.trackers:
            marks = tracker.marks() if node in shifts else None
            if marks is None:
                return None
            found.append((marks, shifts[node]))
    return tuple(found) if len(found) <= MAX_MARKS else None


def in_step_of(root: BlockNode) -> InStep | None:
    """By what a write to ``root`` goes to another disk, too; of several the first, as the others are marked."""
    for node in written_nodes(root):
        for tracker in node.trackers:
            if tracker.in_step is not None:
                return tracker.in_step
    return None


def keepers_of(root: BlockNode) -> tuple[Keeper, ...] | None:
    """Who keeps what a write to ``root`` changes; None if the nodes have to see to it."""
    shifts = _shifts(root)
    found: list[Keeper] = []
    for node in written_nodes(root):
        keeper = node.keeper()
        if keeper is not None:
            if shifts.get(node) != 0 or (_old_blocks is not None and not isinstance(keeper.old, _old_blocks.OldBlocks)):
                return None
            found.append(keeper)
    return tuple(found) if len(found) <= MAX_KEEPERS else None


def _shifts(root: BlockNode) -> dict[BlockNode, int]:
    """The nodes that show the root's data in its order, and what to add to its offset there."""
    shifts = {root: 0}
    node, shift = root, 0
    while True:
        below = (node.filtered, 0) if node.is_filter else node.linear_child() if node.is_transparent else None
        if below is None or below[0] is None:
            return shifts
        node, shift = below[0], shift + below[1]
        shifts[node] = shift

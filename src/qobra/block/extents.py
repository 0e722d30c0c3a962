"""Where the bytes of a node live: extents (one node's answer) and runs (resolved down to the leaves)."""

from __future__ import annotations

from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple

    from qobra.block.node import BlockNode
else:
    from qobra.records import NamedTuple

# Kinds of extents.
DATA = 0
"""Raw bytes at ``offset`` of ``child`` (of the node itself where it is a leaf)."""
ZERO = 1
"""Reads as zeroes. ``child`` and ``offset`` say where space is kept for it, if it is."""
ABSENT = 2
"""Nothing here: ask the backing child, zeroes where there is none."""
COMPUTED = 3
"""Ask this node's :meth:`BlockNode.read_computed`: compressed, encrypted, filtered."""

# Flags of extents.
WRITABLE = 1
"""A write may go straight to that place: it is allocated, not shared, and needs no metadata change."""
COMPRESSED = 2
"""A compressed cluster."""
UNALLOCATED = 4
"""DATA to be read like any other, of which its protocol says that no space is allocated for it."""
ALLOCATED = 8
"""ZERO that space is allocated for, as its protocol or the node that it is a part of says."""

MAX_DEPTH = 512
"""Nodes that may lie on one another; a longer backing chain is refused."""


class Extent(NamedTuple):
    """A run of ``length`` bytes that one node answers for; extents of a map follow one another without gaps."""

    length: int
    kind: int
    child: BlockNode | None = None
    offset: int = 0
    flags: int = 0


class Run(NamedTuple):
    """``length`` bytes from ``start`` of the resolved node, on ``leaf`` at ``offset`` (DATA, or ZERO with space).

    For COMPUTED runs ``leaf`` is the node to ask and ``offset`` the position in it. ``depth`` counts the nodes that
    can hold data of their own (a filter or a raw node does not count) from the one resolved, 0, down to the one that
    answered; -1 when none did. ``leaf`` is None where nothing is known of a place.
    """

    start: int
    length: int
    kind: int
    leaf: BlockNode | None
    offset: int
    flags: int
    depth: int
    layer: BlockNode


def resolve(node: BlockNode, start: int, length: int, *, want_zero: bool = False, levels: int = MAX_DEPTH) -> list[Run]:
    """The runs on leaf nodes that ``length`` bytes from ``start`` of ``node`` are made of, merged where they touch.

    With ``want_zero`` the leaves are asked for their holes too, which costs system calls; without, a hole of a file
    is DATA. The range must lie inside the node. What none of the first ``levels`` nodes that hold data has, down the
    chain, is ABSENT: those below are not asked.
    """
    runs: list[Run] = []
    _resolve(node, start, length, start, 0, runs, want_zero, MAX_DEPTH, -1, levels)
    return runs


def read_run(run: Run, position: int, view: memoryview) -> None:
    """Fill ``view`` from ``position`` of ``run``, where its bytes live; tells of the read as the node above would."""
    leaf = run.leaf
    assert leaf is not None
    if run.layer is not leaf:
        leaf.debug_event("read_aio")
    leaf.read_into(run.offset + position, view)


def _resolve(
    node: BlockNode,
    offset: int,
    length: int,
    start: int,
    depth: int,
    runs: list[Run],
    want_zero: bool,
    budget: int,
    mask: int,
    levels: int,
) -> None:
    """``mask`` leaves out flags that what is above ``node`` takes away."""
    if budget <= 0:
        raise QobraError(f"Block graph under node '{node.node_name}' is deeper than {MAX_DEPTH} nodes")
    for extent in node.map(offset, length, want_zero):
        kind = extent.kind
        size = extent.length
        child = extent.child
        if kind == ABSENT:
            backing = node.backing
            inside = 0 if backing is None else max(0, min(size, backing.length - offset))
            if inside and depth + 1 >= levels:
                _append(runs, Run(start, inside, ABSENT, None, 0, 0, depth + 1, node))
            elif inside:
                assert backing is not None
                # What a backing node may write in place, a write to what is above may not.
                _resolve(
                    backing, offset, inside, start, depth + 1, runs, want_zero, budget - 1, mask & ~WRITABLE, levels
                )
            if inside < size:
                # Past the end of a short backing node it counts as that node's: what is below does not show through.
                below = -1 if backing is None else depth + 1
                _append(runs, Run(start + inside, size - inside, ZERO, None, 0, 0, below, node))
        elif kind == DATA and child is not None and child is not node:
            if child.is_leaf and not want_zero:
                _append(runs, Run(start, size, DATA, child, extent.offset, extent.flags & mask, depth, node))
            else:
                _resolve_data(node, extent, child, start, depth, runs, want_zero, budget, mask, levels)
        elif kind == COMPUTED:
            _append(runs, Run(start, size, COMPUTED, node, offset, extent.flags & mask, depth, node))
        else:
            _append(runs, Run(start, size, kind, child, extent.offset, extent.flags & mask, depth, node))
        offset += size
        start += size


def _resolve_data(
    node: BlockNode,
    extent: Extent,
    child: BlockNode,
    start: int,
    depth: int,
    runs: list[Run],
    want_zero: bool,
    budget: int,
    mask: int,
    levels: int,
) -> None:
    """What ``node`` has at an offset of ``child``, by what that has there."""
    inside = max(0, min(extent.length, child.length - extent.offset))
    if inside:
        # In a list of its own, where it cannot merge with what came before under another node.
        own: list[Run] = []
        within = levels - depth if node.is_transparent else MAX_DEPTH
        _resolve(child, extent.offset, inside, start, 0, own, want_zero, budget - 1, mask, within)
        # What lies under this node counts as this node's, and is only writable through both.
        for run in own:
            flags = run.flags & (extent.flags | ~WRITABLE)
            if run.kind == ZERO and not node.is_transparent:
                flags |= ALLOCATED  # a hole of its file, but a place that the node has for data
            holder = run.layer if node.is_transparent else node
            below = depth if not node.is_transparent else run.depth + depth if run.depth >= 0 else -1
            _append(runs, run._replace(flags=flags, depth=below, layer=holder))
    if inside < extent.length:
        # Past the end of the child: never written, so zeroes.
        flags = 0 if node.is_transparent else ALLOCATED
        _append(runs, Run(start + inside, extent.length - inside, ZERO, None, 0, flags, depth, node))


def _append(runs: list[Run], run: Run) -> None:
    if runs:
        last = runs[-1]
        if (
            last.kind == run.kind
            and last.leaf is run.leaf
            and last.flags == run.flags
            and last.layer is run.layer
            and last.depth == run.depth
            and (run.leaf is None or last.offset + last.length == run.offset)
        ):
            runs[-1] = last._replace(length=last.length + run.length)
            return
    runs.append(run)

"""Which iothread nodes belong to: all that are connected are in one, because a request may go through all of them.

A user that works in an iothread, or in the main loop, and cannot leave it (a device; an export with ``fixed-iothread``)
keeps what it is connected with there. Everything else goes along, and goes home when the last that was kept is gone.

A request is carried out in the thread that makes it: a device's iothread is that, and an export's threads keep to the
processors of theirs. So nodes need nothing done to them, and that it can be refused is all that is left.
"""

from __future__ import annotations

from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from qobra.block.backend import BlockBackend
    from qobra.block.graph import GraphState
    from qobra.block.node import BlockNode

    Placed = list[tuple[BlockNode, Any]]


def move(state: GraphState, node: BlockNode, iothread: Any, *, but: BlockBackend | None = None) -> None:
    """Take ``node`` and all that it is connected with into ``iothread`` (None: the main loop).

    Raises QobraError where a user other than ``but`` keeps them elsewhere.
    """
    nodes, roots = next(_parts(state, [node]))
    if any(kept is not iothread for kept in _kept(roots - {but})):
        raise _refusal()
    for each in nodes:
        each.iothread = iothread


def settle(old: GraphState, new: GraphState) -> Placed:
    """Where nodes have to go when ``new`` takes the place of ``old``.

    Raises QobraError where it connects users that are kept in different iothreads.
    """
    left = {node for root, (node, _perm, _shared) in old.roots.items() if new.roots.get(root, (None,))[0] is not node}
    placed: Placed = []
    for nodes, roots in _parts(new, new.nodes.values()):
        kept = _kept(roots)
        if any(iothread is not kept[0] for iothread in kept):
            raise _refusal()
        if kept:
            place = kept[0]
        elif left & nodes:
            place = None
        else:
            # New children go where their parent is, and new parents where their oldest child is.
            known = [node for node in new.nodes.values() if node in nodes and node in old.links]
            changed = [node for node in known if new.links[node] is not old.links[node]]
            place = (changed or known or list(nodes))[0].iothread
        placed += [(node, place) for node in nodes if node.iothread is not place]
    return placed


def _parts(state: GraphState, starts: Any) -> Iterator[tuple[set[BlockNode], set[BlockBackend]]]:
    """The connected parts of the graph that ``starts`` are in, with the roots that enter there.

    A job connects the nodes that it uses.
    """
    beside: dict[object, set[object]] = {}
    for parent, links in state.links.items():
        for child, _role in links.values():
            beside.setdefault(parent, set()).add(child)
            beside.setdefault(child, set()).add(parent)
    roots: dict[object, list[BlockBackend]] = {}
    for root, (node, _perm, _shared) in state.roots.items():
        roots.setdefault(node, []).append(root)
        job = root.job
        if job is not None:
            beside.setdefault(job, set()).add(node)
            beside.setdefault(node, set()).add(job)
    seen: set[object] = set()
    for start in starts:
        if start in seen:
            continue
        part, pending = {start}, [start]
        while pending:
            fresh = beside.get(pending.pop(), set()) - part
            part |= fresh
            pending += fresh
        seen |= part
        nodes = {node for node in part if node in state.links}
        yield nodes, {root for node in nodes for root in roots.get(node, ())}


def _kept(roots: set[BlockBackend]) -> list[Any]:
    return [root.iothread for root in roots if root.keeps_iothread]


def _refusal() -> QobraError:
    return QobraError("Cannot change iothread of active block backend")

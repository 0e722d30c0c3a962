"""The block graph: an immutable snapshot of nodes and links, changed by transactions.

A :class:`GraphState` is never modified. :meth:`Graph.change` builds a new one, computes from it the permissions that
every user ends up with, asks the nodes whose permissions change, and only then puts the new state in place; a
conflict, a loop or a refusal leaves everything as it was. ``BlockNode.children`` is the installed copy that requests
use; it is only written while everything is drained.

Nodes are not reference-counted: after each change, a node that neither the monitor owns nor a root can reach is
closed.
"""

from __future__ import annotations

from qobra.block import permissions
from qobra.block.extents import MAX_DEPTH
from qobra.block.frozen import FrozenLinks
from qobra.block.granting import check_bears, check_conflicts, combine, compute_permissions
from qobra.block.node import BlockNode
from qobra.errors import QobraError
from qobra.lean import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.backend import BlockBackend
    from qobra.block.granting import Link, User
    from qobra.block.iothreads import Placed
    from qobra.block.layer import BlockLayer

Links = dict[str, tuple[BlockNode, int]]
"""Name of a child to the child and its role."""


class GraphState:
    """One state of the graph. Do not modify."""

    __slots__ = ("ages", "links", "nodes", "permissions", "roots")

    def __init__(
        self,
        nodes: dict[str, BlockNode],
        links: dict[BlockNode, Links],
        roots: dict[BlockBackend, tuple[BlockNode, int, int]],
    ) -> None:
        self.nodes = nodes
        self.links = links
        self.roots = roots
        self.permissions: dict[tuple[BlockNode | BlockBackend, str], tuple[int, int]] = {}
        """(parent, child name) to (permissions taken, permissions shared); roots have the name ``root``."""
        self.ages: dict[Link, int] = {}
        """When each link came to be, as a count."""

    def parents(self, node: BlockNode) -> list[tuple[BlockNode, str]]:
        """The nodes that have ``node`` as a child, with the child's name."""
        return [
            (parent, name)
            for parent, links in self.links.items()
            for name, (child, _role) in links.items()
            if child is node
        ]


class Graph:
    """The current state, and the one way to another."""

    def __init__(self, layer: BlockLayer) -> None:
        self._layer = layer
        self.age = 0
        """Counts the links that came to be."""
        self.frozen = FrozenLinks()
        self.has_iothreads = False
        """Whether any node was ever taken into an iothread."""
        self.state = GraphState({}, {}, {})

    @property
    def nodes(self) -> dict[str, BlockNode]:
        """All nodes by name, oldest first."""
        return self.state.nodes

    def find(self, node_name: str) -> BlockNode | None:
        """The node of that name."""
        return self.state.nodes.get(node_name)

    def has(self, node: BlockNode) -> bool:
        """Whether ``node`` is in the graph, and not only being opened."""
        return self.state.nodes.get(node.node_name) is node

    def parents(self, node: BlockNode) -> list[tuple[BlockNode, str]]:
        """See :meth:`GraphState.parents`."""
        return self.state.parents(node)

    def check_replaceable(self, node: BlockNode, *, keep: tuple[BlockNode, ...] = ()) -> None:
        """Raise QobraError where a user of ``node``, but for those in ``keep``, needs it to stay what it has."""
        for parent, name in self.parents(node):
            if parent not in keep and self.frozen.holds(parent, name):
                raise QobraError(f"Cannot change '{name}' link to '{node.node_name}'")

    def roots_of(self, node: BlockNode) -> list[BlockBackend]:
        """The roots whose node is ``node``."""
        return [root for root, (target, _perm, _shared) in self.state.roots.items() if target is node]

    def is_read(self, node: BlockNode, *, beside: BlockNode) -> bool:
        """Whether anybody but ``beside`` relies on the data of ``node`` to be consistent."""
        state = self.state
        edges: list[tuple[BlockNode | BlockBackend, str]] = [(root, "root") for root in self.roots_of(node)]
        edges += [(parent, name) for parent, name in state.parents(node) if parent is not beside]
        return any(state.permissions[edge][0] & permissions.CONSISTENT_READ for edge in edges)

    def check_users(self, node: BlockNode, coming: list[User]) -> list[tuple[BlockNode, int, int]]:
        """Raise QobraError where those who are ``coming`` to use ``node`` are in conflict with those that it has.

        A user that it has already may come to ask for more. What lies under ``node`` is asked, too. Returns the nodes
        that were asked, from above to below, with what their users would take and share.
        """
        state = self.state
        users: list[User] = [
            (parent, child_name, *state.permissions[(parent, child_name)])
            for parent, child_name in state.parents(node)
            if not any(parent is user and child_name == name for user, name, _perm, _shared in coming)
        ]
        users += [(root, "root", *state.permissions[(root, "root")]) for root in self.roots_of(node)]
        newest = {(user, name, node): self.age + 1 + at for at, (user, name, *_rest) in enumerate(coming)}
        users += coming
        check_conflicts(node, users, {**newest, **state.ages})
        perm, shared = combine(users)
        check_bears(node, perm)
        asked_nodes = [(node, perm, shared)]
        had_users, node.has_users = node.has_users, True
        try:
            changed: dict[BlockNode, list[User]] = {}
            for name, (child, role) in state.links[node].items():
                asked = node.asks_of(name, role, perm, shared)
                if not node.force_share and asked != state.permissions[(node, name)]:
                    changed.setdefault(child, []).append((node, name, *asked))
            for child, users in changed.items():
                asked_nodes += self.check_users(child, users)
        finally:
            node.has_users = had_users
        return asked_nodes

    @contextmanager
    def change(self) -> Iterator[GraphChange]:
        """Collect changes in the body and apply them at its end, all or none."""
        change = GraphChange(self.state)
        yield change
        if change.touches_existing:
            with self._layer.drained():
                self._apply(change)
        else:
            self._apply(change)

    def _apply(self, change: GraphChange) -> None:
        old = self.state
        new = change.build()
        self._note_ages(new, change.attached)
        order = _children_first(new)
        gone = _prune(new, order)
        if gone:
            order = [node for node in order if node in new.links]
        cumulative = compute_permissions(new, order, change.recheck, change.refusals)
        placed: Placed = []
        if self.has_iothreads:
            from qobra.block.iothreads import settle

            placed = settle(old, new)
        granted: list[tuple[BlockNode, int, int]] = []
        # Parents before children: a file takes its locks once all above have agreed.
        try:
            for node in reversed(order):
                perm, shared = cumulative[node]
                known = node.node_name in old.nodes and node not in change.recheck
                if (perm, shared) != (node.perm, node.shared) or not known:
                    try:
                        node.prepare_permissions(perm, shared)
                    except QobraError as error:
                        error.node = node.node_name
                        raise
                    granted.append((node, perm, shared))
        except BaseException:
            for node, _perm, _shared in granted:
                node.set_permissions(node.perm, node.shared)
            raise
        self._install(old, new)
        self._adapt_lengths(old, new)
        for node, iothread in placed:
            node.iothread = iothread
        try:
            # What is closed may still write to what stays, so permissions are given up after that.
            self._layer.close_nodes(gone)
        finally:
            for node, perm, shared in granted:
                node.set_permissions(perm, shared)
            self._layer.changed()
            for node in order:
                if node.node_name not in old.nodes and not node.inactive:
                    node.activate()

    def _note_ages(self, state: GraphState, attached: list[tuple[BlockNode, str, BlockNode]]) -> None:
        before, ages = self.state.ages, state.ages
        keys: list[Link] = [*attached]
        for parent, links in state.links.items():
            keys += [(parent, name, child) for name, (child, _role) in links.items()]
        keys += [(root, "root", node) for root, (node, _perm, _shared) in state.roots.items()]
        # A node that takes another's place gets the other's users one after another, the latest first.
        moved = {(parent, name): age for (parent, name, _child), age in before.items()}
        keys.sort(key=lambda key: -moved.get(key[:2], 0))
        for key in keys:
            age = before.get(key) or ages.get(key)
            if age is None:
                self.age += 1
                age = self.age
            ages[key] = age

    def _install(self, old: GraphState, new: GraphState) -> None:
        self.state = new
        for node, links in new.links.items():
            if links is not old.links.get(node):
                node.children = {name: child for name, (child, _role) in links.items()}
                node.roles = {name: role for name, (_child, role) in links.items()}
                _adopt(node)
                if node in old.links:
                    node.children_changed()
        for root in old.roots.keys() | new.roots.keys():
            entry = new.roots.get(root)
            root.node = entry[0] if entry else None
            if entry:
                root.perm, root.shared = entry[1], entry[2]

    def _adapt_lengths(self, old: GraphState, new: GraphState) -> None:
        """What shows another child than before may have another length."""
        for node, links in new.links.items():
            before = old.links.get(node)
            if before is None or before is links or not (node.is_filter or node.is_transparent):
                continue
            for name, link in links.items():
                if name in before and before[name][0] is not link[0]:
                    length = node.length
                    node.child_resized(name)
                    if node.length != length:
                        self._layer.node_resized(node, length)


def _adopt(node: BlockNode) -> None:
    """A backing node that was opened with one that lay between becomes one that was opened with ``node``."""
    backing = node.children.get("backing")
    opener = backing.opened_by if backing is not None else None
    while opener is not None and opener is not node:
        opener = opener.opened_by
    if backing is not None and opener is node:
        backing.opened_by = node


class GraphChange:
    """A change that is being put together. Nothing happens before the ``with`` block of Graph.change ends."""

    def __init__(self, state: GraphState) -> None:
        self._old = state
        self._nodes = dict(state.nodes)
        self._links = dict(state.links)
        self._roots = dict(state.roots)
        self.touches_existing = False
        self.attached: list[tuple[BlockNode, str, BlockNode]] = []
        """Links (parent, name, child) of nodes that were just opened, in the order in which they came to be."""

        self.recheck: set[BlockNode] = set()
        """Nodes to ask again whether they bear their users, as something about them changes."""

        self.refusals: dict[BlockNode, str] = {}
        """What to say where a node in ``recheck`` does not bear its users, if not what the node says."""

    def insert(self, node: BlockNode) -> None:
        """Add a node that was just opened, with the children that it was opened with."""
        if node.node_name in self._nodes:
            raise QobraError(f"Duplicate nodes with node-name='{node.node_name}'")
        self._nodes[node.node_name] = node
        self._links[node] = {name: (child, node.roles[name]) for name, child in node.children.items()}

    def attach(self, parent: BlockNode, name: str, child: BlockNode, role: int) -> None:
        """Make ``child`` the child ``name`` of ``parent``, in place of any other."""
        self._links[parent] = {**self._links[parent], name: (child, role)}
        self._touch(parent)

    def detach(self, parent: BlockNode, name: str) -> None:
        """Take the child ``name`` from ``parent``."""
        self._links[parent] = {each: link for each, link in self._links[parent].items() if each != name}
        self._touch(parent)

    def replace(self, old: BlockNode, new: BlockNode, *, keep: tuple[object, ...] = ()) -> None:
        """Everyone who uses ``old`` uses ``new`` from now on, except the parents and roots in ``keep``.

        ``new`` itself and what lies under it keep their links to ``old``.
        """
        under = self._under(new)
        for parent, links in tuple(self._links.items()):
            if parent in under or parent in keep:
                continue
            if any(child is old for child, _role in links.values()):
                self._links[parent] = {
                    name: (new if child is old else child, role) for name, (child, role) in links.items()
                }
                self._touch(parent)
        for root, (node, perm, shared) in self._roots.items():
            if node is old and root not in keep:
                self._roots[root] = (new, perm, shared)
                self.touches_existing = True

    def _under(self, node: BlockNode) -> set[BlockNode]:
        """``node`` and all that can be reached from it."""
        reached: set[BlockNode] = set()
        pending = [node]
        while pending:
            each = pending.pop()
            if each not in reached:
                reached.add(each)
                pending += [child for child, _role in self._links[each].values()]
        return reached

    def set_root(
        self, root: BlockBackend, node: BlockNode | None, perm: int | None = None, shared: int | None = None
    ) -> None:
        """Let ``root`` enter at ``node`` (None: nowhere) with these permissions (None: the ones it has)."""
        if self._roots.get(root) is not None or node is None:
            self.touches_existing = True
        if node is None:
            self._roots.pop(root, None)
        else:
            self._roots[root] = (
                node,
                root.perm if perm is None else perm,
                root.shared if shared is None else shared,
            )

    def _touch(self, parent: BlockNode) -> None:
        if parent.node_name in self._old.nodes:
            self.touches_existing = True

    def build(self) -> GraphState:
        """The state that the changes lead to."""
        return GraphState(self._nodes, self._links, self._roots)


def reaches(start: BlockNode, goal: BlockNode) -> bool:
    """Whether ``goal`` is ``start`` or lies under it."""
    pending, seen = [start], {start}
    while pending:
        node = pending.pop()
        if node is goal:
            return True
        for child in node.children.values():
            if child not in seen:
                seen.add(child)
                pending.append(child)
    return False


def _children_first(state: GraphState) -> list[BlockNode]:
    """All nodes, each after its children. Raises QobraError for loops and for chains past MAX_DEPTH.

    Not recursive: a chain may be longer than Python's stack is deep.
    """
    depths: dict[BlockNode, int] = {}
    started: set[BlockNode] = set()
    for start in state.nodes.values():
        if not state.links[start]:
            depths[start] = 1
            continue
        pending = [start]
        while pending:
            node = pending[-1]
            if node in depths:
                pending.pop()
                continue
            below = [child for child, _role in state.links[node].values()]
            missing = [child for child in below if child not in depths]
            if not missing:
                pending.pop()
                depths[node] = depth = 1 + max((depths[child] for child in below), default=0)
                if depth > MAX_DEPTH:
                    raise QobraError(f"Block graph under node '{node.node_name}' is deeper than {MAX_DEPTH} nodes")
            elif node in started:
                raise _cycle(state)  # its children were looked at before, and one of them lies above it
            else:
                started.add(node)
                pending += missing
    return list(depths)


def _cycle(state: GraphState) -> QobraError:
    """The error for a graph with a loop, which names the latest link of it."""
    links = {node: [child for child, _role in links.values()] for node, links in state.links.items()}
    for (parent, name, child), _age in sorted(state.ages.items(), key=lambda entry: -entry[1]):
        pending, seen = [child], set()
        while pending and isinstance(parent, BlockNode):
            node = pending.pop()
            if node is parent:
                return QobraError(
                    f"Making '{child.node_name}' a {name} child of '{parent.node_name}' would create a cycle"
                )
            if node not in seen:
                seen.add(node)
                pending += links[node]
    raise AssertionError("a loop without links")


def _prune(state: GraphState, order: list[BlockNode]) -> list[BlockNode]:
    """Take what nobody can reach out of ``state`` and return it, parents first."""
    reached: set[BlockNode] = set()
    pending = [node for node in state.nodes.values() if node.monitor_owned]
    pending += [node for node, _perm, _shared in state.roots.values()]
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            pending += [child for child, _role in state.links[node].values()]
    if len(reached) == len(order):
        return []
    gone = [node for node in reversed(order) if node not in reached]
    for node in gone:
        del state.nodes[node.node_name]
        del state.links[node]
    return gone

"""Opening a node: what its driver is given, and what the nodes that are being opened together have asked for."""

from __future__ import annotations

from qobra.block import permissions
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.block.granting import User
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode, Options
else:
    Any = object


_ONLOOKER: Any = object()
"""A user who takes nothing, and thus is in nobody's way: none of whom a conflict would have to tell."""


class OpenedNodes(list[Any]):
    """Nodes that are being opened, which take the permissions that they will need before they read anything.

    So an image that somebody else is writing is refused before its metadata is looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[BlockNode, list[User]] = {}
        """Those who are coming to use nodes that were there before."""
        self._prepared: set[BlockNode] = set()
        """Nodes that were there before and are ready for more than they have granted."""
        self.links: list[tuple[BlockNode, str, BlockNode]] = []
        """(parent, name, child), in the order in which they came to be."""

    def look_at(self, layer: BlockLayer, node: BlockNode) -> None:
        """Somebody who asks for nothing looks at ``node`` before it becomes a child: filters that nobody used begin
        to guard what they show. Raises QobraError where others object to that."""
        if layer.graph.has(node):
            layer.graph.check_users(node, [(_ONLOOKER, "root", 0, permissions.ALL)])

    def admit(self, layer: BlockLayer, node: BlockNode, asked: dict[str, tuple[int, int]]) -> None:
        """Let ``node`` use the children that ``asked`` names: what it takes of each, and what it shares.

        Raises QobraError where others who use them object, or what lies below.
        """
        known = {node.children[name]: None for name in asked if layer.graph.has(node.children[name])}
        for child in known:
            coming = {user[:2]: user for user in self._asked.get(child, [])}
            coming |= {(node, name): (node, name, *asked[name]) for name in asked if node.children[name] is child}
            self._asked[child] = [*coming.values()]
        for child in known:
            for each, perm, shared in layer.graph.check_users(child, self._asked[child]):
                self._prepared.add(each)
                each.prepare_permissions(perm, shared)
        for name, (perm, shared) in asked.items():
            child = node.children[name]
            if child not in known:
                child.prepare_permissions(child.perm | perm, child.shared & shared)
                self._take(layer, child, perm, shared)

    def _take(self, layer: BlockLayer, node: BlockNode, perm: int, shared: int) -> None:
        """``node``, which is being opened too, gets permissions, and asks its own children for what it needs then."""
        before = {below: node.asks_of(below, role, node.perm, node.shared) for below, role in node.roles.items()}
        node.has_users = True
        node.set_permissions(node.perm | perm, node.shared & shared)
        if node.is_leaf:
            node.invalidate_cache()  # it may have changed until the locks were taken
        now = {below: node.asks_of(below, role, node.perm, node.shared) for below, role in node.roles.items()}
        asked = {below: (perm, node.lets(shared)) for below, (perm, shared) in now.items()}
        self.admit(layer, node, {below: each for below, each in asked.items() if now[below] != before[below]})

    def withdraw(self) -> None:
        """It came to nothing: nodes that were there before get back what they had."""
        for node in self._prepared:
            node.set_permissions(node.perm, node.shared)


def with_inherited(inherited: Options, options: Options) -> Options:
    """``options`` of a child, and what it takes from its parent where it says nothing; each cache option by itself."""
    result = {**inherited, **options}
    if isinstance(inherited.get("cache"), dict) and isinstance(options.get("cache"), dict):
        result["cache"] = {**inherited["cache"], **options["cache"]}
    return result


class Opening:
    """What a driver's :meth:`BlockNode.open` gets: the options, and the way to children."""

    def __init__(self, node: BlockNode, layer: BlockLayer, options: Options, opened: list[BlockNode]) -> None:
        self.node = node
        self.options = options
        self._layer = layer
        self._opened = opened

    def child(
        self, name: str, role: int, *, required: bool = True, parent_options: Options | None = None
    ) -> BlockNode | None:
        """Open (or look up) the child that the option ``name`` names and attach it with ``role``.

        Raises QobraError where it is required and missing. None for an absent or null optional one.
        """
        reference = self.options.get(name)
        if reference is None:
            if required:
                raise QobraError(f'A block device must be specified for "{name}"')
            return None
        return self.attach(name, role, reference, parent_options)

    def attach(self, name: str, role: int, reference: str | Options, inherit: Options | None = None) -> BlockNode:
        """Attach the node that ``reference`` (a node name, or options to open) stands for as child ``name``."""
        self.check_cycle(name, reference)
        child = self._layer.opener.open_reference(
            reference, self._opened, inherit if inherit is not None else self.inherited(role)
        )
        if isinstance(reference, dict) and child.opened_by is None:
            child.opened_by = self.node
        self.node.children[name] = child
        self.node.roles[name] = role
        if isinstance(self._opened, OpenedNodes):
            self._opened.links.append((self.node, name, child))
            perm, shared = self.node.asks_of(name, role, 0, permissions.ALL)
            self._opened.admit(self._layer, self.node, {name: (perm, self.node.lets(shared))})
        return child

    def check_cycle(self, name: str, reference: str | Options) -> None:
        """Raise QobraError where ``reference`` names a node that is only being opened, for this one to be part of."""
        if isinstance(reference, str) and (
            reference == self.node.node_name or self._layer.opener.is_unfinished(reference)
        ):
            raise QobraError(f"Making '{reference}' a {name} child of '{self.node.node_name}' would create a cycle")

    def inherited(self, role: int) -> Options:
        """The options that a child takes from this node unless it sets its own."""
        return inherited_options(self.options, role)


def inherited_options(options: Options, role: int) -> Options:
    """What a child with ``role`` takes from the ``options`` of its parent unless it sets its own."""
    inherited: Options = {}
    if "cache" in options:
        inherited["cache"] = options["cache"]
    if options.get("force-share"):
        inherited["force-share"] = True
    if role & permissions.ROLE_COW:
        inherited["read-only"] = True
        inherited["auto-read-only"] = False
    else:
        for key in ("read-only", "auto-read-only"):
            if key in options:
                inherited[key] = options[key]
        # A format passes on the discards that it wants; only the top decides whether there are any.
        inherited["discard"] = "unmap"
    return inherited

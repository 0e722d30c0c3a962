"""Opening a node: what its driver is given, and what the nodes that are being opened together have asked for."""

from __future__ import annotations

from qobra.block import permissions
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.block.graph import User
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode, Options
else:
    Any = object


class OpenedNodes(list[Any]):
    """Nodes that are being opened, which take the permissions that they will need before they read anything.

    So an image that somebody else is writing is refused before its metadata is looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[BlockNode, list[User]] = {}
        """Those who are coming to use nodes that were there before."""

    def admit(self, layer: BlockLayer, node: BlockNode, name: str, perm: int, shared: int) -> None:
        """Let ``node`` use its child ``name``. Raises QobraError where others who use it object, or what lies below."""
        child = node.children[name]
        if layer.graph.find(child.node_name) is child:
            coming = [user for user in self._asked.get(child, []) if user[:2] != (node, name)]
            self._asked[child] = coming = [*coming, (node, name, perm, shared)]
            layer.graph.check_users(child, coming)
        child.prepare_permissions(child.perm | perm, child.shared & shared)
        if child in self._asked:
            return
        before = {below: child.asks_of(below, role, child.perm, child.shared) for below, role in child.roles.items()}
        child.has_users = True
        child.set_permissions(child.perm | perm, child.shared & shared)
        if child.is_leaf:
            child.invalidate_cache()  # it may have changed until the locks were taken
        for below, role in child.roles.items():
            asked = child.asks_of(below, role, child.perm, child.shared)
            if asked != before[below]:
                self.admit(layer, child, below, asked[0], permissions.ALL if child.force_share else asked[1])

    def withdraw(self) -> None:
        """It came to nothing: nodes that were there before get back what they had."""
        for node in self._asked:
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
            perm, shared = self.node.asks_of(name, role, 0, permissions.ALL)
            self._opened.admit(self._layer, self.node, name, perm, permissions.ALL if self.node.force_share else shared)
        return child

    def check_cycle(self, name: str, reference: str | Options) -> None:
        """Raise QobraError where ``reference`` names a node that is only being opened, for this one to be part of."""
        if isinstance(reference, str) and (
            reference == self.node.node_name or self._layer.opener.is_unfinished(reference)
        ):
            raise QobraError(f"Making '{reference}' a {name} child of '{self.node.node_name}' would create a cycle")

    def inherited(self, role: int) -> Options:
        """The options that a child takes from this node unless it sets its own."""
        from qobra.block.reopen import inherited_options

        return inherited_options(self.options, role)

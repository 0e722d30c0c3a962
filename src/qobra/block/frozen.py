"""Links of the graph that a job, or a filter, needs as they are: users are refused to change them."""

from __future__ import annotations

from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.job.block_job import BlockJob
    from qobra.block.node import BlockNode


class FrozenLinks:
    """Which links are held, and by whom. To be used inside the strand."""

    def __init__(self) -> None:
        self._links: set[tuple[BlockJob | BlockNode, BlockNode, str]] = set()
        """(owner, parent, child name)."""

    def freeze(self, owner: BlockJob | BlockNode, top: BlockNode, bottom: BlockNode) -> None:
        """See to it that nobody else changes the chain from ``top`` down to ``bottom`` until ``owner`` thaws it."""
        self._links |= {(owner, node, name) for node, name in _links(top, bottom)}

    def check_chain(self, top: BlockNode, bottom: BlockNode) -> None:
        """Raise QobraError where somebody needs a link from ``top`` down to ``bottom``: it cannot be had twice."""
        for node, name in _links(top, bottom):
            if self.holds(node, name):
                below = node.children[name].node_name
                raise QobraError(f"Cannot change '{name}' link from '{node.node_name}' to '{below}'")

    def thaw(self, owner: BlockJob | BlockNode) -> None:
        """Let go of what :meth:`freeze` holds for ``owner``."""
        self._links = {link for link in self._links if link[0] is not owner}

    def holds(self, parent: BlockNode, name: str) -> bool:
        """Whether somebody needs the child ``name`` of ``parent`` to stay what it is."""
        return any(node is parent and link == name for _owner, node, link in self._links)

    def check(self, parent: BlockNode, name: str) -> None:
        """Raise QobraError where somebody needs the child ``name`` of ``parent`` to stay what it is."""
        if self.holds(parent, name):
            child = parent.children[name]
            raise QobraError(f"Cannot change frozen '{name}' link from '{parent.node_name}' to '{child.node_name}'")


def _links(top: BlockNode, bottom: BlockNode) -> Iterator[tuple[BlockNode, str]]:
    """The links from ``top`` down to ``bottom``: a node and the name of its child."""
    node: BlockNode | None = top
    while node is not None and node is not bottom:
        below = node.filtered if node.is_filter else node.backing
        for name, child in node.children.items():
            if child is below:
                yield node, name
        node = below

"""Images one after another, or a part of one, as a single source to copy from."""

from __future__ import annotations

from qobra.block.extents import DATA, ZERO, Extent
from qobra.block.node import BlockNode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from qobra.block.layer import BlockLayer

SECTOR = 512


def disk_size(node: BlockNode) -> int:
    """The size that a guest sees: whole sectors, the last one filled up with zeroes."""
    return -(-node.length // SECTOR) * SECTOR


def joined(layer: BlockLayer, nodes: Sequence[BlockNode]) -> BlockNode:
    """The nodes one after another; one alone, of whole sectors, as it is."""
    if len(nodes) == 1 and nodes[0].length == disk_size(nodes[0]):
        return nodes[0]
    return Pieces(layer, [(node, 0, disk_size(node)) for node in nodes])


class Pieces(BlockNode):
    """Shows ``pieces``, each ``(node, offset, length)``, one after another.

    What lies past a node's end is zero, and so is a piece that has None for its node.

    It stays outside of the graph: whoever makes it holds the nodes.
    """

    driver = "pieces"

    def __init__(self, layer: BlockLayer, pieces: Sequence[tuple[BlockNode | None, int, int]]) -> None:
        super().__init__(layer, "#pieces", {"read-only": True})
        self._pieces = [piece for piece in pieces if piece[2]]
        self.children = {str(number): node for number, (node, _, _) in enumerate(pieces) if node is not None}
        self.length = sum(length for _node, _offset, length in pieces)

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        extents = []
        end = offset + length
        start = 0
        for node, base, size in self._pieces:
            low, high = max(offset, start), min(end, start + size)
            if low < high:
                place = base + low - start
                inside = max(0, min(high - low, node.length - place)) if node is not None else 0
                if inside:
                    extents.append(Extent(inside, DATA, node, place))
                if inside < high - low:
                    extents.append(Extent(high - low - inside, ZERO))
            start += size
        return extents

"""What a root has resolved, flat: guest offset to place, for the hot loops.

A page of the table is an ``array('q')`` with an entry for each unit of 64 KiB (or the root's cluster size):

====================  ==================================================================================
0                     not known: resolve it
1                     reads as zeroes
``host | leaf << 1``  raw bytes at ``host`` (a multiple of 512) of ``leaves[leaf]``; leaves count from 1
the same, ``| 1``     and a write may go straight there
====================  ==================================================================================

Whoever moves data calls :meth:`BlockNode.moved`, which drops the entries that it touches; a change of the graph, or of
what must be told of writes, drops everything (:meth:`refresh`).
"""

from __future__ import annotations

import threading
from array import array

from qobra.block.extents import ABSENT, DATA, WRITABLE, ZERO, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.node import BlockNode

PAGE_BITS = 13
PAGE_ENTRIES = 1 << PAGE_BITS
MAX_PAGES = 512
"""Pages that a table keeps: 32 MiB, 256 GiB of guest space at 64 KiB."""

_EMPTY = bytes(8 * PAGE_ENTRIES)


class ResolvedTable:
    """The table of one root. Lookups take no lock; filling and dropping do."""

    def __init__(self, root: BlockNode) -> None:
        self.root = root
        cluster = root.cluster_size()
        self.unit_bits = cluster.bit_length() - 1 if cluster >= 4096 else 16
        self.pages: dict[int, array[int]] = {}
        self.fds: list[int] = [-1]
        """File descriptor by leaf number; number 0 is not used."""
        self.linear: tuple[int, int] | None = None
        """(file descriptor, offset to add) where the whole root lies in one piece, else None."""
        self.writable = False
        """Whether a WRITABLE place may be written past the nodes' write methods."""
        self._leaves: list[BlockNode] = []
        self._sequence = 0
        self._lock = threading.Lock()
        self._watched: list[BlockNode] = []
        self.generation = -1
        self.refresh()

    def refresh(self) -> None:
        """Start anew after a change of the graph or of who is told of writes."""
        with self._lock:
            self.generation = self.root.layer.generation
            self._sequence += 1
            self.pages = {}
            self.fds = [-1]
            self._leaves = []
            self._unwatch()
            path = _path(self.root)
            for node in path:
                node.tables = (*node.tables, self)
                self._watched.append(node)
            self.writable = all(node.plain_writes() for node in _written(self.root))
            self.linear = self._find_linear()

    def close(self) -> None:
        """Let go of the nodes."""
        with self._lock:
            self._unwatch()
            self.pages = {}

    def drop(self, offset: int, length: int) -> None:
        """Forget ``length`` bytes from ``offset``; they live elsewhere now."""
        with self._lock:
            self._sequence += 1
            first = offset >> self.unit_bits
            last = (offset + length - 1) >> self.unit_bits
            if last - first > 4 * PAGE_ENTRIES:
                self.pages = {}
                return
            for number in range(first >> PAGE_BITS, (last >> PAGE_BITS) + 1):
                page = self.pages.get(number)
                if page is None:
                    continue
                low = max(first - (number << PAGE_BITS), 0)
                high = min(last - (number << PAGE_BITS), PAGE_ENTRIES - 1) + 1
                page[low:high] = array("q", _EMPTY[: 8 * (high - low)])

    def fill(self, offset: int, length: int) -> None:
        """Resolve the units that ``length`` bytes from ``offset`` touch, and keep what is plain."""
        unit = 1 << self.unit_bits
        start = offset & -unit
        end = min(-(-(offset + length) // unit) * unit, self.root.length)
        sequence = self._sequence
        if end <= start:
            return
        runs = resolve(self.root, start, end - start)
        with self._lock:
            if sequence != self._sequence:
                return  # something moved meanwhile; what was resolved may be stale
            for run in runs:
                if run.kind == DATA and run.leaf is not None and run.leaf.is_leaf:
                    leaf = self._leaf_number(run.leaf)
                    if not leaf:
                        continue
                    tag = leaf << 1 | (1 if run.flags & WRITABLE and self.writable else 0)
                elif run.kind in (ZERO, ABSENT):
                    leaf = tag = 0
                else:
                    continue
                # Only whole units: the last one may be cut short by the end of the root.
                low = -(-run.start // unit) * unit
                high = run.start + run.length
                if high != self.root.length:
                    high = high & -unit
                host = run.offset + (low - run.start)
                if leaf and host & 511:
                    continue
                for position in range(low, high, unit):
                    number = position >> self.unit_bits
                    page = self.pages.get(number >> PAGE_BITS)
                    if page is None:
                        if len(self.pages) >= MAX_PAGES:
                            self.pages.pop(next(iter(self.pages)))
                        page = self.pages[number >> PAGE_BITS] = array("q", _EMPTY)
                    page[number & (PAGE_ENTRIES - 1)] = host + position - low | tag if leaf else 1

    def _leaf_number(self, leaf: BlockNode) -> int:
        """The number of ``leaf``, a new one if it is new; 0 if it wants aligned requests or there are too many."""
        if leaf.request_alignment > 1:
            return 0
        if leaf in self._leaves:
            return self._leaves.index(leaf) + 1
        if len(self._leaves) >= 254:
            return 0
        self._leaves.append(leaf)
        self.fds.append(leaf.fd)
        return len(self._leaves)

    def _find_linear(self) -> tuple[int, int] | None:
        node, base = self.root, 0
        while node.is_transparent:
            step = node.linear_child()
            if step is None:
                return None
            node, offset = step
            base += offset
        return (node.fd, base) if node.is_leaf and node.request_alignment == 1 else None

    def _unwatch(self) -> None:
        for node in self._watched:
            node.tables = tuple(table for table in node.tables if table is not self)
        self._watched = []


def _path(root: BlockNode) -> list[BlockNode]:
    """Every node under ``root`` that keeps the guest's offsets: what moves in them moves for the root."""
    path = []
    node: BlockNode | None = root
    while node is not None:
        path.append(node)
        node = node.backing or (node.children.get("file") if node.is_transparent else None)
    return path


def _written(root: BlockNode) -> list[BlockNode]:
    """The nodes that a write to ``root`` passes through."""
    nodes = []
    pending = [root]
    while pending:
        node = pending.pop()
        nodes.append(node)
        pending.extend(child for name, child in node.children.items() if name != "backing" or node.is_filter)
    return nodes

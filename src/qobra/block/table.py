"""What a root has resolved, flat: guest offset to place, for the hot loops.

A page of the table is an ``array('q')`` with an entry for each unit of 64 KiB (or the root's cluster size, but 4 KiB at
least):

====================  ==================================================================================
0                     not known: resolve it
1                     reads as zeroes
``host | leaf << 1``  raw bytes at ``host`` (a multiple of 512) of ``leaves[leaf]``; leaves count from 1
the same, ``| 1``     and a write may go straight there, if the table is ``writable``
the same, negative    in a file that bypasses the page cache, which only loops without the GIL can use from here: the
                      sign bit is set, and whole blocks of the leaf's ``request_alignment`` are at ``host``
====================  ==================================================================================

Behind the last entry of a page is the page's number.

Whoever moves data calls :meth:`BlockNode.moved`, which drops the entries that it touches, or puts the new ones in their
place where nobody has to wait for that; what is held above the node that data moved in keeps its place. Loops without
the GIL put entries themselves where a driver lends them new clusters (:meth:`BlockNode.lend_reserve`). After a change
of the graph, or of what must be told of writes, the table is looked over (:meth:`refresh`); it begins anew where
something else lies under the root than before, filters that show their child as it is aside.

A write that goes straight to its place is marked afterwards, and before its slot is left, in the dirty bitmaps of the
nodes that it passes by (:attr:`ResolvedTable.marks`).

Loops without the GIL read the same pages through :attr:`ResolvedTable.places`, from which they may still know a page
that the table has dropped: it is kept until they have left their slots.
"""

from __future__ import annotations

from array import array

from qobra.block.extents import ABSENT, DATA, WRITABLE, ZERO, resolve
from qobra.block.table_graph import basis, in_step_of, keepers_of, marks_of, path, written_nodes
from qobra.errors import QobraError
from qobra.lean import Lock, deque
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from qobra.block.contracts import Keeper, Marks
    from qobra.block.node import BlockNode
    from qobra.block.protocol._folios import Folios
    from qobra.block.table_graph import Basis
    from qobra.native.places import Places

PAGE_BITS = 13
PAGE_ENTRIES = 1 << PAGE_BITS
MAX_PAGES = 512
"""Pages that a table keeps: 32 MiB, 256 GiB of guest space at 64 KiB. Of those whose numbers leave the same rest when
divided by this, it keeps the one that was filled last."""

_DIRECT = -(1 << 63)
_EMPTY = bytes(8 * PAGE_ENTRIES)
_MOVES = 64
"""Moves that are remembered, so that what was resolved meanwhile elsewhere is kept."""
_compiled = compiled("places")
_watching = Lock()
"""Taken by whoever changes which tables watch a node."""


class ResolvedTable:
    """The table of one root. Lookups take no lock; filling and dropping do."""

    def __init__(self, root: BlockNode) -> None:
        self.root = root
        self.unit_bits = _unit_bits(root)
        self.pages: dict[int, array[int]] = {}
        self.fds: list[int] = [-1]
        """File descriptor by leaf number; number 0 is not used."""
        self.folios: dict[int, Folios] = {}
        """What makes small writes, by file descriptor."""
        self.linear: tuple[int, int, Folios | None] | None = None
        """(file descriptor, offset to add, what makes small writes) where the root lies in one piece, else None."""
        self.writable = False
        """Whether a WRITABLE place may be written past the nodes, after :meth:`keep` and with :meth:`mark`."""
        self.marks: tuple[tuple[Marks, int], ...] = ()
        """What such a write is marked in, with what is to be added to its offset."""
        self.keepers: tuple[Keeper, ...] = ()
        """Who keeps what such a write changes."""
        self.highest = 0
        """The end of the highest such write; the nodes get to know it by :meth:`settle`."""
        self.places: Places | None = None
        """The same for loops without the GIL, new with each generation; None where there are no compiled forms."""
        self._leaves: list[BlockNode] = []
        self._basis: Basis = []
        """What the pages that there are were found in."""
        self._numbers: dict[int, int] = {}
        """The numbers of the pages by the rest that they leave when divided by MAX_PAGES."""
        self.fruitless = 0
        """How many ranges in a row were resolved for a request and were not plain."""
        self._sequence = 0
        """Counts what moved."""
        self._moves: deque[tuple[int, int]] = deque(maxlen=_MOVES)
        """The first and the last unit of each of the last moves."""
        self._under: dict[BlockNode, set[BlockNode]] = {}
        """A node with all that is under it."""
        self._lock = Lock()
        self._watched: list[BlockNode] = []
        self.generation = -1
        self.refresh(root)

    def may_follow(self, root: BlockNode) -> bool:
        """Whether the table can become that of ``root``, which took the place of its own."""
        return self.unit_bits == _unit_bits(root)

    def refresh(self, root: BlockNode) -> None:
        """Be the table of ``root``, after a change of the graph or of who is told of writes."""
        nodes = path(root)
        for node in nodes:
            if self._watch(node) or node is not root:
                node.recall_reserve()
        with self._lock:
            generation = root.layer.generation
            if self.generation == generation and self.root is root:
                return  # another thread was first
            self.settle()
            self.highest = 0
            self._under = {}
            self._unwatch(nodes)
            self.root = root
            found = basis(root)
            if found != self._basis:
                self._note_move(0, root.length)
                self._drop_pages()
                self._leaves = []
                self._basis = found
            self.fds = [-1, *(leaf.fd for leaf in self._leaves)]
            self.folios = {leaf.fd: leaf.folios for leaf in self._leaves if leaf.folios is not None}
            marks, keepers = marks_of(root), keepers_of(root)
            self.writable = (
                marks is not None and keepers is not None and all(node.plain_writes() for node in written_nodes(root))
            )
            self.marks, self.keepers = marks or (), keepers or ()
            self.linear = self._find_linear()
            if self.linear is not None and self.linear[2] is not None:
                self.folios[self.linear[0]] = self.linear[2]
            self.places = self._make_places(generation)
            # Last, as who finds it current does not ask for the lock.
            self.generation = generation
        root.lend_reserve(self)

    def _make_places(self, generation: int) -> Places | None:
        if _compiled is None:
            return None
        places: Places = _compiled.Places(
            generation,
            self.root.length,
            self.unit_bits,
            self.writable,
            self.linear,
            self.marks,
            [keeper.old for keeper in self.keepers],
            in_step_of(self.root) if self.writable else None,
        )
        for leaf in self._leaves:
            places.add_leaf(leaf.fd, leaf.request_alignment, leaf.folios)
        for number, page in self.pages.items():
            places.put_page(number, page)
        return places

    def close(self) -> None:
        """Let go of the nodes."""
        with self._lock:
            self.settle()
            self._unwatch([])
            self._drop_pages()

    def settle(self) -> None:
        """Have the nodes know how far was written past them."""
        highest = max(self.highest, self.places.highest if self.places is not None else 0)
        if highest:
            note_writes(self.root, highest)

    def keep(self, offset: int, length: int) -> bool:
        """See that a range may be written past the nodes; False if only the nodes can."""
        return all(keeper.keep(offset, length) for keeper in self.keepers)

    def mark(self, offset: int, length: int) -> None:
        """A write past the nodes has been made, or some of it may have been. To be called before its slot is left."""
        for marks, shift in self.marks:
            marks.mark(offset + shift, length)

    def drop(self, offset: int, length: int, node: BlockNode) -> bool:
        """Forget where ``length`` bytes from ``offset`` are in ``node`` and below; whether some of that was known."""
        with self._lock:
            self._note_move(offset, length)
            first = offset >> self.unit_bits
            last = (offset + length - 1) >> self.unit_bits
            if last - first > 4 * PAGE_ENTRIES:
                self._drop_pages()
                return False
            above = self._leaves_above(node)
            known = False
            for number, low, high in self._parts(first, last):
                page = self.pages[number]
                if above:
                    for index in range(low, high):
                        entry = page[index]
                        if entry and entry >> 1 & 255 not in above:
                            page[index] = 0
                            known = True
                elif any(page[low:high]):
                    known = True
                    if self.places is not None:
                        self.places.clear(number, low, high)
                    else:
                        page[low:high] = array("q", _EMPTY[: 8 * (high - low)])
            return known

    def look(self, offset: int, length: int) -> None:
        """:meth:`fill` where nobody waits for it."""
        if self.generation != self.root.layer.generation:
            return  # what is under the root now is not what the table is of
        try:
            self.fill(offset, length)
        except (OSError, QobraError):
            pass  # who asks for these bytes is told

    def _parts(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """The pages that there are of the units ``first`` to ``last``: (number, first entry, last entry + 1)."""
        for number in range(first >> PAGE_BITS, (last >> PAGE_BITS) + 1):
            if number in self.pages:
                base = number << PAGE_BITS
                yield number, max(first - base, 0), min(last - base, PAGE_ENTRIES - 1) + 1

    def _note_move(self, offset: int, length: int) -> None:
        self._sequence += 1
        self._moves.append((offset >> self.unit_bits, offset + length - 1 >> self.unit_bits))

    def _has_moved(self, since: int, first: int, last: int) -> bool:
        """Whether one of the units ``first`` to ``last`` may have moved since the sequence was ``since``."""
        missed = self._sequence - since
        if missed > len(self._moves):
            return True
        return any(low <= last and high >= first for low, high in list(self._moves)[len(self._moves) - missed :])

    def _leaves_above(self, node: BlockNode) -> set[int]:
        """The numbers of the leaves that are not under ``node``: what lies there was found on the way down to it."""
        under = self._under.get(node)
        if under is None:
            under = self._under[node] = set()
            pending = [node]
            while pending:
                each = pending.pop()
                if each not in under:
                    under.add(each)
                    pending.extend(each.children.values())
        return {number for number, leaf in enumerate(self._leaves, 1) if leaf not in under}

    def fill(self, offset: int, length: int) -> None:
        """Resolve the units that ``length`` bytes from ``offset`` touch, and keep what is plain."""
        unit = 1 << self.unit_bits
        start = offset & -unit
        end = min(-(-(offset + length) // unit) * unit, self.root.length)
        sequence, places = self._sequence, self.places
        linked = places.linked if places is not None else 0
        if end <= start:
            return
        runs = resolve(self.root, start, end - start)
        with self._lock:
            if places is not self.places:
                return
            if sequence != self._sequence and self._has_moved(
                sequence, start >> self.unit_bits, (end - 1) >> self.unit_bits
            ):
                return  # what was resolved may be stale
            alignment = 512
            for run in runs:
                if run.kind == DATA and run.leaf is not None and run.leaf.is_leaf:
                    leaf = self._leaf_number(run.leaf)
                    if not leaf:
                        continue
                    tag = leaf << 1 | (1 if run.flags & WRITABLE else 0)
                    alignment = 512
                    if run.leaf.request_alignment > 1:
                        tag |= _DIRECT
                        alignment = max(alignment, run.leaf.request_alignment)
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
                if leaf and host & (alignment - 1):
                    continue
                # A write past the end of the file has to be seen by its node, which reads zeroes from there.
                inside = low + (run.leaf.length - host & -unit) if leaf and run.leaf is not None else high
                middle = max(low, min(high, inside))
                self._put(low, middle, host | tag if leaf else 1, unit if leaf else 0, linked)
                if middle < high:
                    self._put(middle, high, host + middle - low | tag & -2, unit, linked)

    def _put(self, low: int, high: int, entry: int, step: int, linked: int) -> None:
        """Let the units from ``low`` up to ``high``, in bytes, have the entries that begin with ``entry``; not if loops
        have given some unit its place since they had ``linked`` of them."""
        bits = self.unit_bits
        first, end = low >> bits, (high + (1 << bits) - 1) >> bits
        while first < end:
            number = first >> PAGE_BITS
            stop = min(end, (number + 1) << PAGE_BITS)
            page = self.pages.get(number)
            if page is None:
                page = self._new_page(number)
            index, count = first & (PAGE_ENTRIES - 1), stop - first
            if self.places is not None:
                self.places.put(number, index, index + count, entry, step, linked)
            else:
                entries = range(entry, entry + step * count, step) if step else (entry,) * count
                page[index : index + count] = array("q", entries)
            entry += step * count
            first = stop

    def _new_page(self, number: int) -> array[int]:
        page = array("q", _EMPTY)
        page.append(number)
        self.pages.pop(self._numbers.get(number % MAX_PAGES, -1), None)
        self._numbers[number % MAX_PAGES] = number
        self.pages[number] = page
        if self.places is not None:
            self._keep(self.places.put_page(number, page))
        return page

    def _drop_pages(self) -> None:
        self.pages = {}
        self._numbers = {}
        if self.places is not None:
            self._keep(self.places.drop_pages())

    def _keep(self, dropped: Any) -> None:
        """Keep what a loop may have found until it has left its slot."""
        if dropped is not None:
            self.root.layer.flight.retire(lambda: _forget(dropped))

    def leaf_number(self, leaf: BlockNode) -> int:
        """:meth:`_leaf_number`, for the nodes."""
        with self._lock:
            return self._leaf_number(leaf)

    def _leaf_number(self, leaf: BlockNode) -> int:
        """The number of ``leaf``, a new one if it is new; 0 if nobody could use it or there are too many."""
        if leaf.request_alignment > 1 and self.places is None:
            return 0
        if leaf in self._leaves:
            return self._leaves.index(leaf) + 1
        if len(self._leaves) >= 254:
            return 0
        self._leaves.append(leaf)
        if leaf.folios is not None:
            self.folios[leaf.fd] = leaf.folios
        self.fds.append(leaf.fd)
        if self.places is not None:
            self.places.add_leaf(leaf.fd, leaf.request_alignment, leaf.folios)
        return len(self._leaves)

    def _find_linear(self) -> tuple[int, int, Folios | None] | None:
        node, base = self.root, 0
        while node.is_transparent:
            step = node.linear_child()
            if step is None:
                return None
            node, offset = step
            base += offset
        return (node.fd, base, node.folios) if node.is_leaf and node.request_alignment == 1 else None

    def _watch(self, node: BlockNode) -> bool:
        """Whether that is new."""
        with _watching:
            if self in node.tables:
                return False
            node.tables = (*node.tables, self)
            return True

    def _unwatch(self, keep: list[BlockNode]) -> None:
        with _watching:
            for node in self._watched:
                if node not in keep:
                    node.tables = tuple(table for table in node.tables if table is not self)
        self._watched = keep


def _unit_bits(root: BlockNode) -> int:
    cluster = root.cluster_size()
    # Smaller clusters lie side by side often enough for what guests write, but hardly ever for more.
    return max(cluster.bit_length() - 1, 12) if cluster else 16


def note_writes(node: BlockNode, end: int) -> None:
    """What the nodes' own write methods note: how far the node, and what it shows as it is, were written."""
    step: tuple[BlockNode, int] | None = (node, 0)
    while step is not None:
        node, shift = step
        end += shift
        node.highest_write_offset = max(node.highest_write_offset, end)
        node.written_around = True
        step = node.linear_child() if node.is_transparent else None


def _forget(_dropped: Any) -> None:
    """What was kept goes with the call that is made."""

"""The old data of blocks that a guest overwrites before they were copied: what makes a copy exact without a wait.

A write that comes before the copy of its cluster reads the few blocks that it is about to change into memory, and goes
on. Whoever copies the cluster later, or at that moment, puts them back into what was read (:meth:`OldBlocks.mend`). A
cluster is let go once the copy has all of what was kept of it (:meth:`OldBlocks.settle`), decided under one lock: a
write that came before is in the copy's hands, one that comes after changes what was read already.

The memory is bounded (``limit``). A write that finds no room has to see to the copy of its cluster itself.
"""

from __future__ import annotations

from qobra.block.bits import Bits
from qobra.lean import Lock
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BLOCK = 4096
"""Bytes of a block, the unit of what is kept."""
LONGEST_RUN = 64 << 10
"""Bytes that are to be read at a time."""


class PureOldBlocks:
    """What is kept of the old data of clusters that are still to be copied.

    Clusters have ``1 << shift`` bytes; at first those in ``ranges`` (offset, length) of a disk of ``length`` bytes are
    to be copied. At most ``capacity`` bytes are kept. Thread-safe. Ranges that the methods get begin where a cluster
    does, but for those of :meth:`missing` and :meth:`mend`.
    """

    def __init__(self, length: int, shift: int, capacity: int, ranges: Iterable[tuple[int, int]]) -> None:
        self._length = length
        self._shift = shift
        self.limit = capacity
        """Most bytes that are kept; with 0, nothing is any more."""
        self.off = False
        """Nobody need keep anything."""
        self._wanted = Bits((length >> shift) + 1)
        for start, size in ranges:
            self._wanted.set(start >> shift, (start + size - 1 >> shift) + 1)
        self._blocks: dict[int, bytes] = {}
        self._given: set[int] = set()
        self._zero: dict[int, bool] = {}
        """Clusters that read as zeroes but for their blocks, with whether that was given."""
        self._lock = Lock()

    @property
    def used(self) -> int:
        """Bytes that are kept."""
        return len(self._blocks) * BLOCK

    def get_ready(self) -> None:
        """Have memory ready for what will be kept, until nothing is any more: by a thread of idle priority.

        Here there is nothing to be got ready: memory comes as it is used.
        """

    def missing(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The blocks of a range whose old data has to be kept before they change, as (offset, length).

        Whoever is about to write reads them, whole, and has each kept. A run lies in one cluster.
        """
        runs: list[tuple[int, int]] = []
        if self.off:
            return runs
        with self._lock:
            for number in self._clusters(offset, length):
                if number not in self._wanted or number in self._zero:
                    continue
                start = max(offset, number << self._shift)
                end = min(offset + length, (number + 1) << self._shift, self._length)
                for block in range(start // BLOCK, -(-end // BLOCK)):
                    if block in self._blocks:
                        continue
                    at = block * BLOCK
                    size = min(BLOCK, self._length - at)
                    last, before = runs[-1] if runs else (0, 0)
                    if before and last + before == at and before < LONGEST_RUN and at % (1 << self._shift):
                        runs[-1] = (last, before + size)
                    else:
                        runs.append((at, size))
        return runs

    def keep(self, start: int, data: bytes | bytearray | memoryview) -> bool:
        """Keep the old data of whole blocks, unless it is kept or need not be; False if there is no room."""
        with self._lock:
            for position in range(0, len(data), BLOCK):
                at = start + position
                number = at >> self._shift
                if number not in self._wanted or number in self._zero or at // BLOCK in self._blocks:
                    continue
                if self.used + BLOCK > self.limit:
                    return False
                self._blocks[at // BLOCK] = bytes(data[position : position + BLOCK])
        return True

    def keep_zeroes(self, offset: int, length: int) -> bool:
        """Keep that these clusters read as zeroes, but for blocks that are kept; False if nothing is kept any more."""
        with self._lock:
            for number in self._clusters(offset, length):
                if number in self._wanted and number not in self._zero:
                    if self.limit <= 0:
                        return False
                    self._zero[number] = False
        return True

    def holds(self, offset: int, length: int) -> bool:
        """Whether anything is kept of these clusters."""
        with self._lock:
            return any(number in self._zero for number in self._clusters(offset, length)) or bool(
                self._kept(offset, length)
            )

    def runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """The clusters as (offset, length, whether the old data is all zeroes) for whoever copies them now."""
        runs: list[tuple[int, int, bool]] = []
        with self._lock:
            for number in self._clusters(offset, length):
                start = number << self._shift
                size = min(1 << self._shift, self._length - start)
                zero = number in self._zero and not self._kept(start, size)
                if zero:
                    self._zero[number] = True
                if runs and runs[-1][2] == zero:
                    runs[-1] = (runs[-1][0], start + size - runs[-1][0], zero)
                else:
                    runs.append((start, size, zero))
        return runs

    def mend(self, start: int, view: memoryview, given: bool) -> None:
        """Put what is kept into ``view``, which was read from ``start``; ``given``: the copy gets it from there."""
        end = min(start + len(view), self._length)
        with self._lock:
            for block in range(start // BLOCK, -(-end // BLOCK)):
                at = block * BLOCK
                low, high = max(start, at), min(end, at + BLOCK)
                data = self._blocks.get(block)
                if data is not None:
                    view[low - start : high - start] = data[low - at : high - at]
                    if given and high - low == len(data):
                        self._given.add(block)
                elif at >> self._shift in self._zero:
                    view[low - start : high - start] = bytes(high - low)

    def late(self, offset: int, length: int) -> list[tuple[int, bytes]]:
        """The blocks of these clusters that were not given yet: what the copy needs on top of what it has."""
        found: list[tuple[int, bytes]] = []
        with self._lock:
            for number in self._clusters(offset, length):
                start = number << self._shift
                end = min(start + (1 << self._shift), self._length)
                for block in range(start // BLOCK, -(-end // BLOCK)):
                    data = self._blocks.get(block)
                    if data is not None and block not in self._given:
                        found.append((block * BLOCK, data))
                        self._given.add(block)
                    elif data is None and not self._zero.get(number, True):
                        found.append((block * BLOCK, bytes(min(BLOCK, end - block * BLOCK))))
                if number in self._zero:
                    self._zero[number] = True
        return found

    def again(self, offset: int, length: int) -> None:
        """What was given of these clusters has not reached the copy."""
        with self._lock:
            self._given.difference_update(self._kept(offset, length))
            for number in self._clusters(offset, length):
                if number in self._zero:
                    self._zero[number] = False

    def settle(self, offset: int, length: int) -> bool:
        """Let these clusters go, whose copy has all that was given; False if there is more, see :meth:`late`."""
        with self._lock:
            if not self._given.issuperset(self._kept(offset, length)):
                return False
            if not all(self._zero.get(number, True) for number in self._clusters(offset, length)):
                return False
            self._let_go(offset, length)
        return True

    def release(self, offset: int, length: int) -> None:
        """Nobody wants the old data of these clusters."""
        with self._lock:
            self._let_go(offset, length)

    def clusters(self) -> list[int]:
        """The offsets of the clusters of which something is kept, in order."""
        with self._lock:
            numbers = {block * BLOCK >> self._shift for block in self._blocks}
            return [number << self._shift for number in sorted(numbers | set(self._zero))]

    def _clusters(self, offset: int, length: int) -> range:
        end = min(offset + length, self._length)
        return range(offset >> self._shift, (end - 1 >> self._shift) + 1 if end > offset else offset >> self._shift)

    def _kept(self, offset: int, length: int) -> set[int]:
        numbers = range(offset // BLOCK, -(-min(offset + length, self._length) // BLOCK))
        return {block for block in numbers if block in self._blocks} if self._blocks else set()

    def _let_go(self, offset: int, length: int) -> None:
        clusters = self._clusters(offset, length)
        self._wanted.clear(clusters.start, clusters.stop)
        for block in self._kept(offset, length):
            del self._blocks[block]
            self._given.discard(block)
        for number in list(self._zero) if self._zero else ():
            if number in clusters:
                del self._zero[number]


OldBlocks = PureOldBlocks
if not TYPE_CHECKING and (_compiled := compiled("old_blocks")) is not None:
    OldBlocks = _compiled.OldBlocks

"""Reference counts of a whole image in memory, one byte a cluster: for checking."""

from __future__ import annotations

import errno
import os
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.refcount import Counts

LARGE = 255
"""Counts from here on are kept aside."""
MAX_CLUSTERS = 1 << 28
"""The most clusters that are counted: 16 TiB in clusters of the usual size."""


class CompactCounts:
    """Counts of clusters ``0`` to ``len - 1``. Those from 255 on, which are rare, are kept aside."""

    def __init__(self, clusters: int) -> None:
        self.low = bytearray()
        """The counts, 255 standing for "see ``large``"."""
        self.large: dict[int, int] = {}
        self.grow(clusters)

    def __len__(self) -> int:
        return len(self.low)

    def get(self, cluster: int) -> int:
        """The count of a cluster, 0 past the end."""
        if cluster >= len(self.low):
            return 0
        count = self.low[cluster]
        return count if count < LARGE else self.large[cluster]

    def grow(self, clusters: int) -> None:
        """Have counts of so many clusters at least. Raises OSError where that is more than a check can hold."""
        if clusters > MAX_CLUSTERS:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.low.extend(bytes(max(0, clusters - len(self.low))))

    def add(self, first: int, count: int, weight: int = 1) -> None:
        """Count ``weight`` more references to each of ``count`` clusters from ``first``."""
        low = self.low
        end = first + count
        if count > 1 and weight < LARGE and low.count(0, first, end) == count:
            low[first:end] = bytes((weight,)) * count
            return
        for cluster in range(first, end):
            value = low[cluster] + weight
            if value < LARGE:
                low[cluster] = value
            else:
                self.large[cluster] = self.large.get(cluster, low[cluster]) + weight
                low[cluster] = LARGE

    def take_block(self, first: int, counts: Counts) -> None:
        """The counts from cluster ``first`` on are those of a refcount block; what is past the end is dropped."""
        size = min(len(counts), len(self.low) - first)
        if size <= 0:
            return
        if isinstance(counts, array):
            width = counts.itemsize
            # Host order: the low byte of each count, and the others to see whether there is more.
            raw = counts.tobytes()
            little = array("H", [1]).tobytes()[0] == 1
            lows = raw[::width] if little else raw[width - 1 :: width]
            self.low[first : first + size] = lows[:size]
            highs = (raw[at::width] for at in range(width) if at != (0 if little else width - 1))
            if all(not any(high) for high in highs) and LARGE not in lows:
                return
        else:
            self.low[first : first + size] = counts[:size]
            if LARGE not in counts:
                return
        for at in range(size):
            if counts[at] >= LARGE:
                self.low[first + at] = LARGE
                self.large[first + at] = counts[at]

    def last_used(self) -> int:
        """The highest cluster with a count above 0, -1 if there is none."""
        return len(self.low.rstrip(b"\0")) - 1


def differences(left: CompactCounts, right: CompactCounts, step: int = 1 << 14) -> list[int]:
    """The clusters whose counts differ, ascending. Both have the same length."""
    found: list[int] = []
    for start in range(0, len(left), step):
        ours, theirs = left.low[start : start + step], right.low[start : start + step]
        if ours != theirs:
            found += [start + at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    found += [
        cluster for cluster in left.large.keys() & right.large.keys() if left.large[cluster] != right.large[cluster]
    ]
    return sorted(found)

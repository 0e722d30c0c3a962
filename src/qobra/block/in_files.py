"""Data that lie in files, in the place of a buffer: whoever writes them to a file moves them there."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from qobra.block.copy.carrier import Carrier, Mender, Part
    from qobra.block.protocol._folios import Folios


class InFiles:
    """The bytes of ``parts``, one after another. Has a length and can be sliced, as a buffer can.

    ``carrier`` moves them. What ``mender`` knows better of the data, which are those from ``start`` of its disk, takes
    their place.
    """

    __slots__ = ("_ends", "_length", "_parts", "_start", "carrier", "mender")

    def __init__(self, parts: Sequence[Part], carrier: Carrier, mender: Mender | None = None, start: int = 0) -> None:
        self._parts = parts
        self._ends: list[int] | None = None
        self._length = sum(length for _fd, _offset, length in parts)
        self._start = start
        self.carrier = carrier
        self.mender = mender

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> InFiles:
        start, stop, _step = part.indices(self._length)
        inside: list[Part] = []
        if start < stop:
            # Many parts are taken in many slices, one after another.
            if self._ends is None:
                self._ends = list(accumulate(length for _fd, _offset, length in self._parts))
            index = bisect_right(self._ends, start)
            position = start
            while position < stop:
                fd, offset, length = self._parts[index]
                end = self._ends[index]
                inside.append((fd, offset + length - (end - position), min(stop, end) - position))
                position, index = end, index + 1
        return InFiles(inside, self.carrier, self.mender, self._start + start)

    def copy_to(self, fd: int, offset: int, folios: Folios | None = None) -> None:
        """Write them at ``offset`` of another file; what is past a part's file's end is zeroes. Small ones
        are written by its ``folios``.

        Raises OSError, :class:`.carrier.ReadFailed` where the parts cannot be read.
        """
        if self._length:
            self.carrier.move(self._parts, fd, offset, self.mender, self._start, folios)

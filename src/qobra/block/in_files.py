"""Data that lie in files, in the place of a buffer: whoever writes them to a file moves them there."""

from __future__ import annotations

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

    __slots__ = ("_length", "_parts", "_start", "carrier", "mender")

    def __init__(self, parts: Sequence[Part], carrier: Carrier, mender: Mender | None = None, start: int = 0) -> None:
        self._parts = parts
        self._length = sum(length for _fd, _offset, length in parts)
        self._start = start
        self.carrier = carrier
        self.mender = mender

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> InFiles:
        start, stop, _step = part.indices(self._length)
        inside: list[Part] = []
        position = 0
        for fd, offset, length in self._parts:
            low, high = max(start, position), min(stop, position + length)
            if low < high:
                inside.append((fd, offset + low - position, high - low))
            position += length
        return InFiles(inside, self.carrier, self.mender, self._start + start)

    def copy_to(self, fd: int, offset: int, folios: Folios | None = None) -> None:
        """Write them at ``offset`` of another file; what is past a part's file's end is zeroes. Small ones
        are written by its ``folios``.

        Raises OSError, :class:`.carrier.ReadFailed` where the parts cannot be read.
        """
        if self._length:
            self.carrier.move(self._parts, fd, offset, self.mender, self._start, folios)

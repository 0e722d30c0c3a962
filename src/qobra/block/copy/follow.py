"""Copy what a guest has written here and there, in pieces as small as its writes, without the interpreter lock.

A guest that writes 4 KiB all over a disk marks as much as can be copied in the same time, if what is copied again for
each of its writes is a cluster. In pieces of 4 KiB it marks a sixteenth of that. Each is a read and a write then,
between places that the flat tables of both disks know (:mod:`qobra.native.follow`).
"""

from __future__ import annotations

from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.block.bitmap import DirtyBitmap

PIECE = 4096
"""Bytes of a piece."""
SCATTERED = 64 << 10
"""A shorter run of what is dirty is copied here."""
LONGEST = 128 << 10
"""A run of so many bytes is left to who copies large parts, or copied in such pieces."""
SMALL_CLUSTER = 32 << 10
"""Whoever copies large parts finds out anew for each cluster where it lies, which for such as these costs more than to
copy them; so runs of any length are copied here then."""
WINDOW = 64 << 20
"""Bytes of the disk that are looked at together."""
MOST = 1 << 20
"""Bytes that are copied at a time: a few milliseconds, for as long as which a change of the graph has to wait."""

_native = compiled("follow")


def can_follow() -> bool:
    """Whether there is the compiled form, without which pieces would cost more than clusters."""
    return _native is not None


class Follower:
    """Copies what is dirty in ``dirty`` from the node of ``source`` to that of ``target``. For one thread at a time.

    :attr:`leaves_long`: runs from :data:`LONGEST` on are left, and end what is copied at a time.
    """

    def __init__(self, source: BlockBackend, target: BlockBackend, dirty: DirtyBitmap) -> None:
        self._source = source
        self._target = target
        self._dirty = dirty
        self.leaves_long = True
        self.taken = 0
        """Bytes that are not marked right now, because they may be copied."""

    def copy(self, offset: int) -> tuple[int, int, list[tuple[int, int]]]:
        """Copy up to :data:`MOST` bytes of scattered pieces from ``offset`` on.

        Returns how many bytes were copied, where to go on, and the ranges before that which are still dirty and have
        to be copied in another way. To be called inside a slot of both roots, or while they are drained.
        """
        dirty = self._dirty
        unit = dirty.granularity
        start = offset - offset % (8 * unit)
        length = min(WINDOW, dirty.length - start)
        bits = dirty.take(start, length)
        taken, in_step = bytes(bits), dirty.in_step
        if in_step is not None:
            in_step.hold_bits(start, bits)
        self.taken = int.from_bytes(bits, "little").bit_count() * unit
        begin = (offset - start) // unit
        try:
            copied, looked = self._copy_marked(start, bits, begin)
            left = _ranges(bits, begin, looked)
            if left:
                # The tables learn where these are, which is once for each.
                first, last = left[0][0] * unit, left[-1][1] * unit
                for root in (self._source, self._target):
                    root.table().look(start + first, min(last, length) - first)
                more, looked = self._copy_marked(start, bits, begin)
                copied += more
                left = _ranges(bits, begin, looked)
        finally:
            if in_step is not None:
                in_step.release_bits(start, taken, bits)
            dirty.give_back(start, bits)
            self.taken = 0
        end = dirty.length
        found = [(start + low * unit, min(end, start + high * unit) - start - low * unit) for low, high in left]
        return copied, min(end, start + looked * unit), found

    def _copy_marked(self, start: int, bits: bytearray, begin: int) -> tuple[int, int]:
        source, target = self._source.table().places, self._target.table().places
        if source is None or target is None or _native is None:
            return 0, len(bits) << 3
        shift = self._dirty.granularity.bit_length() - 1
        return _native.copy_marked(  # type: ignore[no-any-return]
            source, target, start, shift, bits, begin, MOST, LONGEST, self.leaves_long
        )


def _ranges(bits: bytearray, begin: int, end: int) -> list[tuple[int, int]]:
    """The runs (first, last + 1) of the bits from ``begin`` up to ``end`` that are set."""
    value = (int.from_bytes(bits[: end + 7 >> 3], "little") & ((1 << end) - 1)) >> begin
    found = []
    at = begin
    while value:
        skip = (value & -value).bit_length() - 1
        value >>= skip
        at += skip
        size = (~value & (value + 1)).bit_length() - 1
        found.append((at, at + size))
        value >>= size
        at += size
    return found

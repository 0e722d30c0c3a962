"""What a node of the block graph relies on in those that work with it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from qobra.block.copy.old_blocks import OldBlocks
    from qobra.block.in_files import InFiles
    from qobra.native.in_step import InStep
else:
    Protocol = object


class BitmapStore:
    """What a node's class adds if its image keeps bitmaps: those with ``persistent`` are written when it is closed."""

    def check_new_bitmap(self, name: str, granularity: int) -> None:
        """Raise QobraError with the reason if the image cannot take one more bitmap like this."""
        raise NotImplementedError

    def remove_stored_bitmap(self, name: str) -> None:
        """Delete the bitmap from the image; it need not be stored there yet."""
        raise NotImplementedError


class WriteTracker:
    """Someone who is told of writes; see :attr:`BlockNode.trackers`. ``mark`` runs in the writer's thread."""

    in_step: InStep | None = None
    """By which whoever writes past the node writes another disk, too, in place of its mark."""

    def mark(self, offset: int, length: int) -> None:
        """``length`` bytes from ``offset`` were written, zeroed or discarded."""
        raise NotImplementedError

    def marks(self) -> Marks | None:
        """What whoever writes past the node may mark in the tracker's stead; None if the node has to tell it."""
        return None


class Marks(Protocol):
    """Takes notes of writes, in any thread and without waiting."""

    def mark(self, offset: int, length: int) -> None:
        """See :meth:`WriteTracker.mark`."""


class Linking(Protocol):
    """Holds in a node, in whole clusters, what shows through from below, where the node still holds nothing."""

    def takes_files(self) -> bool:
        """Whether the data may lie in files."""

    def takes_zeroes(self) -> bool:
        """Whether zeroes can be held as such."""

    def take_up(self, ranges: Sequence[tuple[int, int]], data: InFiles | memoryview) -> None:
        """Hold ``data``, what the ``(offset, length)`` of ``ranges`` show, one after another."""

    def take_up_zeroes(self, offset: int, length: int) -> None:
        """Hold zeroes, which a range shows."""


class Keeper(Protocol):
    """Keeps what a write is about to change, for a copy of a point in time."""

    old: OldBlocks

    def keep(self, offset: int, length: int) -> bool:
        """See that a range may be written; False if the node has to see to that. Inside a slot."""

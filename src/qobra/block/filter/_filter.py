"""What filters have in common: everything passes through unchanged unless a subclass says otherwise."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from qobra.block.buffers import Buffer
from qobra.block.extents import DATA, WRITABLE, Extent
from qobra.block.node import BlockNode, Options
from qobra.errors import QobraError


class FilterNode(BlockNode):
    """A node that shows its child ``file`` (or ``backing``, for the filters of jobs) as it is."""

    is_filter = True
    is_transparent = True

    @property
    def below(self) -> BlockNode:
        """The filtered child."""
        child = self.filtered
        assert child is not None
        return child

    def child_resized(self, name: str) -> None:
        self.length = self.below.length

    def check_write(self, offset: int, length: int) -> None:
        if self.read_only:
            raise OSError(errno.EPERM, "Block node is read-only")
        # Whether it may go past the end is for the file to say: it grows under its format whatever lies between.
        self.below.check_write(offset, length)

    def written(self, offset: int, length: int) -> None:
        if offset + length > self.length:
            self.length = self.below.length
        super().written(offset, length)

    def linear_child(self) -> tuple[BlockNode, int] | None:
        return (self.below, 0) if self.plain_writes() else None

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        return (Extent(length, DATA, self.below, offset, WRITABLE),)

    def _read(self, offset: int, view: memoryview) -> None:
        self.below.read_into(offset, view)

    def _write(self, offset: int, data: Buffer) -> None:
        self.below.write(offset, data)

    def _write_compressed(self, offset: int, data: Buffer) -> None:
        self.below.write_compressed(offset, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        below = self.below
        below.write_zeroes(offset, length, may_unmap=may_unmap and below.discard_unmap, no_fallback=no_fallback)
        return True

    def _discard(self, offset: int, length: int) -> None:
        self.below.discard(offset, length)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        self.below.truncate(length, preallocation=preallocation, exact=exact)
        self.length = self.below.length

    def allocated_size(self) -> int | None:
        return self.below.allocated_size()

    def cluster_size(self) -> int:
        return self.below.cluster_size()

    def has_zero_init(self) -> bool:
        return self.below.has_zero_init()


def not_negative(options: Options, name: str, default: int = 0) -> int:
    """The option ``name``, a number of bytes. Raises QobraError if it is less than 0."""
    value: int = options.get(name, default)
    if value < 0:
        raise QobraError(f"Parameter '{name}' expects a non-negative number below 2^64")
    return value

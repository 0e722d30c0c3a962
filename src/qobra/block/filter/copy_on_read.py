"""The ``copy-on-read`` filter: what is read from a backing file is kept in the image on top."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from qobra.block import permissions
from qobra.block.extents import ABSENT, COMPUTED, DATA, Extent
from qobra.block.filter._filter import FilterNode
from qobra.block.node import BOUNCE_SIZE, BlockNode, Buffer, Opening, drivers, is_zero
from qobra.errors import QobraError


@drivers.register("copy-on-read")
class CopyOnReadNode(FilterNode):
    """Reads copy up what the file lacks, down to and without ``bottom`` (default: the whole chain).

    A lock keeps a copy from overwriting newer data: writes and copies of this node take turns.
    """

    driver = "copy-on-read"

    def open(self, opening: Opening) -> None:
        opening.child("file", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        self._lock = threading.Lock()
        self._bottom: BlockNode | None = None
        name = opening.options.get("bottom")
        if name is not None:
            bottom = self.layer.graph.find(name)
            if bottom is None:
                raise QobraError(f"Bottom node '{name}' not found")
            if not bottom.supports_backing and not bottom.is_filter:
                raise QobraError(f"Bottom node '{name}' isn't in chain")
            if bottom.is_filter:
                raise QobraError(f"Bottom node '{name}' is a filter")
            node: BlockNode | None = self.file
            while node is not None and node is not bottom:
                node = node.filtered or node.backing
            if node is None:
                raise QobraError(f"Bottom node '{name}' isn't in chain")
            self._bottom = bottom
        self.child_resized("file")

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        child_perm, child_shared = super().child_permissions(name, role, perm, shared)
        if not self.file.read_only:
            child_perm |= permissions.WRITE_UNCHANGED
        return child_perm, child_shared

    def plain_writes(self) -> bool:
        return False

    def linear_child(self) -> tuple[BlockNode, int] | None:
        return None

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if want_zero:
            return (Extent(length, DATA, self.file, offset),)
        return (Extent(length, COMPUTED),)

    def read_computed(self, offset: int, view: memoryview) -> None:
        self._read(offset, view)

    def _read(self, offset: int, view: memoryview) -> None:
        if not self.file.read_only:
            self.copy_up(offset, len(view))
        self.file.read_into(offset, view)

    def copy_up(self, offset: int, length: int) -> None:
        """Copy what the file lacks in ``length`` bytes from ``offset``, in whole clusters of it."""
        cluster = max(1, self.file.cluster_size())
        start = offset & -cluster
        end = min(-(-(offset + length) // cluster) * cluster, self.length)
        while start < end:
            size = min(end - start, max(BOUNCE_SIZE, cluster))
            with self._lock:
                for low, run in self._lacking(start, size):
                    data = self.file.read(low, run)
                    if is_zero(data):
                        self.file.write_zeroes(low, run)
                    else:
                        self.file.write(low, data)
            start += size

    def _lacking(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Ranges whose data lies below the file, above the bottom's backing."""
        top: BlockNode = self.file
        while top.is_filter and top.filtered is not None:
            top = top.filtered
        ranges = []
        for extent in top.map(offset, length, False):
            if extent.kind == ABSENT and top.backing is not None:
                if self._bottom is None:
                    ranges.append((offset, extent.length))
                elif top is not self._bottom:
                    ranges += _held(top.backing, self._bottom, offset, extent.length)
            offset += extent.length
        return ranges

    def _write(self, offset: int, data: Buffer) -> None:
        with self._lock:
            super()._write(offset, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        with self._lock:
            return super()._write_zeroes(offset, length, may_unmap, no_fallback)

    def _discard(self, offset: int, length: int) -> None:
        with self._lock:
            super()._discard(offset, length)


def _held(node: BlockNode, bottom: BlockNode, offset: int, length: int) -> list[tuple[int, int]]:
    """Ranges that ``node`` or what lies between it and ``bottom`` (inclusive) holds."""
    ranges: list[tuple[int, int]] = []
    pending: list[tuple[BlockNode, int, int]] = [(node, offset, length)]
    while pending:
        each, start, size = pending.pop()
        while each.is_filter and each.filtered is not None:
            each = each.filtered
        size = min(size, each.length - start)
        if size <= 0:
            continue
        for extent in each.map(start, size, False):
            if extent.kind != ABSENT:
                ranges.append((start, extent.length))
            elif each is not bottom and each.backing is not None:
                pending.append((each.backing, start, extent.length))
            start += extent.length
    return sorted(ranges)

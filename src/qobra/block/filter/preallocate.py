"""The ``preallocate`` filter: lets a file grow in large steps, and takes back what was not used in the end.

For a format over a file on a file system where each growth is costly.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.extents import DATA, WRITABLE, ZERO, Extent
from qobra.block.filter._filter import FilterNode, not_negative
from qobra.block.node import Options, drivers
from qobra.block.opening import Opening
from qobra.errors import QobraError

_SECTOR = 512
_WRITES = permissions.WRITE | permissions.RESIZE


@drivers.register("preallocate")
class PreallocateNode(FilterNode):
    """``length`` is what was written; the file below is longer by up to ``prealloc-size`` while it is in use."""

    driver = "preallocate"
    strong_options = ()
    changeable_options = lasting_options = frozenset({"prealloc-align", "prealloc-size"})

    def open(self, opening: Opening) -> None:
        self._lock = threading.Lock()
        self._extended = False
        opening.child("file", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        self.take_options(opening.options)
        self.length = self.file.length

    def take_options(self, options: Options) -> None:
        align = not_negative(options, "prealloc-align", 1 << 20)
        size = not_negative(options, "prealloc-size", 128 << 20)
        if not align or align % _SECTOR:
            raise QobraError(f"prealloc-align parameter of preallocate filter is not aligned to {_SECTOR}")
        unit = self.file.request_alignment
        if align % unit:
            raise QobraError(
                "prealloc-align parameter of preallocate filter is not aligned to underlying node request alignment "
                f"({unit})"
            )
        self._align, self._size = align, size

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        perm, shared = super().child_permissions(name, role, perm, shared)
        if perm & _WRITES == _WRITES:
            # Nobody else may touch the end of the file while it is not where its users see it.
            shared &= ~_WRITES
        return perm, shared

    def inactivate(self) -> None:
        self._give_back()
        super().inactivate()

    def set_permissions(self, perm: int, shared: int) -> None:
        if self.perm & _WRITES == _WRITES and perm & _WRITES != _WRITES:
            self._give_back()
        super().set_permissions(perm, shared)

    def child_resized(self, name: str) -> None:
        if not self._extended:
            self.length = self.file.length

    def close(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        with self._lock:
            if self._extended and self.file.length > self.length:
                self.file.truncate(self.length)
            self._extended = False

    def _reserve(self, end: int) -> None:
        """Before the file comes to be ``end`` bytes long: make it longer by one step."""
        file = self.file
        with self._lock:
            if end <= file.length or self.perm & _WRITES != _WRITES:
                return
            target = -(-(end + self._size) // self._align) * self._align
            self._extended = True
            try:
                file.truncate(target, preallocation="falloc")
            except QobraError:
                pass  # no room to spare, or no way to take it ahead: the write alone may still succeed

    def written(self, offset: int, length: int) -> None:
        if offset + length > self.length:
            self.length = offset + length
        super().written(offset, length)

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        inside = max(0, min(length, self.file.length - offset))
        extents = [Extent(inside, DATA, self.file, offset, WRITABLE)] if inside else []
        return extents if inside == length else [*extents, Extent(length - inside, ZERO)]

    def plain_writes(self) -> bool:
        return False

    def _write(self, offset: int, data: Buffer) -> None:
        self._reserve(offset + len(data))
        super()._write(offset, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        self._reserve(offset + length)
        return super()._write_zeroes(offset, length, may_unmap, no_fallback)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        if preallocation == "falloc" and self.length < length <= self.file.length and self._extended:
            self.length = length  # what was taken ahead is what is asked for
            return
        # Other modes are to take as much space as they would without the filter.
        self._give_back()
        super()._truncate(length, preallocation, exact)

"""The filter that a mirror puts over its source: passes everything on, and in write-blocking mode writes to both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.copy.range_locks import RangeLocks
from qobra.block.filter._filter import FilterNode
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening


class ActiveCopy(Protocol):
    """A mirror in write-blocking mode, as the filter sees it."""

    locks: RangeLocks

    def takes(self, offset: int, length: int) -> bool:
        """Whether a write of the guest may go to the target at once."""
        ...

    def missed(self, offset: int, length: int) -> None:
        """A write of the guest, which could not go to the target at once, is in the source only."""
        ...

    def copied(self, offset: int, length: int, *, is_progress: bool) -> None:
        """A write of the guest is in source and target; ``is_progress``: the job's progress tells of it."""
        ...

    def failed(self, offset: int, length: int, error: Exception) -> None:
        """A write of the guest is in the source only."""
        ...


@drivers.register("mirror_top")
class MirrorTopNode(FilterNode):
    """Shows ``backing``. ``active`` is set by the job while writes go to ``target`` too."""

    driver = "mirror_top"
    shows_places = True
    active: ActiveCopy | None = None
    target: BlockNode | None = None
    is_commit = False
    """Whether the target lies under the source, whose users then have to bear its changing."""

    def open(self, opening: Opening) -> None:
        opening.child("backing", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        self.child_resized("backing")

    def child_resized(self, name: str) -> None:
        self.length = self.below.length

    def plain_filename(self, options: Options) -> str:
        return self.below.filename

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        perm, shared = super().child_permissions(name, role, perm, shared)
        if self.is_commit:
            # Between the copying of two parts, what lies above the base is not consistent.
            perm &= ~permissions.CONSISTENT_READ
            shared |= permissions.WRITE
        return perm, shared

    def plain_writes(self) -> bool:
        return self.active is None and super().plain_writes()

    def _write(self, offset: int, data: Buffer) -> None:
        target = self.target
        if self.active is None or target is None:
            super()._write(offset, data)
        else:
            self._both(offset, len(data), lambda: self.below.write(offset, data), lambda: target.write(offset, data))

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        target = self.target
        if self.active is None or target is None:
            return super()._write_zeroes(offset, length, may_unmap, no_fallback)
        below = self.below
        unmap_below = may_unmap and below.discard_unmap
        self._both(
            offset,
            length,
            lambda: below.write_zeroes(offset, length, may_unmap=unmap_below, no_fallback=no_fallback),
            lambda: target.write_zeroes(offset, length, may_unmap=may_unmap),
        )
        return True

    def _discard(self, offset: int, length: int) -> None:
        target = self.target
        if self.active is None or target is None:
            super()._discard(offset, length)
        else:
            # What a discard leaves behind is the source's affair; the target has to show the same.
            self._both(
                offset,
                length,
                lambda: self.below.discard(offset, length),
                lambda: target.write(offset, self.below.read(offset, length)),
                is_progress=False,
            )

    def _both(
        self,
        offset: int,
        length: int,
        to_source: Callable[[], None],
        to_target: Callable[[], None],
        *,
        is_progress: bool = True,
    ) -> None:
        active = self.active
        assert active is not None
        with active.locks.guest(offset, length):
            to_source()
            if not active.takes(offset, length):
                active.missed(offset, length)
                return
            try:
                to_target()
            except Exception as error:
                active.failed(offset, length, error)
            else:
                active.copied(offset, length, is_progress=is_progress)

"""The ``snapshot-access`` driver: reads the point in time that a ``copy-before-write`` filter below keeps."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.extents import COMPUTED, ZERO, Extent, resolve
from qobra.block.filter.copy_before_write import CopyBeforeWriteNode
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening
from qobra.errors import QobraError


@drivers.register("snapshot-access")
class SnapshotAccessNode(BlockNode):
    """Read-only. A discard says that a part is not going to be read any more, so that writes need not copy it."""

    driver = "snapshot-access"
    sees_reads = True
    can_reopen = False
    strong_options = ()
    reports_info = False

    @classmethod
    def is_protocol(cls) -> bool:
        return False

    def open(self, opening: Opening) -> None:
        opening.child("file", permissions.ROLE_DATA | permissions.ROLE_PRIMARY)
        self.length = self.file.length

    def plain_filename(self, options: Options) -> str:
        return self.file.filename

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        # The filter below sees to it that what is read here stays as it was, whatever others do.
        return 0, permissions.ALL

    def _snapshot(self) -> CopyBeforeWriteNode:
        if not isinstance(self.file, CopyBeforeWriteNode):
            raise OSError(errno.ENOTSUP, f"Node '{self.file.node_name}' keeps no point in time")
        return self.file

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if not want_zero:
            return (Extent(length, COMPUTED),)
        extents: list[Extent] = []
        snapshot = self._snapshot()
        for place, start, size in snapshot.snapshot_places(offset, length):
            for run in resolve(place, start, size, want_zero=True):
                zero = run.kind == ZERO and not snapshot.snapshot_changed(place, run.start, run.length)
                extents.append(Extent(run.length, ZERO if zero else COMPUTED))
        return extents

    def read_computed(self, offset: int, view: memoryview) -> None:
        self._snapshot().read_snapshot(offset, view)

    def check_write(self, offset: int, length: int) -> None:
        self.check_range(offset, length)

    def plain_writes(self) -> bool:
        return False

    def _write(self, offset: int, data: Buffer) -> None:
        raise OSError(errno.ENOTSUP, "A point in time cannot be written")

    def _discard(self, offset: int, length: int) -> None:
        self._snapshot().discard_snapshot(offset, length)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        raise QobraError("Image format driver does not support resize", errno=errno.ENOTSUP)

"""The ``copy-before-write`` filter: before a write changes data, the old data is copied to ``target``."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from qobra.block import permissions
from qobra.block.bitmap import DirtyBitmap
from qobra.block.bitmap_changes import find_bitmap
from qobra.block.buffers import Buffer
from qobra.block.copy.chunk import ChunkCopier, CopyFailed
from qobra.block.copy.once import OnceCopy
from qobra.block.copy.timed import TimedCopies
from qobra.block.extents import DATA, WRITABLE, Extent
from qobra.block.filter._filter import FilterNode
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening
from qobra.block.slots import Gate
from qobra.errors import QobraError

MIN_CLUSTER = 65536
"""Smallest part that is copied, in bytes."""


@drivers.register("copy-before-write")
class CopyBeforeWriteNode(FilterNode):
    """Shows ``file``; a write first copies what it is about to change, unless that was copied before.

    A copy that fails, or takes more than ``cbw-timeout`` seconds, makes the guest's write fail; with
    ``on-cbw-error=break-snapshot`` the write succeeds and the copy is broken from then on.
    """

    driver = "copy-before-write"
    shows_places = True
    can_reopen = False
    strong_options = ()

    def open(self, opening: Opening) -> None:
        for name in ("file", "target"):
            if opening.options.get(name) is None:
                raise QobraError(f"Parameter '{name}' is missing")
        opening.child("file", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        opening.child("target", permissions.ROLE_DATA)
        self.child_resized("file")
        self._break_snapshot = opening.options.get("on-cbw-error", "break-guest-write") == "break-snapshot"
        self.broken: CopyFailed | None = None
        """Why the copy is no longer complete."""
        self.active = True
        """Whether writes are still copied; a job switches it off when it ends."""
        bitmap = opening.options.get("bitmap")
        self.set_up(self.compress)
        if bitmap is not None:
            chosen = find_bitmap(self.layer, bitmap["node"], bitmap["name"])
            chosen.check(busy=False, read_only=False)
            try:
                self.once.todo.merge(chosen)
            except QobraError as error:
                failed = f"Failed to merge bitmap '{bitmap['name']}' to internal copy-bitmap"
                raise error.prefixed(f"Cannot create block-copy-state: {failed}: ")
            self._readable = DirtyBitmap(self, None, self.once.cluster, enabled=False)
            self._readable.merge(chosen)
        else:
            self.once.todo.set_all()
        self.once.begin(0)
        timeout = opening.options.get("cbw-timeout", 0)
        if timeout:
            self._timed = TimedCopies(self.layer)
            self.once.timed = self._timed, timeout

    def close(self) -> None:
        if self._timed is not None:
            self._timed.close()

    _timed: TimedCopies | None = None

    _readable: DirtyBitmap | None = None
    """What can be read of the point in time, in whole clusters; None: everything."""
    compress = False
    guards = False
    """Whether nobody may write past the filter even while nobody uses it; a job says so."""

    def set_up(self, compress: bool, use_copy_range: bool = True) -> None:
        """Make the copying anew with these options; nothing is left to be copied then."""
        target = self.target
        copier = ChunkCopier(self.file, target, compress=compress, use_copy_range=use_copy_range)
        self.once = OnceCopy(self.file, copier, copy_cluster(target))
        self.once.settled = self._settle
        self._readers: set[Gate] = set()
        self._readers_generation = -1

    def keeper(self) -> OnceCopy:
        return self.once

    def stop_copying(self) -> None:
        """Writes just pass from now on."""
        self.active = False
        self.once.old.off = True

    def _settle(self) -> None:
        """Let requests end that may have found, just before the copy, that the target has its data from ``file``."""
        layer = self.layer
        if self._readers_generation != layer.generation:
            self._readers_generation = layer.generation
            self._readers = self._find_readers()
        if self._readers:
            layer.flight.fence(self._readers)

    def _find_readers(self) -> set[Gate]:
        """The gates of those who read the target, which shows ``file`` where nothing was copied yet (fleecing)."""
        if self.target.backing is None:
            return set()
        return {
            root.gate
            for root, (node, _perm, _shared) in self.layer.graph.state.roots.items()
            if root.job is None and self._leads_to_target(node)
        }

    def _leads_to_target(self, start: BlockNode) -> bool:
        pending: list[BlockNode] = [start]
        seen: set[BlockNode] = {self}
        while pending:
            node = pending.pop()
            if node is self.target:
                return True
            if node not in seen:
                seen.add(node)
                pending.extend(node.children.values())
        return False

    def target_shows_source(self) -> bool:
        """Whether the target shows what is in ``file`` where nothing was copied yet."""
        pending: list[BlockNode] = [self.target]
        seen: set[BlockNode] = set()
        while pending:
            node = pending.pop()
            if node is self.file or node is self:
                return True
            if node not in seen:
                seen.add(node)
                pending.extend(node.children.values())
        return False

    @property
    def target(self) -> BlockNode:
        """Where the old data goes."""
        return self.children["target"]

    def plain_filename(self, options: Options) -> str:
        return self.file.filename

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        if name == "target":
            # The guest's disk may be the backing of the target, so that writes to it are shared.
            return permissions.WRITE, permissions.ALL & ~permissions.RESIZE
        perm, shared = super().child_permissions(name, role, perm, shared)
        if perm & permissions.WRITE:
            perm |= permissions.CONSISTENT_READ
        if self.guards or self.has_users:
            shared &= ~(permissions.WRITE | permissions.RESIZE)
        return perm, shared

    # -- the point in time ------------------------------------------------------------------------------------

    def read_snapshot(self, offset: int, view: memoryview) -> None:
        """Read what was there when the filter was put in place. Raises EACCES where that is not kept."""
        end = offset + len(view)
        if self.broken is not None or (self._readable is not None and self._readable.next_clean(offset, end) < end):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        for place, start, size in self.snapshot_places(offset, len(view)):
            part = view[start - offset : start - offset + size]
            if place is not self.file:
                place.read_into(start, part)
                continue
            self.once.old_data(start, part)
            # A write first takes its part from what is to be copied: if that did not happen, none came in between.
            if self.once.todo.next_clean(start, start + size) < start + size:
                self.read_snapshot(start, part)

    def snapshot_changed(self, place: BlockNode, start: int, size: int) -> bool:
        """Whether what was found of a part in the ``place`` that it had may be newer than the point in time."""
        once, first = self.once, start - start % self.once.cluster
        return place is self.file and (
            once.old.holds(first, start + size - first) or once.todo.next_clean(start, start + size) < start + size
        )

    def snapshot_places(self, offset: int, length: int) -> Iterator[tuple[BlockNode, int, int]]:
        """The node that holds each part of the range (start and length) of the point in time right now."""
        end = offset + length
        while offset < end:
            stop = self.once.todo.next_clean(offset, end)
            if stop > offset:
                yield self.file, offset, stop - offset
            else:
                stop = self.once.todo.next_dirty(offset, end)
                self.once.wait(offset, stop - offset)
                if self.once.todo.next_dirty(offset, stop) < stop:
                    continue  # the copy failed, and with it the write
                yield self.target, offset, stop - offset
            offset = stop

    def discard_snapshot(self, offset: int, length: int) -> None:
        """Nobody is going to read this part of the point in time any more, as far as it is whole clusters."""
        cluster = self.once.cluster
        start = -(-offset // cluster) * cluster
        end = offset + length
        end = end if end == self.length else end - end % cluster
        if start < end:
            if self._readable is None:
                self._readable = DirtyBitmap(self, None, cluster, enabled=False)
                self._readable.set_all()
            self._readable.clear(start, end - start)
            self.once.skip(start, end - start)
            self.target.discard(start, end - start)

    # -- requests ---------------------------------------------------------------------------------------------

    def linear_child(self) -> tuple[BlockNode, int] | None:
        return None

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        # Reads may go past the filter, and so may writes of those who ask the keeper.
        return (Extent(length, DATA, self.file, offset, WRITABLE),)

    def _before(self, offset: int, length: int) -> None:
        if not self.active or self.broken is not None:
            return
        try:
            self.once.copy_before(offset, length)
        except CopyFailed as failure:
            if self._break_snapshot:
                self.broken = failure
                self.once.old.off = True
                return
            raise OSError(failure.error.errno or errno.EIO, str(failure.error))

    def _write(self, offset: int, data: Buffer) -> None:
        self._before(offset, len(data))
        self.file.write(offset, data)

    def _write_compressed(self, offset: int, data: Buffer) -> None:
        self._before(offset, len(data))
        self.file.write_compressed(offset, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        self._before(offset, length)
        return super()._write_zeroes(offset, length, may_unmap, no_fallback)

    def _discard(self, offset: int, length: int) -> None:
        self._before(offset, length)
        self.file.discard(offset, length)

    def flush(self) -> None:
        # The guest's flush is about the guest's data; a slow target must not hold it up.
        self.file.flush()

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        raise QobraError("Cannot resize a node that is being copied", errno=errno.ENOTSUP)


def copy_cluster(target: BlockNode) -> int:
    """The unit of copying to ``target``: its cluster, at least 64 KiB.

    A target with a backing file must get whole clusters, or it would show the backing file's newer data beside.
    """
    return max(MIN_CLUSTER, target.cluster_size())

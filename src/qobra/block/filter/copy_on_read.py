"""The ``copy-on-read`` filter: what is read from below the top image is written into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.copy.carrier import DIRECT, Carrier
from qobra.block.copy.chunk import is_plain_data
from qobra.block.copy.coarse import resolve_coarse
from qobra.block.copy.range_locks import HeldRange, RangeLocks
from qobra.block.copy.ranges import chain_depth, merged
from qobra.block.copy.take_up import take_up
from qobra.block.extents import COMPUTED, DATA, WRITABLE, ZERO, Extent, resolve
from qobra.block.filter._filter import FilterNode
from qobra.block.in_files import InFiles
from qobra.block.node import BlockNode, drivers
from qobra.block.opening import Opening
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.contracts import Linking

_FREE = nullcontext()


@drivers.register("copy-on-read")
class CopyOnReadNode(FilterNode):
    """Shows ``file``. Reads of what ``file`` does not hold itself are copied up, down to ``bottom`` (default: all).

    Data from below ``bottom`` is not copied. A job that streams copies with :meth:`copy_up` alone.
    """

    driver = "copy-on-read"
    sees_reads = True
    can_reopen = False
    can_compress = True
    strong_options = ()
    by_job = False
    """Put in by a job, which does the copying and keeps the chain as it is: reads just pass."""

    def open(self, opening: Opening) -> None:
        opening.child("file", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        self.child_resized("file")
        self.locks = RangeLocks()
        self._linking: Linking | None = None
        """Set where a job's copying and a guest's writes need not wait for each other."""
        self.bottom: BlockNode | None = None
        name = opening.options.get("bottom")
        if name is not None:
            # Looked for from here down: nodes that are opened together with this one are not in the graph yet.
            bottom = next((each for each in _chain(self.file) if each.node_name == name), self.layer.graph.find(name))
            if bottom is None:
                raise QobraError(f"Bottom node '{name}' not found")
            if bottom.is_filter:
                raise QobraError(f"Bottom node '{name}' is a filter")
            self.bottom = bottom
            self.layer.graph.frozen.check_chain(self, bottom)
            self.layer.graph.frozen.freeze(self, self, bottom)

    def close(self) -> None:
        self.layer.graph.frozen.thaw(self)

    def serve_job(self) -> None:
        """From now on a job does what there is to do."""
        self.by_job = self.shows_places = True
        self.layer.graph.frozen.thaw(self)
        self._linking = self.file.linking()

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        perm, shared = super().child_permissions(name, role, perm, shared)
        return perm | permissions.WRITE_UNCHANGED, shared

    @property
    def base(self) -> BlockNode | None:
        """The first node from which nothing is copied."""
        if self.bottom is None:
            return None
        return self.bottom.backing

    def plain_writes(self) -> bool:
        # A job never touches what the top image holds: where that can be written in place, nothing need be kept apart.
        return self.by_job and super().plain_writes()

    def linear_child(self) -> tuple[BlockNode, int] | None:
        return None

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if self.by_job:
            return (Extent(length, DATA, self.file, offset, WRITABLE),)
        if want_zero:
            return (Extent(length, DATA, self.file, offset),)
        return (Extent(length, COMPUTED),)

    def _read(self, offset: int, view: memoryview) -> None:
        if not self.by_job:
            self.copy_up(offset, len(view), self.base, absent=self.bottom is None)
        self.file.read_into(offset, view)

    def read_computed(self, offset: int, view: memoryview) -> None:
        self._read(offset, view)

    def copy_up(
        self, offset: int, length: int, base: BlockNode | None, carrier: Carrier = DIRECT, *, absent: bool = False
    ) -> None:
        """Write into the top image what comes from under it, but not from ``base`` or below.

        ``carrier`` moves what goes from file to file. With ``absent`` what no image of the chain holds is written too.
        """
        if self._linking is not None:
            take_up(self.file, self._linking, *self._clusters(offset, length), base, carrier)
            return
        top = self.file
        depths = range(1, chain_depth(top, base))
        start, size = self._clusters(offset, length)
        size = min(size, top.length - start)
        with self.locks.job(start, size):
            runs = resolve_coarse(top, start, size)
            from_below = (run for run in runs if run.depth in depths or (absent and run.depth < 0))
            for is_zero, alike in groupby(from_below, key=lambda run: run.kind == ZERO):
                for first, length in merged((run.start, run.length) for run in alike):
                    if is_zero:
                        top.write_unchanged(first, bytes(length))  # which is held as zeroes
                    else:
                        self._take(top, first, length, carrier)

    def _take(self, top: BlockNode, offset: int, length: int, carrier: Carrier) -> None:
        """Hold what is at ``offset`` in ``top`` itself; the kernel moves it where it goes from file to file."""
        whole_clusters = not (offset | length) & (max(1, top.cluster_size()) - 1)
        if whole_clusters and top.takes_files():
            runs = resolve(top, offset, length)
            if all(is_plain_data(run) for run in runs):
                parts = [(run.leaf.fd, run.offset, run.length) for run in runs if run.leaf is not None]
                top.write_unchanged(offset, InFiles(parts, carrier))  # type: ignore[arg-type]
                return
        top.write_unchanged(offset, top.read(offset, length))

    def _write(self, offset: int, data: Buffer) -> None:
        with self._guest(offset, len(data)):
            self.file.write(offset, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        with self._guest(offset, length):
            return super()._write_zeroes(offset, length, may_unmap, no_fallback)

    def _discard(self, offset: int, length: int) -> None:
        with self._guest(offset, length):
            self.file.discard(offset, length)

    def _guest(self, offset: int, length: int) -> HeldRange | nullcontext[None]:
        """The context in which a request of a guest changes a range."""
        return _FREE if self._linking is not None else self.locks.guest(*self._clusters(offset, length))

    def _clusters(self, offset: int, length: int) -> tuple[int, int]:
        cluster = max(1, self.file.cluster_size())
        start = offset - offset % cluster
        return start, -(-(offset + length) // cluster) * cluster - start


def _chain(node: BlockNode | None) -> Iterator[BlockNode]:
    """``node`` and what is below it in the backing chain."""
    while node is not None:
        yield node
        node = node.filtered or node.backing

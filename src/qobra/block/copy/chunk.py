"""Copy one chunk from a node to another by the best way that the two allow.

What the source knows to be zero is not read; what lies as it is in a file, and goes as it is to a file, is moved by
the kernel; everything else goes through a buffer.
"""

from __future__ import annotations

import errno
import os

from qobra.block.buffers import new_buffer
from qobra.block.copy.carrier import DIRECT, ZEROES, ReadFailed
from qobra.block.copy.coarse import UNIT, resolve_coarse
from qobra.block.copy.ranges import may_read_past
from qobra.block.copy.zeroes import Piece, read_pieces, zero_pieces
from qobra.block.extents import ABSENT, DATA, ZERO, Run, read_run, resolve
from qobra.block.in_files import InFiles
from qobra.errors import QobraError
from qobra.lean import local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.copy.carrier import Carrier, Mender, Part
    from qobra.block.node import BlockNode

CHUNK_SIZE = 512 << 10
"""Bytes of a chunk: large enough to hide the cost of a call, small enough to stay in the cache."""

_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY, errno.EPERM)


class CopyFailed(Exception):
    """A chunk could not be copied: ``error`` says why, ``is_read`` on which side."""

    def __init__(self, error: OSError | QobraError, is_read: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_read = is_read


class ChunkCopier:
    """Copies ranges of ``source`` to the same offsets of ``target``. Thread-safe.

    ``compress`` writes compressed clusters (the ranges are then whole clusters of the target). ``detect_zeroes`` is
    the size in bytes of the pieces of data that are looked at for zeroes (0: none are). ``target_is_zero``: what is
    zero need not be written. ``unmap``: zeroes may be holes.

    Whoever calls :meth:`copy` is inside a slot of a root, or the nodes are nobody else's.
    """

    def __init__(
        self,
        source: BlockNode,
        target: BlockNode,
        *,
        compress: bool = False,
        detect_zeroes: int = 0,
        target_is_zero: bool = False,
        unmap: bool = True,
        use_copy_range: bool = True,
    ) -> None:
        self.source = source
        self.target = target
        self.compress = compress
        self.detect_zeroes = detect_zeroes
        self.target_is_zero = target_is_zero
        self._unmap = unmap
        self._carries = not compress and not detect_zeroes
        self._copy_range = use_copy_range and self._carries
        self._generation = -1
        self.asks_for_zeroes = True
        """Off where it is known that all ranges hold data."""
        self._plain: tuple[int, int] | None = None
        self._reads_past = False
        self._cluster = 0
        self._local = local()

    def copy(self, offset: int, length: int, mender: Mender | None = None, carrier: Carrier = DIRECT) -> int:
        """Copy ``length`` bytes at ``offset`` and return how many were not just zeroes that the source knows of.

        ``mender`` sees all that is not; not for a copy that compresses. ``carrier`` moves what goes from file to file.
        Raises CopyFailed; what was copied till then stays.
        """
        end = offset + length
        source_end = self.source.length
        moved = 0
        while offset < end:
            size = end - offset
            if self.compress:
                size = min(max(CHUNK_SIZE, self.target.cluster_size()), size)
            inside = max(0, min(size, source_end - offset))
            if self.compress:
                self._copy_compressed(offset, size, inside)
                moved += inside
            else:
                if inside:
                    moved += self._copy_runs(offset, inside, mender, carrier)
                if inside < size:
                    self.write_zeroes(offset + inside, size - inside)
            offset += size
        return moved

    def _copy_runs(self, offset: int, length: int, mender: Mender | None, carrier: Carrier) -> int:
        moved = 0
        together: list[Run] = []
        for run in self._runs(offset, length):
            if run.kind in (ZERO, ABSENT):
                low, high = self._whole_zeroes(run, offset, offset + length)
                if run.start < low:
                    together += _between([run], run.start, low)
                self._carry(together, mender, carrier)
                if low < high:
                    self.write_zeroes(low, high - low)
                together += _between([run], max(low, high), run.start + run.length)
                continue
            moved += run.length
            if self._carries and is_plain_data(run):
                together.append(run)
                continue
            self._carry(together, mender, carrier)
            self._through_buffer(run, mender)
        self._carry(together, mender, carrier)
        return moved

    def _runs(self, offset: int, length: int) -> list[Run]:
        """What there is and where to read it."""
        if not self.asks_for_zeroes:
            self._look_at_nodes()
            return self._resolve(offset, length, False)
        try:
            runs = resolve_coarse(self.source, offset, length)
        except (OSError, QobraError) as error:
            raise CopyFailed(error, True)
        self._look_at_nodes()
        if self._reads_past:
            return runs
        # Where to read is another question than what is there: some filters have to see the reads.
        found: list[Run] = []
        for run in runs:
            found += (run,) if run.kind in (ZERO, ABSENT) else self._resolve(run.start, run.length, False)
        return found

    def _resolve(self, offset: int, length: int, want_zero: bool) -> list[Run]:
        try:
            return resolve(self.source, offset, length, want_zero=want_zero)
        except (OSError, QobraError) as error:
            raise CopyFailed(error, True)

    def zeroes_and_data(self, offset: int, length: int) -> list[tuple[bool, int]]:
        """Whether, and for how many bytes on end, a range is known to be zero; zeroes are worth a write of their own
        from :data:`UNIT` bytes on. Raises CopyFailed.
        """
        inside = max(0, min(length, self.source.length - offset))
        try:
            runs = resolve_coarse(self.source, offset, inside) if inside else []
        except (OSError, QobraError) as error:
            raise CopyFailed(error, True)
        found = [(run.kind in (ZERO, ABSENT) and run.length >= UNIT, run.length) for run in runs]
        if inside < length:
            found.append((True, length - inside))
        joined: list[tuple[bool, int]] = []
        for zero, size in found:
            before = joined.pop()[1] if joined and joined[-1][0] == zero else 0
            joined.append((zero, before + size))
        return joined

    def reads_as_zeroes(self, offset: int, length: int) -> bool:
        """Whether the source knows that a range is zero. Raises CopyFailed."""
        return all(run.kind in (ZERO, ABSENT) for run in self._resolve(offset, length, True))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zero a range, unless it is zero already. Raises CopyFailed."""
        if self.target_is_zero:
            return
        try:
            self.target.write_zeroes(offset, length, may_unmap=self._unmap)
        except (OSError, QobraError) as error:
            raise CopyFailed(error, False)

    def _through_buffer(self, run: Run, mender: Mender | None) -> None:
        position = 0
        while position < run.length:
            size = min(CHUNK_SIZE, run.length - position)
            view = self._buffer(size)
            try:
                read_run(run, position, view)
            except (OSError, QobraError) as error:
                raise CopyFailed(error, True)
            if mender is not None:
                mender.mend(run.start + position, view, True)
            self.write_data(run.start + position, view)
            position += size

    def _buffer(self, size: int) -> memoryview:
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = memoryview(new_buffer(max(size, CHUNK_SIZE)))
        return buffer[:size]

    def write_data(self, offset: int, view: memoryview) -> None:
        """Write ``view`` (a whole bytearray's beginning), zeroes in it as such. Raises CopyFailed."""
        self.write_pieces(offset, view, self.find_zeroes(offset, view))

    def find_zeroes(self, offset: int, view: memoryview) -> list[Piece]:
        """What of ``view`` (a whole bytearray's beginning), which is for ``offset``, counts as zeroes."""
        unit = self.detect_zeroes
        if not unit:
            return [(0, len(view), False)]
        return zero_pieces(view.obj, len(view), unit, offset % unit)  # type: ignore[arg-type]

    def read_pieces(self, run: Run, position: int, buffer: bytearray, size: int) -> list[Piece]:
        """Fill ``buffer`` with ``size`` bytes from ``position`` of ``run``, and find the zeroes in it.

        Raises OSError or QobraError.
        """
        leaf = run.leaf
        if leaf is not None and is_plain_data(run) and leaf.driver == "file":
            unit = self.detect_zeroes
            phase = (run.start + position) % unit if unit else 0
            return read_pieces(leaf.fd, buffer, size, run.offset + position, unit, phase)
        view = memoryview(buffer)[:size]
        read_run(run, position, view)
        return self.find_zeroes(run.start + position, view)

    def write_pieces(self, offset: int, view: memoryview, pieces: list[Piece]) -> None:
        """Write ``view``, which was split by :meth:`find_zeroes`. Raises CopyFailed."""
        try:
            for start, size, zero in pieces:
                if not zero:
                    self.target.write(offset + start, view[start : start + size])
                elif not self.target_is_zero:
                    self.target.write_zeroes(offset + start, size, may_unmap=self._unmap)
        except (OSError, QobraError) as error:
            raise CopyFailed(error, False)

    def _copy_compressed(self, offset: int, length: int, inside: int) -> None:
        view = self._buffer(length)
        try:
            self.source.read_into(offset, view[:inside])
        except (OSError, QobraError) as error:
            raise CopyFailed(error, True)
        view[inside:] = bytes(length - inside)
        cluster = self.target.cluster_size() or length
        try:
            for start, size, zero in zero_pieces(view.obj, length, cluster):  # type: ignore[arg-type]
                if not zero:
                    self.target.write_compressed(offset + start, view[start : start + size])
                elif not self.target_is_zero:
                    self.target.write_zeroes(offset + start, size, may_unmap=self._unmap)
        except (OSError, QobraError) as error:
            raise CopyFailed(error, False)

    # -- from file to file ------------------------------------------------------------------------------------

    def _carry(self, runs: list[Run], mender: Mender | None, carrier: Carrier) -> None:
        """Move what lies raw in files, one run right after another, and forget the runs."""
        if not runs:
            return
        start, end = runs[0].start, runs[-1].start + runs[-1].length
        plain = self.plain_target()
        low, high = start, end
        if plain is None:
            low, high = self._taken_by_target(start, end)
        if plain is not None and self._copy_range and mender is None and carrier.share == 1:
            if all(run.kind == DATA and self._in_kernel(run, *plain) for run in runs):
                runs.clear()
                return
        for run in _between(runs, start, low):
            self._otherwise(run, mender)
        if low < high:
            parts = [_part(run) for run in _between(runs, low, high)]
            data = InFiles(parts, carrier, mender, low)
            try:
                self.target.write(low, data)  # type: ignore[arg-type]
            except ReadFailed as error:
                raise CopyFailed(error, True)
            except (OSError, QobraError) as error:
                raise CopyFailed(error, False)
        for run in _between(runs, high, end):
            self._otherwise(run, mender)
        runs.clear()

    def _otherwise(self, run: Run, mender: Mender | None) -> None:
        if run.kind == DATA:
            self._through_buffer(run, mender)
        else:
            self.write_zeroes(run.start, run.length)

    def _taken_by_target(self, start: int, end: int) -> tuple[int, int]:
        """What of a range the target takes from files: whole clusters, or nothing."""
        if not self.target.takes_files():
            return end, end
        cluster = self.target.cluster_size()
        low, high = -(-start // cluster) * cluster, end // cluster * cluster
        return (low, high) if low < high else (end, end)

    def _whole_zeroes(self, run: Run, start: int, end: int) -> tuple[int, int]:
        """What of zeroes, in a copy from ``start`` to ``end``, is to be zeroed as such: whole clusters of the target.

        What is next to data in a cluster is better written with them.
        """
        cluster = self._cluster if self._carries else 0
        low, high = run.start, run.start + run.length
        if cluster:
            low = low if low == start else -(-low // cluster) * cluster
            high = high if high == end else high // cluster * cluster
        return low, high

    def _in_kernel(self, run: Run, fd: int, base: int) -> bool:
        """Have the kernel move a run; False where it cannot (nothing was moved then, or only a part)."""
        assert run.leaf is not None
        done = 0
        while done < run.length:
            try:
                moved = os.copy_file_range(
                    run.leaf.fd, fd, run.length - done, run.offset + done, base + run.start + done
                )
            except OSError as error:
                if error.errno in _NO_COPY_RANGE:
                    self._copy_range = False
                    return False
                raise CopyFailed(error, error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT))
            if not moved:
                return False  # past the end of the file
            done += moved
        return True

    def plain_target(self) -> tuple[int, int] | None:
        """(descriptor, offset to add) of the target where it is a file as it is, or None."""
        self._look_at_nodes()
        return self._plain

    def _look_at_nodes(self) -> None:
        """See anew what depends on the graph, where that has changed."""
        generation = self.target.layer.generation
        if generation != self._generation:
            self._plain = _plain_file(self.target)
            self._reads_past = may_read_past(self.source)
            self._cluster = self.target.cluster_size() if self.target.takes_files() else 0
            self._generation = generation


def is_plain_data(run: Run) -> bool:
    """Whether the run lies as it is in a file that the kernel can copy from."""
    leaf = run.leaf
    return run.kind == DATA and leaf is not None and leaf.is_leaf and leaf.fd >= 0 and not leaf.cache_direct


def _plain_file(node: BlockNode) -> tuple[int, int] | None:
    base = 0
    while node.is_transparent:
        step = node.linear_child()
        if step is None or not _is_plain(node):
            return None
        node, offset = step
        base += offset
    if not node.is_leaf or not _is_plain(node) or node.cache_direct:
        return None
    return node.fd, base


def _is_plain(node: BlockNode) -> bool:
    return node.plain_writes() and not node.trackers


def _part(run: Run) -> Part:
    """Where a carrier finds a run."""
    if run.kind == DATA:
        assert run.leaf is not None
        return run.leaf.fd, run.offset, run.length
    return ZEROES, 0, run.length


def _between(runs: list[Run], low: int, high: int) -> list[Run]:
    """What of ``runs`` lies from ``low`` up to ``high``."""
    if low <= runs[0].start and runs[-1].start + runs[-1].length <= high:
        return runs  # as mostly
    found = []
    for run in runs if low < high else ():
        first, last = max(low, run.start), min(high, run.start + run.length)
        if last - first == run.length:
            found.append(run)
        elif first < last:
            found.append(run._replace(start=first, length=last - first, offset=run.offset + first - run.start))
    return found

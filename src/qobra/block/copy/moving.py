"""Copy between local files by threads without the GIL (:mod:`qobra.native.mover`), where that can be.

What lies raw in files, or compressed by zstd, and goes raw to a file is moved that way; the rest, and what failed, is
copied by :func:`copy_in_order`. Without the compiled form all is.
"""

from __future__ import annotations

from itertools import chain

from qobra.block.copy.chunk import CHUNK_SIZE, ChunkCopier, is_plain_data
from qobra.block.copy.in_order import BUFFERS, copy_in_order
from qobra.block.copy.ranges import in_chunks, whole
from qobra.block.extents import ABSENT, COMPRESSED, COMPUTED, ZERO, resolve
from qobra.errors import QobraError
from qobra.lean import Lock, deque, start_thread
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Protocol

    from qobra.block.copy.engine import OnError, Progress
    from qobra.block.copy.ranges import Ranges
    from qobra.block.extents import Run
    from qobra.block.node import BlockNode

    class Filling(Protocol):
        """Where in a file the data of a copy go; see :class:`qobra.block.format.qcow2.filling.Filling`."""

        fd: int
        cluster: int
        """Bytes; 0: byte N of the copy is byte ``base`` + N of the file."""
        base: int

        def claim(self, runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None: ...
        def map(self, mappings: Sequence[tuple[int, int, int]]) -> None: ...
        def passed(self, offset: int) -> None: ...
        def interrupted(self) -> None: ...
        def close(self) -> None: ...


Step = list[tuple[int, int]]
"""Ranges whose places are looked up together, and whose progress is told together."""

WORKERS = 2
"""One reads while the other writes: writes to one file take turns in the kernel."""
STEP = 32 << 20
"""Bytes of a step."""
AHEAD = 2
"""Steps that are looked up ahead of the one that is waited for."""
MAX_UNIT = 64 << 10
"""Zeroes are looked for within pieces of half a MiB: for larger units that is another answer."""


def copy_moving(
    copier: ChunkCopier,
    ranges: Iterable[tuple[int, int]] | None = None,
    *,
    progress: Progress | None = None,
    on_error: OnError | None = None,
    workers: int | None = None,
) -> None:
    """Copy ``ranges`` (default: all), which go up. The options are those of :func:`copy_ranges`.

    The nodes are nobody else's meanwhile.
    """
    parts = in_chunks(ranges if ranges is not None else whole(copier.source.length), STEP)
    rest: Ranges | None = parts
    filling = _filling(copier)
    if filling is not None:
        moving = _Moving(copier, filling, progress, on_error, workers or WORKERS)
        try:
            rest = moving.run(parts)
        finally:
            moving.close()
    if rest is not None:
        copy_in_order(copier, rest, progress=progress, on_error=on_error, buffers=workers or BUFFERS)


def is_unpacked(run: Run) -> bool:
    """Whether a run is of a kind that the threads unpack as they move it."""
    return _packed(run) is not None


def _packed(run: Run) -> tuple[int, int, list[tuple[int, int, int, int]]] | None:
    if _native is None or not _native.can_unpack or run.kind != COMPUTED or not run.flags & COMPRESSED:
        return None
    found = run.leaf.packed(run.offset, run.length) if run.leaf is not None else None
    return found if found is not None and found[1] <= CHUNK_SIZE else None


def _filling(copier: ChunkCopier) -> Filling | None:
    if _native is None or copier.detect_zeroes > MAX_UNIT or (copier.detect_zeroes and not copier.target_is_zero):
        return None
    plain = copier.plain_target()
    if plain is not None:
        return _InFile(copier.target, *plain)
    return copier.target.filling(exact=not copier.detect_zeroes)


class _InFile:
    """A target that is a file as it is."""

    cluster = 0

    def __init__(self, node: BlockNode, fd: int, base: int) -> None:
        self._node = node
        self.fd = fd
        self.base = base

    def claim(self, runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None:
        end = sum(runs[-1])
        if end > self._node.length:
            return None  # to be refused
        self._node.note_change(runs[0][0], end - runs[0][0])
        return []

    def map(self, mappings: Sequence[tuple[int, int, int]]) -> None:
        pass

    def passed(self, offset: int) -> None:
        pass

    def interrupted(self) -> None:
        pass

    def close(self) -> None:
        pass


def _steps(parts: Ranges) -> Iterator[Step]:
    """Parts put together until they are about STEP bytes."""
    step: Step = []
    size = 0
    for part in parts:
        step.append(part)
        size += part[1]
        if size >= STEP:
            yield step
            step, size = [], 0
    if step:
        yield step


class _Failed(Exception):
    """A thread could not go on."""


class _Moving:
    """The dispatcher: finds out what lies where, and has it moved. Close it."""

    def __init__(
        self, copier: ChunkCopier, filling: Filling, progress: Progress | None, on_error: OnError | None, workers: int
    ) -> None:
        self._copier = copier
        self._filling = filling
        self._progress = progress
        self._on_error = on_error
        assert _native is not None
        self._mover = _native.Mover(filling.fd, copier.detect_zeroes, filling.cluster, filling.base)
        self._pending: deque[tuple[Step, int]] = deque()
        """Steps whose data are being moved, with the bytes of all runs up to their end."""
        self._ended = [Lock() for _number in range(workers - 1)]
        """Of each thread: held until it has ended."""
        for ended in self._ended:
            ended.acquire()
            start_thread(self._work, ended, name="mover", imports=False)

    def run(self, parts: Ranges) -> Ranges | None:
        """Copy, and return what is left to be copied in another way, None if nothing is."""
        step: Step = []
        try:
            for step in _steps(parts):
                for offset, length in step:
                    self._begin(offset, length)
                self._pending.append((step, self._mover.pushed))
                step = []
                if len(self._pending) > AHEAD:
                    self._finish_one()
            self._finish_all()
        except _Failed:
            # What happened is found out, and told, where it is tried again.
            self._stop()
            left = [part for known, _pushed in self._pending for part in known]
            return chain(left, step, parts)
        return None

    def _work(self, ended: Lock) -> None:
        try:
            self._mover.work()
        finally:
            ended.release()

    def close(self) -> None:
        """End the threads and give back what was claimed for nothing."""
        self._stop()
        self._filling.close()

    def _stop(self) -> None:
        self._mover.stop()
        for ended in self._ended:
            with ended:
                pass
        self._map()

    def _begin(self, offset: int, length: int) -> None:
        source = self._copier.source
        inside = max(0, min(length, source.length - offset))
        if not inside:
            return
        try:
            runs = resolve(source, offset, inside, want_zero=True)
        except (OSError, QobraError):
            raise _Failed
        plain: list[Run] = []
        for run in runs:
            if run.kind in (ZERO, ABSENT) and self._copier.target_is_zero:
                continue
            if run.leaf is not None and run.leaf.driver == "file" and is_plain_data(run):
                plain.append(run)
            else:
                self._push(plain)
                plain = []
                if not self._has_pushed_packed(run):
                    self._copy_otherwise(run)
        self._push(plain)

    def _push(self, runs: list[Run]) -> None:
        """Have runs moved, those that can be."""
        if not runs or self._has_pushed(runs):
            return
        for run in runs:
            if len(runs) == 1 or not self._has_pushed([run]):
                self._copy_otherwise(run)

    def _has_pushed(self, runs: list[Run]) -> bool:
        if not self._has_places(runs):
            return False
        for run in runs:
            assert run.leaf is not None
            self._mover.push(run.leaf.fd, run.offset, run.start, run.length)
        return True

    def _has_pushed_packed(self, run: Run) -> bool:
        try:
            packed = _packed(run)
        except (OSError, QobraError):
            return False  # who reads it in the ordinary way will be told why
        if packed is None or not self._has_places([run]):
            return False
        fd, whole, clusters = packed
        shift = run.start - run.offset
        self._mover.push_packed(fd, [(host, most, at + shift, size) for host, most, at, size in clusters], whole)
        return True

    def _has_places(self, runs: list[Run]) -> bool:
        try:
            places = self._filling.claim([(run.start, run.length) for run in runs])
        except (OSError, QobraError):
            return False  # who writes them in the ordinary way will be told why
        if places is None:
            return False
        for host, length in places:
            self._mover.provide(host, length)
        return True

    def _copy_otherwise(self, run: Run) -> None:
        self._finish_all()
        self._filling.interrupted()
        copy_in_order(self._copier, [(run.start, run.length)], on_error=self._on_error)

    def _finish_one(self) -> None:
        step, pushed = self._pending[0]
        self._wait(pushed)
        self._pending.popleft()
        self._filling.passed(sum(step[-1]))
        if self._progress is not None:
            for _offset, length in step:
                self._progress(length)

    def _finish_all(self) -> None:
        while self._pending:
            self._finish_one()
        self._wait(self._mover.pushed)

    def _wait(self, pushed: int) -> None:
        self._mover.help(pushed)
        self._map()
        if self._mover.failed:
            raise _Failed

    def _map(self) -> None:
        self._filling.map(self._mover.take())


_native = compiled("mover")

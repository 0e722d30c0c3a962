"""Two images side by side: where they may differ, and where they do.

What reads as zeroes in both, or lies at the same place of the same file in both, is the same without being read.
"""

from __future__ import annotations

import os

from qobra.block.buffers import is_zero, new_buffer
from qobra.block.copy.chunk import is_plain_data
from qobra.block.copy.zeroes import zero_pieces
from qobra.block.extents import COMPUTED, DATA, Run, resolve
from qobra.errors import QobraError
from qobra.lean import Lock, deque, start_thread
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from qobra.block.node import BlockNode

SECTOR = 512
BUFFER_SIZE = 512 << 10
BATCH = 64 << 20
"""Bytes that threads compare before it is told how far they are."""
STEP = 256 << 20
"""Bytes of both images whose maps are held at a time."""


class SideError(Exception):
    """An image could not be read, or (``is_map``) could not say where its data is."""

    def __init__(self, side: Side, offset: int, error: OSError | QobraError, *, is_map: bool) -> None:
        super().__init__(str(error))
        self.side = side
        self.offset = offset
        self.error = error
        self.is_map = is_map


class Side:
    """One of the images, with ``buffers`` of its own: so many that were given out last are good."""

    def __init__(self, node: BlockNode, name: str, buffers: int = 1) -> None:
        self.node = node
        self.name = name
        self._buffers = deque(new_buffer(BUFFER_SIZE) for _ in range(buffers))
        self.buffer = self._buffers[0]
        """What was read last."""
        self.given = False
        """A part of the buffer was given out: the next read goes into another."""
        self._identities: dict[BlockNode, object] = {}
        self.direct = not _has_filter(node)

    def runs(self, start: int, length: int) -> list[Run]:
        """Where a range lies. Raises SideError."""
        try:
            return resolve(self.node, start, length, want_zero=True)
        except (OSError, QobraError) as error:
            raise SideError(self, start, error, is_map=True)

    def read(self, run: Run, start: int, size: int) -> memoryview:
        """``size`` bytes (at most BUFFER_SIZE) at ``start``, which lie in ``run``. Raises SideError."""
        if self.given:
            self._buffers.rotate()
            self.buffer = self._buffers[0]
            self.given = False
        view = memoryview(self.buffer)[:size]
        assert run.leaf is not None
        try:
            if self.direct:
                run.leaf.read_into(run.offset + start - run.start, view)
            else:
                self.node.read_into(start, view)  # some filters have to see the reads
        except (OSError, QobraError) as error:
            raise SideError(self, start, error, is_map=False)
        return view

    def identity(self, leaf: BlockNode) -> object:
        """The same for two nodes on the same file of the host."""
        known = self._identities.get(leaf)
        if known is None:
            known = leaf
            if leaf.is_leaf and leaf.fd >= 0:
                status = os.fstat(leaf.fd)
                known = (status.st_dev, status.st_ino)
            self._identities[leaf] = known
        return known


def _has_filter(node: BlockNode) -> bool:
    return node.is_filter or any(_has_filter(child) for child in node.children.values())


def has_data(run: Run) -> bool:
    """Whether a run must be read to know what is in it."""
    return run.kind in (DATA, COMPUTED)


def candidates(one: Side, two: Side, start: int, length: int) -> Iterator[tuple[int, int, Run, Run]]:
    """``(start, length, run of one, run of two)`` for the parts of a range that may differ. Raises SideError."""
    end = start + length
    while start < end:
        stop = min(end, start + STEP)
        runs_one, runs_two = one.runs(start, stop - start), two.runs(start, stop - start)
        first = second = 0
        while start < stop:
            a, b = runs_one[first], runs_two[second]
            a_end, b_end = a.start + a.length, b.start + b.length
            until = min(a_end, b_end)
            if not _same_place(one, a, two, b):
                yield start, until - start, a, b
            first += a_end == until
            second += b_end == until
            start = until


def _same_place(one: Side, a: Run, two: Side, b: Run) -> bool:
    if not has_data(a) or not has_data(b):
        return not has_data(a) and not has_data(b)
    if a.leaf is None or b.leaf is None or a.offset - a.start != b.offset - b.start or a.kind != b.kind:
        return False
    return a.leaf is b.leaf or (a.kind == DATA and one.identity(a.leaf) == two.identity(b.leaf))


def first_difference(one: Side, two: Side, start: int, length: int, a: Run, b: Run) -> int:
    """The first sector of a candidate in which the images differ, or -1. Raises SideError."""
    end = start + length
    while start < end:
        size = min(BUFFER_SIZE, end - start)
        if has_data(a) and has_data(b):
            first, second = one.read(a, start, size), two.read(b, start, size)
            # bytearray against memoryview is memcmp; between two views, Python goes byte by byte.
            same = one.buffer == second if size == BUFFER_SIZE else first.tobytes() == second
        else:
            first = one.read(a, start, size) if has_data(a) else two.read(b, start, size)
            same = is_zero(first)
            second = memoryview(bytes(size)) if not same else first
        if not same:
            return start + _first_unequal(first, second)
        start += size
    return -1


Candidate = tuple[int, int, Run, Run]
"""(start, length, run of one, run of the other)."""


def first_of(one: Side, two: Side, wanted: Iterable[Candidate]) -> Iterator[tuple[int, int]]:
    """For each candidate its end and the first sector in it in which the images differ, or -1; not after the first.

    What lies raw in files is compared by two threads without the GIL, a batch at a time: one begins while the next
    batch is looked for, the other helps it to an end. Raises SideError.
    """
    under_way = _Batch(one, two)
    batch: list[Candidate] = []
    size = 0
    failed: SideError | None = None
    following = iter(wanted)
    try:
        while True:
            try:
                candidate = next(following, None)
            except SideError as error:
                candidate, failed = None, error  # of a later place than all that is to be compared
            is_plain = candidate is not None and _is_plain(one, candidate[2]) and _is_plain(two, candidate[3])
            if candidate is not None and is_plain:
                batch.append(candidate)
                size += candidate[1]
            if size >= BATCH or not is_plain:
                yield from under_way.results()
                under_way = _Batch(one, two, batch, size)
                batch, size = [], 0
            if not is_plain:
                yield from under_way.results()
                under_way = _Batch(one, two)
                if candidate is None:
                    break
                yield candidate[0] + candidate[1], first_difference(one, two, *candidate)
    finally:
        under_way.wait()
    if failed is not None:
        raise failed


class _Batch:
    """Candidates of ``size`` bytes that are being compared. Wait for it before files are closed."""

    def __init__(self, one: Side, two: Side, candidates: Sequence[Candidate] = (), size: int = 0) -> None:
        self._one, self._two = one, two
        self._candidates = candidates
        self._matcher: Any = None
        self._ended = Lock()
        """Held until the thread has ended."""
        if _native is not None and size > BUFFER_SIZE:
            self._matcher = _native.Matcher([_pair(*candidate) for candidate in candidates])
            self._ended.acquire()
            start_thread(self._work, name="compare", imports=False)

    def _work(self) -> None:
        try:
            self._matcher.work()
        finally:
            self._ended.release()

    def wait(self) -> None:
        with self._ended:
            pass

    def results(self) -> Iterator[tuple[int, int]]:
        """See :func:`first_of`."""
        same = 0
        if self._matcher is not None:
            self._matcher.work()
            self.wait()
            same = self._matcher.suspect if self._matcher.suspect >= 0 else len(self._candidates)
        for start, length, _a, _b in self._candidates[:same]:
            yield start + length, -1
        # Where they differ, or why they cannot be read, is found out in the ordinary way.
        for start, length, a, b in self._candidates[same:]:
            yield start + length, first_difference(self._one, self._two, start, length, a, b)


def _is_plain(side: Side, run: Run) -> bool:
    return side.direct and run.leaf is not None and run.leaf.driver == "file" and is_plain_data(run)


def _pair(start: int, length: int, a: Run, b: Run) -> tuple[int, int, int, int, int]:
    assert a.leaf is not None and b.leaf is not None
    return a.leaf.fd, a.offset + start - a.start, b.leaf.fd, b.offset + start - b.start, length


def _first_unequal(first: memoryview, second: memoryview) -> int:
    low, high = 0, len(first)
    while high - low > SECTOR:
        middle = low + max(SECTOR, (high - low) // 2 // SECTOR * SECTOR)
        if first[low:middle].tobytes() == second[low:middle].tobytes():
            low = middle
        else:
            high = middle
    return low


def differences(
    one: Side, two: Side, start: int, length: int, unit: int
) -> Iterator[tuple[int, int, memoryview | None]]:
    """``(start, size, data of one)`` for each run of units in which the images differ; None for zeroes.

    The data is good until as many more were asked for as the sides have buffers. Raises SideError.
    """
    for begin, size, a, b in candidates(one, two, start, length):
        end = begin + size
        while begin < end:
            part = min(BUFFER_SIZE - begin % unit if unit <= BUFFER_SIZE else BUFFER_SIZE, end - begin)
            if not has_data(a):
                two.read(b, begin, part)
                for low, high in _not_zero(two.buffer, part, begin, unit):
                    yield begin + low, high - low, None
            else:
                view = one.read(a, begin, part)
                if has_data(b):
                    pieces = _unequal_units(view, two.read(b, begin, part), begin, unit)
                else:
                    pieces = _not_zero(one.buffer, part, begin, unit)
                for low, high in pieces:
                    one.given = True
                    yield begin + low, high - low, view[low:high]
            begin += part


def _not_zero(buffer: bytearray, size: int, phase: int, unit: int) -> Iterator[tuple[int, int]]:
    """Runs of units that are not all zeroes, as :func:`_unequal_units` has them."""
    for start, length, zero in zero_pieces(buffer, size, unit, phase % unit):
        if not zero:
            yield start, start + length


def _unequal_units(first: memoryview, second: memoryview, phase: int, unit: int) -> Iterator[tuple[int, int]]:
    """Runs of units, as ``(start, end)`` in the views, that are not the same; ``phase`` is where the views begin."""
    if first.tobytes() == second:
        return
    low = at = 0
    length = len(first)
    open_run = False
    while at < length:
        stop = min(length, at + unit - (phase + at) % unit)
        if first[at:stop].tobytes() == second[at:stop]:
            if open_run:
                yield low, at
            open_run = False
        elif not open_run:
            low, open_run = at, True
        at = stop
    if open_run:
        yield low, length


_native = compiled("matcher")

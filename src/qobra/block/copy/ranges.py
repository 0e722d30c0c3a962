"""Which parts of a node a copy is about."""

from __future__ import annotations

from qobra.block.extents import ABSENT, ZERO, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qobra.block.node import BlockNode

    Ranges = Iterator[tuple[int, int]]
    """``(offset, length)`` in bytes, in order, not overlapping."""

STEP = 1 << 30
"""Bytes whose map is asked for at a time, so that one of a large image is never held whole."""


def whole(length: int) -> Ranges:
    """Everything."""
    if length:
        yield 0, length


def all_under(node: BlockNode) -> Iterator[BlockNode]:
    """``node`` and what lies under it; what is there by several ways, several times."""
    pending = [node]
    while pending:
        each = pending.pop()
        yield each
        pending.extend(each.children.values())


def may_read_past(node: BlockNode) -> bool:
    """Whether data can be read from where the map of ``node`` says that they are, past all that lies between."""
    return not any(each.sees_reads for each in all_under(node))


def chain_depth(node: BlockNode, base: BlockNode | None) -> int:
    """How many nodes that hold data lie from ``node`` down to, not including, ``base`` (None: all)."""
    depth = 0
    current: BlockNode | None = node
    while current is not None and current is not base:
        if current.is_transparent:
            current = current.filtered or current.children.get("file") or current.backing
        else:
            depth += 1
            current = current.backing
    return depth


def allocated_above(node: BlockNode, base: BlockNode | None, offset: int = 0, end: int | None = None) -> Ranges:
    """What ``node`` and the nodes under it hold themselves, down to but without ``base`` (None: all of them)."""
    yield from _select(node, base, offset, node.length if end is None else min(end, node.length), True)


def unallocated_above(node: BlockNode, base: BlockNode | None, offset: int = 0, end: int | None = None) -> Ranges:
    """The rest: what comes from ``base`` or from nowhere."""
    yield from _select(node, base, offset, node.length if end is None else min(end, node.length), False)


def holding_data(node: BlockNode, offset: int = 0, end: int | None = None) -> Ranges:
    """What of ``node`` is not known to read as zeroes."""
    stop = node.length if end is None else min(end, node.length)
    yield from merged(
        (run.start, run.length)
        for start in range(offset, stop, STEP)
        for run in resolve(node, start, min(STEP, stop - start), want_zero=True)
        if run.kind not in (ZERO, ABSENT)
    )


def _select(node: BlockNode, base: BlockNode | None, offset: int, end: int, wanted: bool) -> Ranges:
    limit = chain_depth(node, base)
    # Who holds what does not depend on the holes of files, but some filters tell only what is there, not where to read.
    sees_reads = not may_read_past(node)

    def pieces() -> Ranges:
        for start in range(offset, end, STEP):
            for run in resolve(node, start, min(STEP, end - start), want_zero=sees_reads, levels=limit):
                if (0 <= run.depth < limit) == wanted:
                    yield run.start, run.length

    yield from merged(pieces())


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same with ranges that touch made one."""
    offset = length = 0
    for start, size in ranges:
        if length and offset + length == start:
            length += size
        else:
            if length:
                yield offset, length
            offset, length = start, size
    if length:
        yield offset, length


def widened(ranges: Iterable[tuple[int, int]], unit: int, end: int) -> Ranges:
    """The same with what is missing to whole multiples of ``unit``, but nothing past ``end``."""

    def outward() -> Ranges:
        done = 0
        for offset, length in ranges:
            start = max(offset - offset % unit, done)
            done = min(-(-(offset + length) // unit) * unit, end)
            if start < done:
                yield start, done - start

    yield from merged(outward())


def in_chunks(ranges: Iterable[tuple[int, int]], size: int) -> Ranges:
    """The same in pieces that do not cross multiples of ``size``."""
    for offset, length in ranges:
        end = offset + length
        while offset < end:
            stop = min(end, (offset // size + 1) * size)
            yield offset, stop - offset
            offset = stop

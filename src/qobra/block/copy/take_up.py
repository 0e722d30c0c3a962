"""Take up into an image what shows through from below, while guests write to it.

Nobody is kept waiting: the image links what was copied where it still holds nothing itself; see
:class:`qobra.block.format.qcow2.linking.Linking`.
"""

from __future__ import annotations

from qobra.block.buffers import is_zero, new_buffer
from qobra.block.copy.carrier import ZEROES
from qobra.block.copy.chunk import is_plain_data
from qobra.block.copy.coarse import resolve_coarse
from qobra.block.copy.ranges import chain_depth, may_read_past, merged, widened
from qobra.block.extents import ABSENT, ZERO, resolve
from qobra.block.in_files import InFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.contracts import Linking
    from qobra.block.copy.carrier import Carrier, Part
    from qobra.block.extents import Run
    from qobra.block.node import BlockNode


def take_up(
    top: BlockNode, linking: Linking, offset: int, length: int, base: BlockNode | None, carrier: Carrier
) -> None:
    """Hold in ``top`` what of a range of whole clusters comes from under it, but not from ``base`` or below.

    ``carrier`` moves what goes from file to file. Raises OSError or QobraError.
    """
    cluster = top.cluster_size()
    depth = chain_depth(top, base)
    reads_past = may_read_past(top)
    in_files = linking.takes_files() and reads_past
    held = resolve(top, offset, min(length, top.length - offset), want_zero=not reads_past)
    from_below = ((run.start, run.length) for run in held if 0 < run.depth < depth)
    ranges: list[tuple[int, int]] = []
    parts: list[Part] = []
    for start, size in widened(from_below, cluster, top.length):
        # Only here are holes looked for: who asks a file for them, and a guest that writes to it, wait for each other.
        runs = resolve_coarse(top, start, size)
        for is_zeroes, first, last in _by_kind(runs, start, start + size, cluster):
            end = -(-last // cluster) * cluster
            found = _parts(runs, first, last, end) if in_files else None
            if is_zeroes and linking.takes_zeroes():
                linking.take_up_zeroes(first, end - first)
            elif found is not None:
                ranges.append((first, end - first))
                parts += found
            else:
                _through_buffer(top, linking, first, last, end)
    if ranges:
        linking.take_up(ranges, InFiles(parts, carrier))


def _by_kind(runs: list[Run], start: int, end: int, cluster: int) -> Iterator[tuple[bool, int, int]]:
    """A range in pieces of whole clusters, those that read as zeroes apart: (whether they do, first byte, end)."""
    position = start
    for low, size in merged(_zeroes(runs, start, end)):
        first, last = -(-low // cluster) * cluster, low + size
        if last < end:
            last -= last % cluster
        if first < last:
            if position < first:
                yield False, position, first
            yield True, first, last
            position = last
    if position < end:
        yield False, position, end


def _zeroes(runs: list[Run], start: int, end: int) -> Iterator[tuple[int, int]]:
    for run in runs:
        low, high = max(start, run.start), min(end, run.start + run.length)
        if low < high and run.kind in (ZERO, ABSENT):
            yield low, high - low


def _parts(runs: list[Run], start: int, last: int, end: int) -> list[Part] | None:
    """Where the bytes from ``start`` to ``last``, and zeroes up to ``end``, lie in files; None if some do not."""
    parts: list[Part] = []
    for run in runs:
        low, high = max(start, run.start), min(last, run.start + run.length)
        if low >= high:
            continue
        if run.kind in (ZERO, ABSENT):
            parts.append((ZEROES, 0, high - low))
        elif is_plain_data(run):
            assert run.leaf is not None
            parts.append((run.leaf.fd, run.offset + low - run.start, high - low))
        else:
            return None
    if last < end:
        parts.append((ZEROES, 0, end - last))
    return parts


def _through_buffer(top: BlockNode, linking: Linking, first: int, last: int, end: int) -> None:
    view = memoryview(new_buffer(end - first))
    top.read_into(first, view[: last - first])
    if linking.takes_zeroes() and is_zero(view):
        linking.take_up_zeroes(first, end - first)
    else:
        linking.take_up(((first, end - first),), view)

"""The map of a whole image in packed runs, for what looks at all of a large one: ``map`` and ``measure``.

A packed run is four words: where it starts in the image, its length, its kind and where it lies in the file (NOWHERE
if in no place). Runs are as long as they can be, and come in blocks of a bounded size.
"""

from __future__ import annotations

from array import array

from qobra.block.extents import COMPUTED, DATA, ZERO
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.mapping import map_range
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.image import Image
    from qobra.block.node import BlockNode

    Block = tuple[array[int], int]
    """Packed runs and how many they are; good until the next is asked for."""

HOLE = 4
"""A kind of its own beside those of extents: data that is a hole of the file."""
NOWHERE = (1 << 64) - 1
WORDS = 4
_ROOM = 4096
"""Runs in a block, and as many more as an L2 table has entries."""

_compiled = compiled("l2")


def packed_map(node: Qcow2Disk, start: int, end: int) -> Iterator[Block] | None:
    """The runs of ``node`` from guest offset ``start`` to ``end``; None where they have to be found another way.

    That is where another image lies under this one, or tables in memory differ from those on disk. An ABSENT run
    reads as zeroes. Raises QobraError for an entry that cannot be.
    """
    image = node.image
    if node.backing is not None or not node.read_only or image.extended or image.external or image.encrypted:
        return None
    return _blocks(image, start, end, holes=node.data_may_be_holes())


def _blocks(image: Image, start: int, end: int, *, holes: bool) -> Iterator[Block]:
    tables = image.tables
    span_bits = tables.table_bits + image.cluster_bits
    entries = 1 << tables.table_bits
    found = array("Q", bytes(8 * WORDS * (entries + 1)))
    out = array("Q", bytes(8 * WORDS * (entries + 1 + _ROOM)))
    known = array("Q", bytes(32))
    made = 0
    while start < end:
        stop = min(end, ((start >> span_bits) + 1) << span_bits)
        if made + entries > len(out) // WORDS:
            made = yield from _flush(out, made)
        if not holes:
            made = _pack(image, start, stop, out, made)
        else:
            count, at = _pack(image, start, stop, found, 0), 0
            while at < count:
                at, made = _split(image, found, at, count, known, out, made)
                if at < count:
                    made = yield from _flush(out, made)
        start = stop
    if made:
        yield out, made


def _flush(out: array[int], made: int) -> Generator[Block, None, int]:
    """Give out all runs but the last, which may go on, and begin with that; the new number of runs, 1."""
    yield out, made - 1
    out[:WORDS] = out[WORDS * (made - 1) : WORDS * made]
    return 1


def _pack(image: Image, start: int, stop: int, runs: array[int], count: int) -> int:
    """Append the runs of a range that one L2 table maps."""
    bits = image.cluster_bits
    tables = image.tables
    if _compiled is not None and not (start | stop) & image.cluster_mask:
        cluster = start >> bits
        index = tables.l1_index(cluster)
        table = tables.l1[index] & layout.OFFSET_MASK if index < len(tables.l1) else 0
        if table and not table & image.cluster_mask:
            first = cluster & ((1 << tables.table_bits) - 1)
            raw = image.read_meta(table + 8 * first, (stop - start) >> bits << 3)
            packed: int = _compiled.pack_table(raw, start, len(raw) >> 3, bits, image.header.version > 2, runs, count)
            if packed >= 0:
                return packed
    return pure_pack(image, start, stop, runs, count)


def pure_pack(image: Image, start: int, stop: int, runs: array[int], count: int) -> int:
    """Append the runs of guest offsets ``start`` to ``stop`` to the ``count`` in ``runs``; how many there are now."""
    for extent in map_range(image, start, stop - start):
        place = NOWHERE if extent.child is None else extent.offset
        count = _append(runs, count, start, extent.length, extent.kind, place)
        start += extent.length
    return count


def _append(runs: array[int], count: int, start: int, length: int, kind: int, place: int) -> int:
    if count:
        last = WORDS * (count - 1)
        before = runs[last + 3]
        follows = place == NOWHERE if before == NOWHERE else place == before + runs[last + 1]
        if runs[last + 2] == kind and follows:
            runs[last + 1] += length
            return count
    runs[WORDS * count : WORDS * (count + 1)] = array("Q", (start, length, kind, place))
    return count + 1


def _split(
    image: Image, runs: array[int], first: int, count: int, known: array[int], into: array[int], made: int
) -> tuple[int, int]:
    """Append runs ``first`` up to ``count`` to the ``made`` in ``into``, with data that is a hole of the file as such.

    Returns the run to go on with (``count`` once all are done) and how many are in ``into`` now. ``known`` is for the
    next call, zeroes at first: the extent of the file that was asked for last, and how much of a run is done.
    """
    file = image.file
    if _compiled is not None and file.is_leaf and file.fd >= 0 and file.driver == "file":
        at, made = _compiled.split_holes(runs, first, count, file.fd, known, into, made)
        return at, made
    return count, pure_split_holes(file, runs, count, into, made)


def pure_split_holes(file: BlockNode, runs: array[int], count: int, into: array[int], made: int) -> int:
    """Append all ``count`` runs, in as much room as they take; how many there are in ``into`` now."""
    for at in range(0, WORDS * count, WORDS):
        start, length, kind, place = runs[at : at + WORDS]
        if kind == DATA:
            end = start + length
            inside = max(0, min(length, file.length - place))
            for extent in file.map(place, inside) if inside else ():
                made = _append(into, made, start, extent.length, HOLE if extent.kind == ZERO else DATA, place)
                start, place = start + extent.length, place + extent.length
            length, kind = end - start, HOLE
        if length:
            made = _append(into, made, start, length, kind, place)
    return made


def data_bytes(blocks: Iterator[Block], cluster: int) -> int:
    """Bytes of the clusters of ``cluster`` bytes that hold data."""
    total = done = 0
    for runs, count in blocks:
        words = memoryview(runs)[: WORDS * count]
        for start, length, kind in zip(words[::WORDS], words[1::WORDS], words[2::WORDS], strict=True):
            if kind in (DATA, COMPUTED):
                low = start if start > done else done
                end = start + length
                if end > done:
                    done = -(-end // cluster) * cluster
                    total += done - low // cluster * cluster
    return total

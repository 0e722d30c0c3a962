"""``--salvage``: what of a source can be copied when its map and its data cannot be read everywhere."""

from __future__ import annotations

from qobra.block.copy.ranges import STEP
from qobra.block.extents import resolve
from qobra.cli._img._pieces import SECTOR
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qobra.block.node import BlockNode


def mapped_parts(
    source: BlockNode, ranges: Iterable[tuple[int, int]], failed: Callable[[int, OSError | QobraError], None]
) -> Iterator[tuple[int, int]]:
    """``ranges`` (offset, length) in parts whose map can be read, and sectors whose map cannot.

    ``failed(offset, error)`` is told of those sectors, once what lies before them was dealt with.
    """
    for offset, length in ranges:
        begun, end = offset, offset + length
        size = STEP
        while offset < end:
            size = min(size, end - offset)
            try:
                resolve(source, offset, size, want_zero=True)
            except (OSError, QobraError) as error:
                if size > SECTOR:
                    size = -(-size // 4 // SECTOR) * SECTOR
                    continue
                if begun < offset:
                    yield begun, offset - begun
                failed(offset, error)
                yield offset, size
                begun = offset + size
            offset += size
            size = min(STEP, 4 * size)
        if begun < end:
            yield begun, end - begun


def read_sectors(
    source: BlockNode, offset: int, view: memoryview, failed: Callable[[int, OSError | QobraError], None]
) -> None:
    """Read into ``view`` sector by sector, with zeroes for those that are lost, which ``failed`` is told of."""
    for start in range(0, len(view), SECTOR):
        part = view[start : start + SECTOR]
        try:
            source.read_into(offset + start, part)
        except (OSError, QobraError) as error:
            part[:] = bytes(len(part))
            failed(offset + start, error)

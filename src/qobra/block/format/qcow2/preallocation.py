"""Preallocating the clusters of an image. The node is drained while this runs."""

from __future__ import annotations

from array import array

from qobra.block.format.qcow2 import layout
from qobra.errors import QobraError
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.image import Image


def preallocate(node: Qcow2Disk, start: int, end: int, mode: str, *, zero: bool = False) -> None:
    """Allocate every cluster from guest ``start`` to ``end``; ``falloc`` and ``full`` reserve the file's space too.

    ``zero``: mark them as zero besides.
    """
    image = node.image
    bits = image.cluster_bits
    tables = image.tables
    cluster, last = start >> bits, (end + image.cluster_mask) >> bits
    file_mode = mode if mode != "metadata" else "off"
    while cluster < last:
        image.writeback.commit_if_crowded()
        filled: list[tuple[int, int, int]] = []
        with image.lock:
            image.before_allocating()
            stop = min((cluster | tables.slice_mask) + 1, last)
            while cluster < stop:
                done, host_end = _fill_entries(image, cluster, stop, layout.ZERO_FLAG if zero else 0)
                if host_end:
                    filled.append((cluster, done, host_end))
                cluster += done
        # Before the mapping is written: it must not refer to what is past the end of the file.
        top = max((host_end for _, _, host_end in filled), default=0)
        if not image.external and top > image.file.length:
            try:
                image.file.truncate(top, preallocation=file_mode, exact=False)
            except BaseException as error:
                _empty_entries_again(image, filled)
                if isinstance(error, QobraError) and file_mode != "off":
                    raise error.prefixed("Failed to resize underlying file: ")
                raise
    image.writeback.commit()
    with image.lock:
        image.allocator.virgin = max(image.allocator.virgin, image.file.length >> bits)


def _fill_entries(image: Image, cluster: int, stop: int, flags: int) -> tuple[int, int]:
    """Map guest clusters from ``cluster`` on, all in one slice: (how many, end of the host clusters in bytes).

    ``flags`` are for each entry, besides COPIED.
    """
    tables = image.tables
    part = tables.writable(cluster)
    words = part.words
    width = 1 << tables.word_bits
    first = (cluster & tables.slice_mask) * width
    limit = first + (stop - cluster) * width
    if words[first]:
        return 1, 0  # allocated already
    want = empty_entries(words, first, limit, width)
    if image.external:
        host, count = cluster << image.cluster_bits, want
    else:
        place, count = image.allocator.allocate(want, virgin=True)
        host = place << image.cluster_bits
    step = image.cluster_size
    # Subclusters stay unallocated, so that a backing file shows through.
    fill_entries(words, first, count, width, host | layout.COPIED | flags, step)
    tables.mark(cluster, part, first, first + count * width - 1)
    return count, host + count * step


def _empty_entries_again(image: Image, filled: list[tuple[int, int, int]]) -> None:
    """Undo :func:`_fill_entries` for each (guest cluster, how many, end of the host clusters) of one slice."""
    tables = image.tables
    width = 1 << tables.word_bits
    with image.lock:
        for cluster, count, host_end in filled:
            part = tables.writable(cluster)
            first = (cluster & tables.slice_mask) * width
            for at in range(first, first + count * width, width):
                part.words[at] = 0
            tables.mark(cluster, part, first, first + count * width - 1)
            image.allocator.release((host_end >> image.cluster_bits) - count, count)


def pure_empty_entries(words: array[int], first: int, limit: int, width: int) -> int:
    """How many entries of ``width`` words from ``words[first]`` on, up to ``words[limit]``, map nothing."""
    at = first
    while at < limit and not words[at]:
        at += width
    return (at - first) // width


def pure_fill_entries(words: array[int], first: int, count: int, width: int, word: int, step: int) -> None:
    """Set the first word of ``count`` entries, each ``step`` more than the one before."""
    new = array("Q", range(word, word + count * step, step))
    if width == 1:
        words[first : first + count] = new
    else:
        words[first : first + width * count : width] = new


_compiled = compiled("l2")
empty_entries = pure_empty_entries if _compiled is None else _compiled.empty_entries
fill_entries = pure_fill_entries if _compiled is None else _compiled.fill_entries

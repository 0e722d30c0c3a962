"""Copy ranges from one node to another, several chunks at a time, for tools, whose images are nobody else's.

Jobs, which share their nodes with a guest and can be paused, drive :class:`ChunkCopier` and :class:`CopyPool`
themselves.
"""

from __future__ import annotations

from qobra.block.copy.chunk import CHUNK_SIZE, ChunkCopier, CopyFailed
from qobra.block.copy.pool import CopyPool
from qobra.block.copy.ranges import STEP, all_under, in_chunks, may_read_past, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qobra.block.node import BlockNode

    Progress = Callable[[int], None]
    OnError = Callable[[CopyFailed, int, int], bool]

NEAR_HELPERS = 4
"""Chunks in flight between local files: some are read while others are written."""
FAR_HELPERS = 8
"""Chunks in flight where an end is not a local file."""
LOCAL_CHUNK = 4 << 20
"""Bytes of a job's chunk between local files. None are held in memory, and what is to be done for each chunk beside
moving its data costs as much as moving some hundred KiB."""
COMPRESS_HELPERS = 2
"""Threads that compress."""


def copy_ranges(
    copier: ChunkCopier,
    ranges: Iterable[tuple[int, int]] | None = None,
    *,
    helpers: int | None = None,
    progress: Progress | None = None,
    throttle: Callable[[int], None] | None = None,
    on_error: OnError | None = None,
) -> None:
    """Copy ``ranges`` (default: all) as ``copier`` is set to.

    ``helpers`` is the number of chunks in flight, 1 meaning in order and in the calling thread (default: by the kind of
    the ends). ``progress(length)`` is told of each chunk, from any of the helpers, ``throttle(length)`` is called
    between chunks in the calling thread and may wait. ``on_error(failure, offset, length)`` returns True to go on
    without that chunk; without it, or when it returns False, the error is raised.
    """
    source, target = copier.source, copier.target
    failures: list[tuple[CopyFailed, int, int]] = []

    def done(offset: int, length: int, failure: CopyFailed | None) -> None:
        if failure is not None and not (on_error is not None and on_error(failure, offset, length)):
            failures.append((failure, offset, length))
        elif progress is not None:
            progress(length)

    asked: Iterable[tuple[int, int]] = ranges if ranges is not None else whole(source.length)
    chunk_size = CHUNK_SIZE
    if copier.compress:
        cluster = target.cluster_size()
        if cluster:
            chunk_size = max(cluster, chunk_size // cluster * cluster)
    elif not is_local(source):
        asked = _holding_data(copier, asked, done)
    pool = CopyPool(copier.copy, done, helpers or suggested_helpers(source, target, copier.compress))
    try:
        for offset, length in in_chunks(asked, chunk_size):
            if failures:
                break
            pool.submit(offset, length)
            if throttle is not None:
                throttle(length)
    finally:
        pool.close()
    if failures:
        raise failures[0][0].error


def _holding_data(
    copier: ChunkCopier, ranges: Iterable[tuple[int, int]], done: Callable[[int, int, CopyFailed | None], None]
) -> Iterator[tuple[int, int]]:
    """What of ``ranges`` holds data; the rest is made zero meanwhile, which ``done`` is told.

    A server is asked once for many chunks: for each of them, the question would take as long as its data.
    """
    copier.asks_for_zeroes = False
    for start, length in ranges:
        for first in range(start, start + length, STEP):
            offset, step = first, min(STEP, start + length - first)
            try:
                runs = copier.zeroes_and_data(offset, step)
            except CopyFailed as failure:
                done(offset, step, failure)
                continue
            for is_zero, size in runs:
                if not is_zero:
                    yield offset, size
                else:
                    try:
                        copier.write_zeroes(offset, size)
                        done(offset, size, None)
                    except CopyFailed as failure:
                        done(offset, size, failure)
                offset += size


def suggested_helpers(source: BlockNode, target: BlockNode, compress: bool = False) -> int:
    """Chunks in flight that suit the two ends."""
    if compress:
        return COMPRESS_HELPERS
    return NEAR_HELPERS if is_local(source) and is_local(target) else FAR_HELPERS


def is_local(node: BlockNode) -> bool:
    """Whether all that lies under ``node`` is in local files, and may be read there past all that lies between."""
    return may_read_past(node) and all(each.children or each.is_leaf for each in all_under(node))

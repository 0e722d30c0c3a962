"""Reads and writes past the page cache (O_DIRECT), which wants offset, length and memory aligned.

All data go through a buffer that is aligned. Where only a part of a block is written, the rest of it is read first.
"""

from __future__ import annotations

import errno
import mmap
import os

from qobra.block.buffers import BOUNCE_SIZE, fill_zero, write_all
from qobra.lean import Lock, contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.buffers import Buffer

ALIGNMENT = 4096
"""Alignment in bytes of offset, length and memory; enough for every disk and file system."""
_KEPT_SIZE = 128 << 10
_KEPT_AREAS = 16
"""Most requests are short, and mapping memory takes longer than they do: so many areas are kept."""
_kept: list[mmap.mmap] = []


@contextmanager
def aligned_buffer(size: int) -> Iterator[memoryview]:
    """Memory on a page boundary, as O_DIRECT wants it."""
    if size <= _KEPT_SIZE:
        try:
            area = _kept.pop()
        except IndexError:
            area = mmap.mmap(-1, _KEPT_SIZE)
        view = memoryview(area)[:size]
        try:
            yield view
        finally:
            view.release()
            if len(_kept) < _KEPT_AREAS:
                _kept.append(area)
        return
    area = mmap.mmap(-1, size)
    view = memoryview(area)
    try:
        yield view
    finally:
        view.release()  # the memory goes with the last slice of it, which an error on its way may hold


def _blocks_of(offset: int, length: int) -> tuple[int, int]:
    """Where the blocks that a range touches begin and end."""
    return offset & -ALIGNMENT, -(-(offset + length) // ALIGNMENT) * ALIGNMENT


class DirectFile:
    """Requests of any offset and length on ``fd``, a file that is open with O_DIRECT. Thread-safe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._edges = Lock()
        """Two writers that share a block must not undo one another."""

    def read(self, offset: int, view: memoryview) -> None:
        """Fill ``view``, with zeroes behind the end of the file. Raises OSError."""
        start, end = _blocks_of(offset, len(view))
        with aligned_buffer(min(BOUNCE_SIZE, end - start)) as bounce:
            while start < end:
                size = min(len(bounce), end - start)
                self._read_blocks(start, bounce[:size])
                low, high = max(offset, start), min(offset + len(view), start + size)
                view[low - offset : high - offset] = bounce[low - start : high - start]
                start += size

    def _read_blocks(self, start: int, blocks: memoryview) -> None:
        """Fill ``blocks``, with zeroes behind the end of the file.

        A read may end before that: next to a bad block of the disk, or where the file system so likes.
        """
        done = 0
        while done < len(blocks):
            got = os.preadv(self._fd, (blocks[done:],), start + done)
            if done + got == len(blocks):
                return
            if not got or start + done + got >= os.lseek(self._fd, 0, os.SEEK_END):
                fill_zero(blocks[done + got :])
                return
            if got < ALIGNMENT:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            done += got & -ALIGNMENT

    def write(self, offset: int, data: Buffer, file_length: int) -> None:
        """Write ``data`` to the file, which is ``file_length`` bytes long, or will be. Raises OSError."""
        view = memoryview(data)
        start, end = _blocks_of(offset, len(view))
        with aligned_buffer(min(BOUNCE_SIZE, end - start)) as bounce:
            while start < end:
                blocks = bounce[: min(len(bounce), end - start)]
                after = start + len(blocks)
                low, high = max(offset, start), min(offset + len(view), after)
                part = view[low - offset : high - offset]
                if len(part) == len(blocks) and after <= file_length:
                    blocks[:] = part
                    write_all(self._fd, blocks, start)
                else:
                    with self._edges:
                        self._write_edge(start, blocks, part, low - start, file_length)
                start = after

    def _write_edge(self, start: int, blocks: memoryview, data: memoryview, skip: int, file_length: int) -> None:
        """Write ``data`` to ``start + skip``, where it fills ``blocks`` in part, or where these end behind the file.

        Whoever makes the file longer does so alone, so that nobody's end is cut off.
        """
        extends = start + len(blocks) > file_length
        before = os.fstat(self._fd).st_size if extends else 0
        if len(data) < len(blocks):
            self._read_blocks(start, blocks)
        blocks[skip : skip + len(data)] = data
        write_all(self._fd, blocks, start)
        if extends and skip + len(data) < len(blocks):
            os.ftruncate(self._fd, max(before, start + skip + len(data)))

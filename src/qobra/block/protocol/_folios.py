"""Small writes to a file whose page cache is in large folios.

Linux keeps a file's pages in memory in *folios*, of up to 2 MiB where they came in with long writes or by reading
ahead. ext4 walks all the blocks of a folio for each write to it, so that 4 KiB take up to ten times as long there as
among single pages (40 us in place of 3, Linux 6.18). A folio that is no longer dirty can be taken apart without
changing or losing anything: the kernel does so when a process says that it does not need a part of it soon
(madvise(2): MADV_COLD).

So small writes are timed, one in ``SAMPLE`` while none is slow. A region of 2 MiB with ``FIRST`` slow writes more
than fast ones is *wanted*: a thread has its dirty pages written to the disk, and splits it. Where that does not help,
because it was dirty again at once, twice as many slow writes have to come before it is tried again, and again twice
as many; and where it helps nowhere, with another file system or because something else is slow, so it is for all
regions of the file. What is written to once or twice a region, or fast, is never touched.

No access can fail with SIGBUS: the page is never looked at, only brought in by MADV_POPULATE_READ, which answers with
an error where the file ends before it. The thread opens the file again, for errors of the disk are told once for each
open file, and the one that guests flush must not miss any.
"""

from __future__ import annotations

import os
import time

from qobra.lean import Condition, deque, start_thread
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.block.buffers import Buffer

REGION = 2 << 20
"""Bytes of the largest folio."""
SMALL = 64 << 10
"""Bytes from which on a write is not timed: what the folio makes it cost is little to the data by then."""
SLOW_NS = 7_000
"""A write of a single page that takes so long is slow. Each KiB may take ``KIB_NS`` more."""
KIB_NS = 250
SAMPLE = 16
ATTENTION = 1024
"""So many fast writes after a slow one are timed, all of them."""
FIRST = 4
MOST_PATIENCE = 8
"""The number of slow writes that a region is split for is doubled so many times at most."""
MOST_VAIN = 16
"""After so many splits in vain, with none that helped, it is doubled for all regions; one that helps halves it."""
REGIONS = 1 << 16
"""So many are known at a time, by the rest of their number: of 128 GiB in a row. Others that come take their places."""
MOST_WANTED = 256
_IDLE_SECONDS = 0.1
"""The thread ends after having had nothing to do for so long."""


class PureFolios:
    """Writes to the file ``fd``, a buffered one. Thread-safe. The compiled form is ``qobra.native.folios``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._attention = self._count = 0
        self._regions: dict[int, tuple[int, int, int, bool]] = {}
        """By the rest of their number: (number, slow writes, how often wanted, whether it was just split)."""
        self._vain = self._patience = 0
        self._changed = Condition()
        self._wanted: deque[int] = deque()
        self._works = 0
        """The process whose thread splits."""
        self._closed = self._fails = False

    def write(self, data: Buffer, offset: int) -> int:
        """pwrite(2): how many bytes were written. Raises OSError."""
        self._count += 1
        if (self._attention <= 0 and self._count % SAMPLE != 1) or len(data) >= SMALL:
            return os.pwrite(self._fd, data, offset)
        begin = time.monotonic_ns()
        done = os.pwrite(self._fd, data, offset)
        if self.note(offset, time.monotonic_ns() - begin - (len(data) * KIB_NS >> 10)):
            self._begin()
        return done

    def note(self, offset: int, took_ns: int) -> bool:
        """A small write has been made, and took so long beside what its length accounts for; whether its region became
        wanted."""
        is_slow, is_wanted = took_ns >= SLOW_NS, False
        if is_slow:
            self._attention = ATTENTION
        elif self._attention > 0:
            self._attention -= 1
        if not is_slow and not self._regions:
            return False
        number = offset // REGION
        known, slow, level, was_split = self._regions.get(number % REGIONS, (number, 0, 0, False))
        if known != number:
            slow, level, was_split = 0, 0, False
        if was_split:
            self._judge(not is_slow)
        if is_slow:
            slow += 1
            if slow >= FIRST << max(level, self._patience):
                is_wanted = self._want(offset)
                slow, level = 0, min(level + 1, MOST_PATIENCE)
        elif slow:
            slow -= 1
        self._regions[number % REGIONS] = (number, slow, level, False)
        return is_wanted

    def _judge(self, has_helped: bool) -> None:
        """The first write after a region was split has been made."""
        if has_helped:
            self._vain, self._patience = 0, max(self._patience - 1, 0)
        else:
            self._vain += 1
            if self._vain == MOST_VAIN:
                self._vain, self._patience = 0, min(self._patience + 1, MOST_PATIENCE)

    def _want(self, offset: int) -> bool:
        with self._changed:
            if len(self._wanted) >= MOST_WANTED:
                return False
            self._wanted.append(offset)
            return True

    def take(self) -> int | None:
        """Where the slow write was whose region is to be split next, if any; it is the caller's to do."""
        with self._changed:
            return self._wanted.popleft() if self._wanted else None

    def settle(self, offset: int) -> None:
        """The region there has been split, or should have been."""
        number = offset // REGION
        known, slow, level, _was_split = self._regions.get(number % REGIONS, (-1, 0, 0, False))
        if known == number:
            self._regions[number % REGIONS] = (number, slow, level, True)

    def close(self) -> None:
        """Split no more; returns when nobody does, so that the file may be closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._works == os.getpid():  # a child that the process forked has no thread
                self._changed.wait()

    # The thread that splits -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        with self._changed:
            if self._works or self._closed or self._fails:
                self._changed.notify_all()
                return
            self._works = os.getpid()
        start_thread(self._work, name="folios", imports=False)

    def _work(self) -> None:
        fd = -1
        try:
            fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
            while not self._closed and (offset := self._next()) is not None:
                pure_split(fd, offset)
                self.settle(offset)
        except OSError:
            self._fails = True
        finally:
            if fd >= 0:
                os.close(fd)
            with self._changed:
                self._works = 0
                again = bool(self._wanted)
                self._changed.notify_all()
            if again:
                self._begin()

    def _next(self) -> int | None:
        with self._changed:
            if not self._wanted and not self._closed:
                self._changed.wait(_IDLE_SECONDS)
            return self._wanted.popleft() if self._wanted else None


_WAIT_WRITE_WAIT = 7
_MADV_COLD, _MADV_POPULATE_READ = 20, 22
_libc: Any = None


def pure_split(fd: int, offset: int) -> bool:
    """Take the folio apart that the page at ``offset`` is in, after having its dirty pages written; whether the kernel
    could be asked to. What the file holds stays the same. Raises no errors."""
    import ctypes  # dear
    import mmap

    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None)
    region = offset // REGION * REGION
    _libc.sync_file_range(fd, ctypes.c_int64(region), ctypes.c_int64(REGION), _WAIT_WRITE_WAIT)
    try:
        # Python looks whether the file is that long.
        with mmap.mmap(fd, min(REGION, os.fstat(fd).st_size - region), prot=mmap.PROT_READ, offset=region) as area:
            page = (offset - region) // mmap.PAGESIZE * mmap.PAGESIZE
            area.madvise(_MADV_POPULATE_READ, page, mmap.PAGESIZE)
            area.madvise(_MADV_COLD, page, mmap.PAGESIZE)
        return True
    except (OSError, OverflowError, ValueError):
        return False


Folios = PureFolios
split = pure_split
if not TYPE_CHECKING and (_compiled := compiled("folios")) is not None:
    Folios, split = _compiled.Folios, _compiled.split

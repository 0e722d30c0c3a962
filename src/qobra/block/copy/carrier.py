"""Move what lies in files to where it goes in a file: by the calling thread, or, beside a guest, in idle time.

While guests are at work, a job has its data moved by threads that the kernel runs only where a processor has nothing
else to do (SCHED_IDLE). They never hold the interpreter lock: a thread that has it and is not run stops all others.
What such threads have not begun after some time is moved by the calling thread, so that a job goes on where processors
are never idle: see :class:`Carrier`.
"""

from __future__ import annotations

import os

from qobra.block.buffers import new_buffer
from qobra.block.copy.old_blocks import PureOldBlocks
from qobra.lean import Lock, start_thread
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from qobra.block.protocol._folios import Folios

    class Mender(Protocol):
        """Knows some of what was read better; see :class:`qobra.block.copy.old_blocks.PureOldBlocks`."""

        def mend(self, start: int, into: memoryview, given: bool) -> None: ...


Part = tuple[int, int, int]
"""(file descriptor, offset, length)."""
ZEROES = -1
"""In the place of a descriptor: nothing but zeroes."""

ROOM = 512 << 10
"""Bytes that are moved at a time."""
MOST_THREADS = 4


class ReadFailed(OSError):
    """It was the source that failed."""


class PureMover:
    """Moves in the calling thread; the compiled form of the loop is ``qobra.native.carrier``."""

    def move(
        self,
        parts: Sequence[Part],
        fd: int,
        host: int,
        old: Mender | None = None,
        start: int = 0,
        share: int = 1,
        folios: Folios | None = None,
    ) -> tuple[int, bool] | None:
        """Move ``parts`` to ``host`` of ``fd``, mended by ``old`` as the data from ``start`` of its disk.

        Returns None, or the error's number and whether it came from reading. See :class:`Carrier` for ``share``.
        """
        buffer = memoryview(new_buffer(min(ROOM, max(length for _fd, _offset, length in parts))))
        for source, offset, length in parts:
            position = 0
            while position < length:
                view = buffer[: length - position]
                is_reading = True
                try:
                    _read_all(source, offset + position, view)
                    if old is not None:
                        old.mend(start, view, True)
                    is_reading = False
                    _write_all(fd, host, view, folios)
                except OSError as error:
                    return error.errno or 0, is_reading
                position, host, start = position + len(view), host + len(view), start + len(view)
        return None

    def work(self) -> None:
        """There is nothing for a thread of idle priority to do: it would have to hold the interpreter lock."""

    def stop(self) -> None:
        """No thread is at work."""


Mover = PureMover
if not TYPE_CHECKING and (_compiled := compiled("carrier")) is not None:
    Mover = _compiled.Carrier


class Carrier:
    """Moves data for one job. Thread-safe.

    ``share`` 1: at once, in the calling thread. Else the threads of idle priority have time to begin for ``share - 1``
    times as long as the work takes of a processor, so that a job that finds none idle still has one of ``share`` parts
    of one.
    """

    def __init__(self) -> None:
        self.share = 1
        self._mover = Mover()
        self._has_begun = self._closed = False
        self._lock = Lock()

    def move(
        self,
        parts: Sequence[Part],
        fd: int,
        host: int,
        mender: Mender | None = None,
        start: int = 0,
        folios: Folios | None = None,
    ) -> None:
        """Write ``parts``, one after another, to ``host`` of ``fd``; mended as the data from ``start`` of a disk. Small
        ones are written by the file's ``folios``.

        Zeroes are read past the end of a file. Raises OSError, ReadFailed where it is a part that failed.
        """
        share = self.share
        if share > 1 and not self._has_begun:
            self._begin()
        mover = _PURE if isinstance(mender, PureOldBlocks) else self._mover
        failure = mover.move(parts, fd, host, mender, start, share, folios)
        if failure is not None:
            number, is_reading = failure
            raise (ReadFailed if is_reading else OSError)(number, os.strerror(number))

    def close(self) -> None:
        """Let the threads end. What is moved from now on is moved at once."""
        with self._lock:
            self.share = 1
            self._closed = True
            self._mover.stop()

    def _begin(self) -> None:
        with self._lock:
            if self._has_begun or self._closed:
                return
            self._has_begun = True
            for _number in range(min(MOST_THREADS, os.cpu_count() or 1)):
                start_thread(self._mover.work, name="carrier")


_PURE = PureMover()
DIRECT = Carrier()
"""For whoever has nobody to give way to."""


def _read_all(fd: int, offset: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        moved = os.preadv(fd, (view[done:],), offset + done) if fd != ZEROES else 0
        if not moved:
            view[done:] = bytes(len(view) - done)
            return
        done += moved


def _write_all(fd: int, offset: int, view: memoryview, folios: Folios | None) -> None:
    done = folios.write(view, offset) if folios is not None else 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)

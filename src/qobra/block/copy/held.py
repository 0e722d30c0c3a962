"""Old data that waits in memory for a slow target, so that the guest need not wait for it."""

from __future__ import annotations

import errno
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

from qobra.block.copy.chunk import CopyFailed
from qobra.errors import QobraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.copy.chunk import Fetched
    from qobra.block.copy.slots import ThreadSlots

LIMIT = 64 << 20
"""Most bytes that wait at a time; a write that would need more copies its part to the target itself."""
PIECE = 1 << 20
"""Bytes that are read ahead of writes at a time, and whose memory is used again."""


class HeldCopies:
    """What was read before the guest changed it and is still to be written; written in order by a thread of its own.

    ``write(fetched)`` writes one part, inside ``slots``. ``written(offset, length)`` is told of each part that is safe,
    ``failed(failure)`` of a part that could not be written: it stays, and so does all behind it, until
    :meth:`retry`. Thread-safe.
    """

    def __init__(
        self,
        slots: ThreadSlots,
        write: Callable[[Fetched], None],
        written: Callable[[int, int], None],
        failed: Callable[[CopyFailed], None],
        limit: int = LIMIT,
    ) -> None:
        self._slots = slots
        self._write = write
        self._written = written
        self._failed = failed
        self.limit = limit
        self.size = 0
        """Bytes that are held or about to be."""
        self._parts: deque[tuple[int, int, Fetched]] = deque()
        self._unused: list[bytearray] = []
        """Memory of ``PIECE`` bytes each; ``size`` and this together are within the limit."""
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stuck = False
        self._closed = False
        self._ended = False

    def reserve(self, length: int) -> bool:
        """Make room for ``length`` bytes; False if there is none. Then :meth:`put` or :meth:`release`."""
        with self._condition:
            if self._closed or self._stuck or self.size + length > self.limit:
                return False
            self.size += length
            needed = 1 if length == PIECE else 0
            while len(self._unused) > needed and self.size + (len(self._unused) - needed) * PIECE > self.limit:
                self._unused.pop()
            return True

    def release(self, length: int) -> None:
        """Give up what was reserved."""
        with self._condition:
            self.size -= length
            self._condition.notify_all()

    def memory(self, length: int) -> memoryview:
        """Memory for (a part of) what was reserved."""
        if length == PIECE:
            with self._condition:
                if self._unused:
                    return memoryview(self._unused.pop())
        return memoryview(bytearray(length))

    def put(self, offset: int, length: int, fetched: Fetched) -> None:
        """Hold the part that was reserved; it is going to be written."""
        with self._condition:
            self._parts.append((offset, length, fetched))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="held copies", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def wait_written(self) -> bool:
        """Wait until nothing is held; False if what is held cannot be written now."""
        with self._condition:
            while self.size and not self._stuck:
                self._condition.wait()
            return not self._stuck

    def retry(self) -> None:
        """Try what could not be written again."""
        with self._condition:
            self._stuck = False
            self._condition.notify_all()

    def close(self) -> list[tuple[int, int]]:
        """Take nothing more, wait until what is held is written, and end.

        Returns the parts (offset, length) that could not be written.
        """
        with self._condition:
            self._closed = True
            # What was reserved comes yet, and its claim has to be let go of either way.
            while self.size > (sum(length for _offset, length, _fetched in self._parts) if self._stuck else 0):
                self._condition.wait()
            self._ended = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()
        lost = [(offset, length) for offset, length, _fetched in self._parts]
        self._parts.clear()
        return lost

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._ended and (self._stuck or not self._parts):
                    self._condition.wait()
                if self._ended:
                    return
                offset, length, fetched = self._parts[0]
            failure = self._try(fetched)
            if failure is not None:
                with self._condition:
                    self._stuck = True
                    self._condition.notify_all()
                self._failed(failure)
                continue
            self._written(offset, length)
            with self._condition:
                self._parts.popleft()
                self.size -= length
                self._keep(fetched)
                self._condition.notify_all()

    def _keep(self, fetched: Fetched) -> None:
        """Use the memory of a part that is written again: fresh memory costs as much as the copy."""
        for _offset, length, view in fetched:
            if view is not None and length == PIECE and self.size + (len(self._unused) + 1) * PIECE <= self.limit:
                memory = view.obj
                assert isinstance(memory, bytearray)
                self._unused.append(memory)

    def _try(self, fetched: Fetched) -> CopyFailed | None:
        try:
            with self._slots.entered():
                self._write(fetched)
        except CopyFailed as failure:
            return failure
        except Exception as error:
            # A defect must not leave a guest that waits for this part for ever.
            sys.excepthook(*sys.exc_info())
            return CopyFailed(QobraError(f"Internal error: {error}", errno=errno.EIO), False)
        return None

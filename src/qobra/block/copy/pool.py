"""A few threads that copy for one dispatcher.

The dispatcher decides (what next, how fast, what to do about an error) and the helpers move data, so that several
chunks are in flight where the ends are far away or compress. Without helpers, the dispatcher does the work itself.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from _thread import get_native_id

from qobra.block.copy.chunk import CopyFailed
from qobra.errors import QobraError
from qobra.lean import Condition, Lock, deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread

    Work = Callable[[int, int], object]
    """Moves ``length`` bytes at ``offset``. Raises CopyFailed."""
    Done = Callable[[int, int, CopyFailed | None], None]
    """Told of each chunk's end, with its failure if it failed."""

NICENESS = 4
"""How much nicer copying threads are than those that serve a guest."""


def be_nice() -> None:
    """Let the threads that serve guests, which have the process's own priority, go before the calling thread."""
    try:
        niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS
        os.setpriority(os.PRIO_PROCESS, get_native_id(), niceness)
    except OSError:
        pass  # it is a courtesy


class CopyPool:
    """Runs ``work(offset, length)`` with up to ``helpers`` at once (1: in the calling thread).

    ``done`` is called for each chunk in the thread that worked on it. Helpers have the priority of whoever gives them
    work: low in a job, not in a tool.
    """

    def __init__(self, work: Work, done: Done, helpers: int = 1) -> None:
        self._work = work
        self._done = done
        self._limit = helpers
        lock = Lock()
        # Two conditions, so that a helper that is done wakes the dispatcher and nobody else.
        self._given = Condition(lock)
        self._finished = Condition(lock)
        self._queue: deque[tuple[int, int]] = deque()
        self._busy = 0
        self._idle = 0
        self._threads: list[Thread] = []
        self._closed = False
        self.helped_ns = 0
        """Processor time that helpers have spent on chunks."""

    @property
    def in_flight(self) -> int:
        """Chunks that are being worked on or wait for that."""
        return self._busy + len(self._queue)

    def submit(self, offset: int, length: int) -> None:
        """Work on a chunk; waits while there are enough waiting already to keep the helpers busy."""
        if self._limit <= 1:
            self._run(offset, length)
            return
        with self._given:
            while self.in_flight >= 2 * self._limit:
                self._finished.wait()
            self._queue.append((offset, length))
            if self._idle:
                self._given.notify()
            elif len(self._threads) < self._limit:
                from threading import Thread

                thread = Thread(target=self._help, name="copy helper", daemon=True)
                self._threads.append(thread)
                thread.start()

    def wait_idle(self) -> None:
        """Wait until all chunks are done."""
        with self._finished:
            while self.in_flight:
                self._finished.wait()

    def wait_progress(self) -> None:
        """Wait until one of the chunks in flight is done, or there are none."""
        with self._finished:
            before = self.in_flight
            while self.in_flight and self.in_flight >= before:
                self._finished.wait()

    def close(self) -> None:
        """End the helpers once all is done."""
        self.wait_idle()
        with self._given:
            self._closed = True
            self._given.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, offset: int, length: int) -> None:
        failure: CopyFailed | None = None
        try:
            self._work(offset, length)
        except CopyFailed as error:
            failure = error
        except (OSError, QobraError) as error:
            failure = CopyFailed(error, True)
        except Exception as error:
            # A defect must not leave a job that waits for this chunk for ever.
            sys.excepthook(*sys.exc_info())
            failure = CopyFailed(QobraError(f"Internal error: {error}", errno=errno.EIO), True)
        self._done(offset, length, failure)

    def _help(self) -> None:
        while True:
            with self._given:
                while not self._queue:
                    if self._closed:
                        return
                    self._idle += 1
                    self._given.wait()
                    self._idle -= 1
                offset, length = self._queue.popleft()
                self._busy += 1
            begin_ns = time.thread_time_ns()
            try:
                self._run(offset, length)
            finally:
                spent_ns = time.thread_time_ns() - begin_ns
                with self._given:
                    self.helped_ns += spent_ns
                    self._busy -= 1
                    self._finished.notify()

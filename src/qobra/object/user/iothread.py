"""``iothread``: a thread that serves devices or exports apart from the rest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from qobra.object.event_loop import EventLoopBase
from qobra.object.property import Int
from qobra.object.types import registry


@registry.register("iothread")
class IOThread(EventLoopBase):
    """One worker thread with a queue of calls.

    ``run(call)`` has it run ``call``; exports and devices post the service of a queue there.
    The polling limits are kept for those who ask: the thread blocks in the kernel, it never polls.
    """

    type_name = "iothread"
    user_creatable = True

    poll_max_ns = Int(32768, minimum=0)
    poll_grow = Int(0, minimum=0)
    poll_shrink = Int(0, minimum=0)

    thread_id = 0

    def complete(self) -> None:
        super().complete()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Semaphore(0)
        self._ending = False
        self._thread = threading.Thread(target=self._serve, name=f"IO {self.name}", daemon=True)
        self._thread.start()
        self.thread_id = self._thread.native_id or 0

    @property
    def busy(self) -> bool:
        """Whether it has anything to do that has not ended yet."""
        return bool(self._calls)

    def run(self, call: Callable[[], None]) -> None:
        """Run ``call`` in this thread, after what was given before."""
        self._calls.append(call)
        self._wake.release()

    def finalize(self) -> None:
        if self.thread_id:
            self._ending = True
            self._wake.release()
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            if self._calls:
                try:
                    self._calls[0]()
                finally:
                    self._calls.popleft()
            elif self._ending:
                return

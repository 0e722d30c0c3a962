"""The thread that does a device's slow work, so that neither the guest nor the control strand waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Worker(Protocol):
    """What iothreads and :class:`DeviceWorker` have in common."""

    @property
    def busy(self) -> bool:
        """Whether it has anything to do that has not ended yet."""
        ...

    def run(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the worker's thread, after what was given before."""
        ...


class DeviceWorker:
    """A thread of one device, started with its first work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether it has anything to do that has not ended yet."""
        return bool(self._calls)

    def wait(self) -> None:
        """Wait until all that was given so far has ended."""
        if self._calls:
            ended = threading.Event()
            self.run(ended.set)
            ended.wait()

    def run(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the thread, after what was given before."""
        self._calls.append(call)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._wake.release()

    def close(self) -> None:
        """End the thread once its work is done, and wait for that."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.release()
            if thread is not threading.current_thread():
                thread.join()

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            if not self._calls:
                return
            try:
                self._calls[0]()
            finally:
                self._calls.popleft()

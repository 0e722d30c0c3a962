"""Work that several threads share, in no order: packing and sending pages."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Lanes(Generic[Item]):
    """Up to ``count`` threads, each of which calls ``work(number of the thread, item)``, one item after the other.

    What ``work`` raises is raised by the next call here. Threads start as they are needed.
    """

    def __init__(self, count: int, work: Callable[[int, Item], None]) -> None:
        self._count = count
        self._work = work
        self._items: deque[Item] = deque()
        self._busy = 0
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item, *, wait: bool = True) -> bool:
        """Have ``item`` worked on. While all threads are busy this waits; or returns False, if not to ``wait``."""
        with self._changed:
            while self._error is None and self._pending() >= self._count:
                if not wait:
                    return False
                self._changed.wait()
            self._check()
            self._items.append(item)
            if len(self._threads) < self._pending():
                number = len(self._threads)
                self._threads.append(threading.Thread(target=self._run, args=(number,), name="lane", daemon=True))
                self._threads[-1].start()
            self._changed.notify_all()
        return True

    @property
    def full(self) -> bool:
        """Whether all threads are busy."""
        with self._changed:
            return self._pending() >= self._count

    def drain(self) -> None:
        """Wait until all is done."""
        with self._changed:
            while self._error is None and self._pending():
                self._changed.wait()
            self._check()

    def close(self) -> None:
        """End the threads; what was not begun is left."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _pending(self) -> int:
        return len(self._items) + self._busy

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, number: int) -> None:
        while True:
            with self._changed:
                while not self._items and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                item = self._items.popleft()
                self._busy += 1
            try:
                self._work(number, item)
                error = None
            except BaseException as raised:
                error = raised
            with self._changed:
                self._busy -= 1
                self._error = self._error or error
                self._changed.notify_all()

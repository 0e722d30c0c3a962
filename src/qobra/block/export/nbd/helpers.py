"""A few threads of one connection for requests that take long, so that the others do not wait behind them."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.export.nbd.requests import Work

MAX_HELPERS = 16
"""Requests in flight beside the loop; as many as QEMU keeps for a client."""
MAX_BYTES = 64 << 20
"""Payload that these requests may hold in all, if it is more than one."""


class Helpers:
    """Runs ``perform(work)`` in threads that are made when they are first needed."""

    def __init__(self, name: str, perform: Callable[[Work], None], retire: Callable[[], None]) -> None:
        self._name = name
        self._perform = perform
        self._retire = retire
        self._condition = threading.Condition()
        self._queue: deque[Work] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._active = 0
        self._bytes = 0
        self._closed = False

    def submit(self, work: Work) -> None:
        """Have ``work`` performed soon; waits while too many are in flight. Must not be called inside a slot."""
        with self._condition:
            while self._active >= MAX_HELPERS or (self._active and self._bytes + work.weight > MAX_BYTES):
                self._condition.wait()
            self._active += 1
            self._bytes += work.weight
            self._queue.append(work)
            if self._idle >= len(self._queue):
                self._condition.notify_all()
                return
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """Wait for what is in flight, then let the threads end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            while True:
                with self._condition:
                    self._idle += 1
                    while not self._queue:
                        if self._closed:
                            return
                        self._condition.wait()
                    self._idle -= 1
                    work = self._queue.popleft()
                try:
                    self._perform(work)
                finally:
                    with self._condition:
                        self._active -= 1
                        self._bytes -= work.weight
                        self._condition.notify_all()
        finally:
            self._retire()

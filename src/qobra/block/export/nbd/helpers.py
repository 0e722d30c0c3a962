"""A few threads of one connection for requests that take long, so that the others do not wait behind them."""

from __future__ import annotations

import threading
from _queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.export.nbd.requests import Work

MAX_HELPERS = 16
"""Requests in flight beside the loop; as many as QEMU keeps for a client."""
MAX_BYTES = 64 << 20
"""Payload that these requests may hold in all, if it is more than one."""

LEAVE_NS = 1_000_000
RETURN_NS = 150_000


class Pace:
    """How long requests of one kind take, and so who should do them: the loop, or helpers.

    A running mean in nanoseconds. What helpers measure is divided by how many of them worked at the time: requests
    that only wait for one another, at a lock or for the interpreter, are no reason to use more threads.
    """

    __slots__ = ("mean_ns", "slow")

    def __init__(self) -> None:
        self.mean_ns = 0
        """The running mean."""
        self.slow = False
        """Whether helpers should do them."""

    def note(self, took_ns: int, active: int = 1) -> None:
        """A request took so long while ``active`` were being worked on."""
        self.mean_ns += (took_ns // active - self.mean_ns) >> 3
        self.slow = self.mean_ns > (RETURN_NS if self.slow else LEAVE_NS)


class Helpers:
    """Runs ``perform(work, active)`` in threads that are made when they are first needed; ``retire`` ends each."""

    def __init__(self, name: str, perform: Callable[[Work, int], None], retire: Callable[[], None]) -> None:
        self._name = name
        self._perform = perform
        self._retire = retire
        self._room = threading.Condition()
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._active = 0
        self._bytes = 0

    def submit(self, work: Work) -> None:
        """Have ``work`` performed soon; waits while too many are in flight. Must not be called inside a slot."""
        with self._room:
            while self._active >= MAX_HELPERS or (self._active and self._bytes + work.weight > MAX_BYTES):
                self._room.wait()
            self._active += 1
            self._bytes += work.weight
            short_of_threads = self._active > len(self._threads)
        self._queue.put(work)
        if short_of_threads:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Wait for what is in flight, then let the threads end."""
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            while (work := self._queue.get()) is not None:
                try:
                    self._perform(work, self._active)
                finally:
                    with self._room:
                        self._active -= 1
                        self._bytes -= work.weight
                        self._room.notify()
        finally:
            self._retire()

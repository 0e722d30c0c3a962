"""Events as the client hands them out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

# What a stream keeps for a reader that does not come; a job's progress is a handful of events a second.
DEFAULT_LIMIT = 10_000


class Event(NamedTuple):
    """One event: its name, its data (``{}`` if it has none) and the server's wall-clock time in seconds."""

    name: str
    data: dict[str, Any]
    time: float

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Event:
        """The event of a message from the wire."""
        stamp = message.get("timestamp") or {}
        # A server that could not read its clock sends -1 for both.
        seconds = float(stamp.get("seconds", -1)) + max(0, stamp.get("microseconds", 0)) / 1e6
        return cls(str(message["event"]), message.get("data") or {}, seconds)


Predicate = Callable[[Event], bool]


class EventQueue:
    """Events that pass a filter, waiting to be read. The base of both faces' streams.

    ``names`` are the events wanted (none: all), ``where`` says more closely which. At most ``limit`` are kept: when
    more come than are read the oldest go, and ``lost`` counts them.
    """

    def __init__(self, names: tuple[str, ...], where: Predicate | None, limit: int) -> None:
        self._names = frozenset(names)
        self._where = where
        self._pending: deque[Event] = deque()
        self._limit = limit
        self.lost = 0

    def offer(self, event: Event) -> None:
        """Take ``event`` if it passes."""
        if self._names and event.name not in self._names:
            return
        if self._where is not None and not self._where(event):
            return
        if len(self._pending) >= self._limit:
            self._pending.popleft()
            self.lost += 1
        self._pending.append(event)
        self.notify()

    def notify(self) -> None:
        """Called when there is something to read, and when nothing more can come."""

    def clear(self) -> None:
        """Forget what is waiting to be read."""
        self._pending.clear()

    def __len__(self) -> int:
        return len(self._pending)

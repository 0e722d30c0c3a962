"""Time as a machine sees it: the host's, or a simulated one that only moves when it is told to."""

from __future__ import annotations

import time

from qobra.lean import Condition, Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # importing typing costs as much as everything else at the start


class Clock(Protocol):
    """Nanoseconds from a monotonic zero, wall-clock time, and a way to wait."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back."""

    def time_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""

    def wait(self, condition: Condition, timeout_ns: int) -> bool:
        """Wait on ``condition``, which the caller holds, for at most ``timeout_ns``; False on time-out."""


class HostClock:
    """The host's clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def time_ns(self) -> int:
        return time.time_ns()

    def wait(self, condition: Condition, timeout_ns: int) -> bool:
        return condition.wait(timeout_ns / 1e9)


class SimulatedClock:
    """A clock for tests: stands still until :meth:`advance`, which wakes whoever waits on it."""

    def __init__(self, start_ns: int = 0, epoch_ns: int = 1_600_000_000 * 10**9) -> None:
        self._now_ns = start_ns
        self._epoch_ns = epoch_ns
        self._lock = Lock()
        self._waiting: list[Condition] = []

    def monotonic_ns(self) -> int:
        return self._now_ns

    def time_ns(self) -> int:
        return self._epoch_ns + self._now_ns

    def wait(self, condition: Condition, timeout_ns: int) -> bool:
        deadline_ns = self._now_ns + timeout_ns
        with self._lock:
            self._waiting.append(condition)
        try:
            if self._now_ns >= deadline_ns:
                return False
            condition.wait()
            return self._now_ns < deadline_ns
        finally:
            with self._lock:
                self._waiting.remove(condition)

    def advance(self, nanoseconds: int) -> None:
        """Let ``nanoseconds`` pass."""
        with self._lock:
            self._now_ns += nanoseconds
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()

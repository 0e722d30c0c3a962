"""The guest's time: it passes while the guest runs, or only when a test says so."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.control import Timer
    from qobra.machine.machine import Machine

_NEVER = 1 << 62


class DeviceTimer:
    """A call that is due at a time of the guest."""

    __slots__ = ("_clock", "call", "deadline_ns")

    def __init__(self, clock: VirtualClock, call: Callable[[], None]) -> None:
        self._clock = clock
        self.call = call
        self.deadline_ns: int | None = None

    def set(self, deadline_ns: int) -> None:
        """Run at ``deadline_ns``, instead of at what was set before."""
        self.deadline_ns = min(deadline_ns, _NEVER)
        self._clock.schedule(self)

    def cancel(self) -> None:
        """Do not run."""
        self.deadline_ns = None


class VirtualClock:
    """Nanoseconds of guest time, and timers on it. Timers run in the control strand.

    With ``driven`` time stands still except for :meth:`step` and :meth:`set` (qtest). Otherwise it follows the host
    while the machine runs; or, where nothing ``sleeps`` (icount), idle CPUs have it leap from one timer to the next.
    """

    def __init__(self, machine: Machine, *, driven: bool, sleeps: bool = True) -> None:
        self._machine = machine
        self.driven = driven
        self._sleeps = sleeps
        self._stopped_at = 0
        self._started_host_ns: int | None = None
        self._heap: list[tuple[int, int, DeviceTimer]] = []
        self._sequence = itertools.count()
        self._armed: Timer | None = None
        if not driven:
            machine.run_state.subscribe(self._run_state_changed)

    def now_ns(self) -> int:
        """Guest time since power-on, in nanoseconds."""
        if self._started_host_ns is None or not self._sleeps:
            return self._stopped_at
        return self._stopped_at + self._machine.clock.monotonic_ns() - self._started_host_ns

    def timer(self, call: Callable[[], None]) -> DeviceTimer:
        """A timer that runs ``call``; not yet set."""
        return DeviceTimer(self, call)

    def schedule(self, timer: DeviceTimer) -> None:
        """Take a timer whose deadline has changed into account."""
        assert timer.deadline_ns is not None
        heapq.heappush(self._heap, (timer.deadline_ns, next(self._sequence), timer))
        if not self.driven:
            self._arm()

    def next_deadline_ns(self) -> int | None:
        """When the next timer is due, or None."""
        while self._heap and self._heap[0][2].deadline_ns != self._heap[0][0]:
            heapq.heappop(self._heap)  # cancelled or set anew
        return self._heap[0][0] if self._heap else None

    def step(self, ns: int | None = None) -> int:
        """Let ``ns`` pass, or the time until the next timer, and run what falls due; returns the new time."""
        if ns is None:
            deadline = self.next_deadline_ns()
            return self.set(self._stopped_at if deadline is None else max(deadline, self._stopped_at))
        return self.set(self._stopped_at + ns)

    def set(self, now_ns: int) -> int:
        """Go on to ``now_ns``, running timers at their deadlines; time never goes back. Returns the new time."""
        while True:
            deadline = self.next_deadline_ns()
            if deadline is None or deadline > now_ns:
                break
            self._stopped_at = max(self._stopped_at, deadline)
            self._run_next()
        self._stopped_at = max(self._stopped_at, now_ns)
        return self._stopped_at

    def restore(self, now_ns: int) -> None:
        """Be at ``now_ns``, as a saved machine was; the timers, which are set anew, are forgotten."""
        for _deadline, _number, timer in self._heap:
            timer.deadline_ns = None
        self._heap.clear()
        self._stopped_at = now_ns
        if self._started_host_ns is not None:
            self._started_host_ns = self._machine.clock.monotonic_ns()

    def close(self) -> None:
        """Run nothing any more."""
        self._heap.clear()
        if self._armed is not None:
            self._armed.cancel()

    def _run_next(self) -> None:
        timer = heapq.heappop(self._heap)[2]
        timer.deadline_ns = None
        timer.call()

    def _run_state_changed(self, running: bool, _state: str) -> None:
        if running and self._started_host_ns is None:
            self._started_host_ns = self._machine.clock.monotonic_ns()
            self._arm()
        elif not running and self._started_host_ns is not None:
            self._stopped_at = self.now_ns()
            self._started_host_ns = None
            if self._armed is not None:
                self._armed.cancel()
                self._armed = None

    def _arm(self) -> None:
        deadline = self.next_deadline_ns()
        if deadline is None or self._started_host_ns is None:
            return
        if self._armed is not None:
            self._armed.cancel()
        delay = deadline - self.now_ns() if self._sleeps else 0
        self._armed = self._machine.control.call_later(delay, self._fire)

    def _fire(self) -> None:
        if not self._sleeps:
            self._stopped_at = max(self._stopped_at, self.next_deadline_ns() or 0)
        now_ns = self.now_ns()
        while (deadline := self.next_deadline_ns()) is not None and deadline <= now_ns:
            self._run_next()
        self._arm()

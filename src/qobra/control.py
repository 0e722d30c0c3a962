"""The control strand: everything that decides runs in it, one thing at a time.

The design speaks of a control thread. A thread would cost two hops for each command (10 to 40 us each, more than the
command itself), so control is a *strand* instead: a lock with a queue. Whoever has something to decide takes the
strand and does it in its own thread; whoever must not wait (a worker that finished, a device that signals) posts a
call, which the holder runs before it lets go, or the poster runs itself if the strand is free. What runs in the
strand sees the machine stand still, and all that it emits has one order.

Only timers need a thread of their own, started when the first timer is set.
"""

from __future__ import annotations

import sys

from qobra.clock import Clock, HostClock
from qobra.lean import Condition, RLock, deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")


class Timer:
    """A call that is due later; :meth:`cancel` calls it off."""

    __slots__ = ("_call", "cancelled", "deadline_ns")

    def __init__(self, deadline_ns: int, call: Callable[[], None]) -> None:
        self.deadline_ns = deadline_ns
        self._call = call
        self.cancelled = False

    def cancel(self) -> None:
        """Do not run; harmless once it has run."""
        self.cancelled = True

    def fire(self) -> None:
        """Run the call unless it was cancelled."""
        if not self.cancelled:
            self.cancelled = True
            self._call()


class Control:
    """A machine's control strand. ``with control:`` enters it (a thread may enter again while inside)."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or HostClock()
        self._lock = RLock()
        self._depth = 0
        self._posted: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[int, int, Timer]] = []
        self._set_timers = 0
        self._timer_condition = Condition()
        self._timer_thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Control:
        self._lock.acquire()
        self._depth += 1
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._depth > 1:
            self._depth -= 1
            self._lock.release()
            return
        try:
            self._drain()
        finally:
            self._depth -= 1
            self._lock.release()
        self._run_posted()

    def enter_within(self, seconds: float) -> bool:
        """Enter the strand, unless it is taken for that long: for one for whom its holder may be waiting.

        Who has entered calls :meth:`leave`.
        """
        if not self._lock.acquire(timeout=seconds):
            return False
        self._depth += 1
        return True

    def leave(self) -> None:
        """Undo :meth:`enter_within`."""
        self.__exit__()

    def post(self, call: Callable[..., None], *args: Any) -> None:
        """Run ``call(*args)`` in the strand soon, in the order of posting. Never waits for the strand."""
        self._posted.append(_Posted(call, args) if args else call)
        self._run_posted()

    def defer(self, call: Callable[..., None], *args: Any) -> None:
        """Like :meth:`post`, but never in the calling thread: for one that is in the middle of a request."""
        self._posted.append(_Posted(call, args) if args else call)
        self.call_later(0, _nothing)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(*args)`` in the strand, in this thread, and return what it returns."""
        with self:
            return function(*args)

    def serve(self) -> None:
        """Run what was posted, in the middle of what the holder, who calls this, is doing and waits for."""
        self._drain()

    def held(self) -> bool:
        """Whether the calling thread is inside the strand."""
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]

    def call_later(self, delay_ns: int, call: Callable[[], None]) -> Timer:
        """Run ``call`` in the strand once ``delay_ns`` have passed on the machine's clock."""
        import heapq
        import threading

        timer = Timer(self.clock.monotonic_ns() + max(0, delay_ns), call)
        with self._timer_condition:
            self._set_timers += 1
            heapq.heappush(self._timers, (timer.deadline_ns, self._set_timers, timer))
            if self._timer_thread is None and not self._closed:
                self._timer_thread = threading.Thread(target=self._serve_timers, name="timers", daemon=True)
                self._timer_thread.start()
            self._timer_condition.notify()
        return timer

    def close(self) -> None:
        """Stop the timers; what is already posted still runs."""
        with self._timer_condition:
            self._closed = True
            self._timers.clear()
            self._timer_condition.notify()

    def _drain(self) -> None:
        while self._posted:
            try:
                self._posted.popleft()()
            except Exception:
                # A posted call has no caller to tell; the strand must survive it.
                sys.excepthook(*sys.exc_info())

    def _run_posted(self) -> None:
        # A call appended between the holder's last look and its release is picked up by the next turn of this loop,
        # in whichever of the two threads gets the lock.
        while self._posted and self._lock.acquire(blocking=False):
            if self._depth:
                self._lock.release()  # posted from inside the strand: the outermost exit runs it
                return
            self._depth += 1
            try:
                self._drain()
            finally:
                self._depth -= 1
                self._lock.release()

    def _serve_timers(self) -> None:
        import heapq

        while True:
            with self._timer_condition:
                while not self._closed:
                    now_ns = self.clock.monotonic_ns()
                    while self._timers and self._timers[0][2].cancelled:
                        heapq.heappop(self._timers)
                    if not self._timers:
                        self._timer_condition.wait()
                    elif self._timers[0][0] <= now_ns:
                        break
                    else:
                        self.clock.wait(self._timer_condition, self._timers[0][0] - now_ns)
                if self._closed:
                    return
                timer = heapq.heappop(self._timers)[2]
            with self:
                timer.fire()


def _nothing() -> None:
    # Entering and leaving the strand for this timer runs what was deferred.
    pass


class _Posted:
    __slots__ = ("args", "call")

    def __init__(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.call = call
        self.args = args

    def __call__(self) -> None:
        self.call(*self.args)

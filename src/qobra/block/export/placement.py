"""Move a thread that serves a guest to another processor where it waits too long for its own.

A server and its client wake each other all the time, so the kernel likes to have both on one processor, and where the
others have little to do only now and then (a job's threads), leaves them there: each then has half of a processor. What
tells of it is the time that the thread was ready to run and did not.

Moving is all that is done: the processors that the thread may use stay as they were.
"""

from __future__ import annotations

import os
import time

from qobra.native import compiled

LOOK_NS = 1_000_000
"""How often the thread looks how long it waited."""
LONGEST_NS = 64_000_000
"""How long at most it stays where it waits, after it has moved in vain."""
CROWDED = 4
"""A processor is left if the thread waits for more than one of so many parts of the time."""
_PROCESSOR = 36
"""The field of /proc/PID/stat with the processor, counted from the one behind the name (proc(5): 39)."""


class PurePlacement:
    """For one thread, which calls :meth:`look` between two pieces of its work. No other thread may."""

    def __init__(self) -> None:
        self._fd: int | None = None
        """Of the thread's times (proc(5), schedstat); -1 where moving is of no use."""
        self._looked_ns = self._waited_ns = 0
        self._rest_ns = 0
        """Until it looks again after a move that was in vain; 0 after one that was not."""
        self._next_ns = 0

    def __del__(self) -> None:
        self._close()

    def look(self) -> None:
        """Move if it is time to look, and the processor is crowded."""
        if self._fd == -1 or (now_ns := time.monotonic_ns()) < self._next_ns:
            return
        try:
            if self._fd is None:
                self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            moves = self.judge(now_ns, int(os.pread(self._fd, 96, 0).split()[1]))
        except (OSError, ValueError, IndexError):
            self._close()
            return
        if moves and not self.leave():
            self._close()

    def judge(self, now_ns: int, waited_ns: int) -> bool:
        """Whether to move, now that the thread has waited ``waited_ns`` in all; also decides when to look next."""
        crowded = bool(self._looked_ns) and (waited_ns - self._waited_ns) * CROWDED > now_ns - self._looked_ns
        self._rest_ns = min(2 * self._rest_ns or LOOK_NS, LONGEST_NS) if crowded else 0
        self._looked_ns, self._waited_ns = now_ns, waited_ns
        self._next_ns = now_ns + max(self._rest_ns, LOOK_NS)
        return crowded

    def leave(self) -> bool:
        """Have the calling thread go on on another processor; False if it may use no other."""
        try:
            with open("/proc/thread-self/stat") as stream:
                here = int(stream.read().rpartition(")")[2].split()[_PROCESSOR])
            allowed = os.sched_getaffinity(0)
            if not allowed - {here}:
                return False
            os.sched_setaffinity(0, allowed - {here})
            os.sched_setaffinity(0, allowed)
        except OSError:
            return False
        return True

    def _close(self) -> None:
        if self._fd is not None and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


_compiled = compiled("placement")
Placement = _compiled.Placement if _compiled is not None else PurePlacement

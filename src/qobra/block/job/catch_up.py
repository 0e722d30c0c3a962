"""How a mirror gains on the guest whose writes it follows: less rest for a job that does not, and when it is there."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from qobra.block.job.pace import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.copy.carrier import Carrier
    from qobra.block.job.pace import Pace

NEARLY = 1 << 20
"""Bytes that may differ for source and target to count as in step."""
AT_ONCE_NS = 100_000_000
"""What can be copied in so long may be left, too: a guest that writes all over a small disk leaves no less, ever."""
MOST_AT_ONCE = 16 << 20
"""Bytes of that at most, as they have to get to the target's disk, too."""
FIRST_PASSES = 2
"""Passes in which the job tries to copy all that is written."""
PATIENCE = 10
"""Passes after which a job that was told to end does so, whatever the guest still writes."""


class CatchUp:
    """Counts the passes of one job over what the guest has written. Only :meth:`note` is for any thread.

    ``is_local``: what copying takes is processor time; else, whoever copies may wait for a network.
    """

    def __init__(self, pace: Pace, carrier: Carrier, *, is_local: bool) -> None:
        self.clock: Callable[[], int] = time.thread_time_ns if is_local else time.monotonic_ns
        """Nanoseconds by which the work of a thread is measured."""
        self._pace = pace
        self._carrier = carrier
        self._lock = threading.Lock()
        self._copied = 0
        self._took_ns = 0
        self._passes = 0
        self._asked = 0
        self._before = 0

    def begin(self, remaining: int) -> None:
        """So many bytes are to be copied before the first pass."""
        self._before = remaining

    def note(self, length: int, took_ns: int) -> None:
        """So much was copied, and took so long by the :attr:`clock`."""
        with self._lock:
            self._copied += length
            self._took_ns += took_ns

    def is_there(self, remaining: int, *, ending: bool) -> bool:
        """A pass has ended and left so many bytes: whether that can be left for a moment in which the guest waits.

        ``ending``: the job is to end now, and is patient only for so long.
        """
        self._passes += 1
        self._asked += ending
        is_near = self._is_near(remaining)
        self._adapt_pace(remaining, is_near, ending)
        return not remaining or (is_near and self._passes > FIRST_PASSES) or self._asked >= PATIENCE

    def _is_near(self, remaining: int) -> bool:
        with self._lock:
            copied, took_ns = self._copied, self._took_ns
            self._copied = self._took_ns = 0
        if remaining <= NEARLY:
            return True
        # How long it takes is known where the job does all itself.
        is_known = copied > 0 and self._carrier.share == 1
        return is_known and remaining <= MOST_AT_ONCE and remaining * took_ns <= AT_ONCE_NS * copied

    def _adapt_pace(self, remaining: int, is_near: bool, ending: bool) -> None:
        """Give way less to a guest that writes nearly as much as a pass copies, and not at all once told to end."""
        pace = self._pace
        if is_near:
            pace.share = SHARE
        elif 2 * remaining > self._before:
            pace.share = max(1, pace.share // 2)
        if ending:
            pace.share = 1
        self._before = remaining

"""How a mirror gains on the guest whose writes it follows: less rest for a job that does not, and when it is there."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.job.pace import Pace

SHARE = 8
"""A mirror's share of a processor at first (see :mod:`.pace`). What the guest writes meanwhile has to be copied once
more, so that a job which takes longer takes more of it in all."""
IN_STEP_SHARE = 20
"""The same where guests keep in step what was copied, so that it is copied once, however long that takes."""
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
LOOK_NS = 1_000_000_000
"""How often it is seen whether the job gains on the guest."""
LEAST_GAIN = 0.75
"""The part of what it copies by which what is left has to get less, for the job to go on giving way as it does."""


class CatchUp:
    """Counts the passes of one job over what the guest has written. Only :meth:`note` is for any thread.

    ``is_local``: what copying takes is processor time; else, whoever copies may wait for a network. ``share`` is that
    of a processor at first, ``now`` a clock in nanoseconds.
    """

    def __init__(
        self, pace: Pace, *, is_local: bool, share: int = SHARE, now: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.clock: Callable[[], int] = time.thread_time_ns if is_local else time.monotonic_ns
        """Nanoseconds by which the work of a thread is measured."""
        self._pace = pace
        self._share = share
        self._now = now
        self._lock = threading.Lock()
        self._copied = 0
        """Bytes since it was last seen whether what is left gets less."""
        self._timed = 0
        """Bytes in this pass of which it is known how long they took, and how long that was."""
        self._took_ns = 0
        self._passes = 0
        self._asked = 0
        self._is_near = False
        self._left = 0
        self._looked_ns = 0

    def begin(self, remaining: int) -> None:
        """So many bytes are to be copied before the first pass."""
        self._left = remaining
        self._looked_ns = self._now()
        self._pace.share = self._share

    def note(self, length: int, took_ns: int | None) -> None:
        """So much was copied, and took so long by the :attr:`clock`; None where others had a part in it."""
        with self._lock:
            self._copied += length
            if took_ns is not None:
                self._timed += length
                self._took_ns += took_ns

    def adapt_pace(self, remaining: Callable[[], int]) -> None:
        """Once a second: give way half as much if what is left does not get less, and twice as much while in step.

        So a job always gets there, if its guest does not write more than can be copied at all. To be called between
        two pieces of work.
        """
        now_ns = self._now()
        if self._asked or now_ns - self._looked_ns < LOOK_NS:
            return
        self._looked_ns = now_ns
        left = remaining()
        with self._lock:
            copied, self._copied = self._copied, 0
        gained, self._left = self._left - left, left
        pace = self._pace
        if self._is_near:
            pace.share = min(self._share, 2 * pace.share)
        elif gained < LEAST_GAIN * copied:
            pace.share = max(1, pace.share // 2)

    def is_there(self, remaining: int, *, ending: bool) -> bool:
        """A pass has ended and left so many bytes: whether that can be left for a moment in which the guest waits.

        ``ending``: the job is to end now, does not give way any more, and is patient only for so long.
        """
        self._passes += 1
        self._asked += ending
        if ending:
            self._pace.share = 1
        self._is_near = self._is_little(remaining)
        return not remaining or (self._is_near and self._passes > FIRST_PASSES) or self._asked >= PATIENCE

    def _is_little(self, remaining: int) -> bool:
        with self._lock:
            timed, took_ns = self._timed, self._took_ns
            self._timed = self._took_ns = 0
        if remaining <= NEARLY:
            return True
        return timed > 0 and remaining <= MOST_AT_ONCE and remaining * took_ns <= AT_ONCE_NS * timed

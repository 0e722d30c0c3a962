"""How fast the sound of a card moves: by the guest's clock, so that under qtest the test decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.vmstate import VmState, i64, timer, u64

if TYPE_CHECKING:
    from qobra.machine.vclock import VirtualClock

_SECOND = 10**9
_LATEST, _SOONEST = _SECOND // 100, _SECOND // 1000
"""A stream that runs is looked after when its buffer ends, but not more seldom or more often than this, in ns."""


class SoundPacer:
    """Counts the bytes of one stream that are due, and calls ``look`` when it is time to move some."""

    vmstate = VmState(i64("_started_ns"), u64("_moved"), timer("_timer"))

    def __init__(self, clock: VirtualClock, look: Callable[[], None]) -> None:
        self._clock = clock
        self._timer = clock.timer(look)
        self._started_ns = self._moved = 0

    def start(self) -> None:
        """Count from now on: nothing is due yet."""
        self._started_ns, self._moved = self._clock.now_ns(), 0

    def forget(self) -> None:
        """Have the state of one that never started."""
        self._started_ns = self._moved = 0

    def stop(self) -> None:
        """Call ``look`` no more, until :meth:`arm` is called."""
        self._timer.cancel()

    def arm(self, left: int, rate: int) -> None:
        """Call ``look`` when ``left`` bytes are due, at ``rate`` bytes a second; each is 0 where it is not known."""
        until = left * _SECOND // rate if left and rate else _LATEST
        self._timer.set(self._clock.now_ns() + max(_SOONEST, min(_LATEST, until)))

    def take(self, rate: int, frame: int) -> int:
        """The bytes, in whole frames of ``frame`` bytes, that have become due since this was called before.

        Where it was not called for more than a second, the time between is left out.
        """
        elapsed_ns = self._clock.now_ns() - self._started_ns
        count = elapsed_ns * rate // _SECOND // frame * frame - self._moved
        if count > rate:
            self._started_ns += (count - rate) * _SECOND // rate
            count = rate // frame * frame
        self._moved += count
        return count

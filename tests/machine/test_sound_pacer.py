"""What of a stream is due: whole frames, nothing twice, and no more than a second of what was missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qobra.machine.sound_pacer import SoundPacer

SECOND = 10**9
RATE, FRAME = 176_400, 4


class Clock:
    """A clock with one timer, which is due at ``at``."""

    def __init__(self) -> None:
        self.now, self.at = 0, -1

    def now_ns(self) -> int:
        return self.now

    def timer(self, _call: Callable[[], None]) -> Any:
        return self

    def set(self, at: int) -> None:
        self.at = at

    def cancel(self) -> None:
        self.at = -1


def pacer() -> tuple[Clock, SoundPacer]:
    clock = Clock()
    made = SoundPacer(clock, lambda: None)  # type: ignore[arg-type]
    clock.now = 5 * SECOND
    made.start()
    return clock, made


def test_whole_frames_are_due_and_none_is_lost_or_counted_twice() -> None:
    clock, made = pacer()
    total = 0
    for step in (1, 22_675, 22_676, 333_333, 1_000_000) * 20:
        clock.now += step
        count = made.take(RATE, FRAME)
        assert count >= 0 and not count % FRAME
        total += count
    assert total == (clock.now - 5 * SECOND) * RATE // SECOND // FRAME * FRAME
    assert made.take(RATE, FRAME) == 0


def test_of_what_nobody_asked_for_the_last_second_is_left() -> None:
    clock, made = pacer()
    clock.now += 60 * SECOND
    assert made.take(RATE, FRAME) == RATE
    assert made.take(RATE, FRAME) == 0
    clock.now += SECOND // 10
    assert made.take(RATE, FRAME) == RATE // 10


def test_it_is_looked_after_at_the_end_of_a_buffer_but_not_too_seldom_or_often() -> None:
    clock, made = pacer()
    for left, milliseconds in ((RATE // 200, 5), (RATE, 10), (4, 1), (0, 10)):
        made.arm(left, RATE)
        assert clock.at == clock.now + milliseconds * 10**6
    made.arm(100, 0)
    assert clock.at == clock.now + 10**7
    made.stop()
    assert clock.at == -1

"""Locks on byte ranges between one job and the guest's requests."""

from __future__ import annotations

import threading

Span = tuple[int, int]
"""First byte and the one after the last."""


class RangeLocks:
    """A range of the job excludes the guest's requests that overlap it, and they it.

    With ``ordered`` requests of the guest that overlap exclude each other too: each is made in two places, which must
    end up with the same of them. Waiting lasts as long as what is in the way, so that nobody may hold a range while
    paused; who waits is not in the way of others.
    """

    def __init__(self, *, ordered: bool = False) -> None:
        self._condition = threading.Condition()
        self._guest: list[Span] = []
        self._job: list[Span] = []
        self._in_guests_way = (self._job, self._guest) if ordered else (self._job,)

    def guest(self, offset: int, length: int) -> HeldRange:
        """``with locks.guest(offset, length):`` a request of the guest."""
        return HeldRange(self._condition, self._guest, self._in_guests_way, (offset, offset + length))

    def job(self, offset: int, length: int) -> HeldRange:
        """``with locks.job(offset, length):`` a piece of the job's work."""
        return HeldRange(self._condition, self._job, (self._guest,), (offset, offset + length))


class HeldRange:
    """The context in which a range is held."""

    __slots__ = ("_condition", "_mine", "_others", "_span")

    def __init__(
        self, condition: threading.Condition, mine: list[Span], others: tuple[list[Span], ...], span: Span
    ) -> None:
        self._condition = condition
        self._mine = mine
        self._others = others
        self._span = span

    def __enter__(self) -> None:
        start, end = self._span
        with self._condition:
            while any(first < end and stop > start for spans in self._others for first, stop in spans):
                self._condition.wait()
            self._mine.append(self._span)

    def __exit__(self, *_exc: object) -> None:
        with self._condition:
            self._mine.remove(self._span)
            self._condition.notify_all()

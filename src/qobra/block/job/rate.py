"""A job's speed limit: an amount for each slice of time, with what was too much carried over."""

from __future__ import annotations

SLICE_NS = 100_000_000
"""A slice: 100 ms."""


class RateLimit:
    """Allows ``speed`` bytes a second (0: no limit). Not thread-safe: its job has the lock."""

    __slots__ = ("_dispatched", "_slice_end_ns", "_slice_start_ns", "speed")

    def __init__(self, speed: int = 0) -> None:
        self.speed = speed
        self._slice_start_ns = 0
        self._slice_end_ns = 0
        self._dispatched = 0

    def delay_ns(self, amount: int, now_ns: int) -> int:
        """Account for ``amount`` bytes that were moved, and return how long to wait before the next."""
        if not self.speed:
            return 0
        if self._slice_end_ns < now_ns:
            self._slice_start_ns = now_ns
            self._slice_end_ns = now_ns + SLICE_NS
            self._dispatched = 0
        self._dispatched += amount
        quota = max(1, self.speed * SLICE_NS // 1_000_000_000)
        if self._dispatched < quota:
            return 0
        # Integer slices would let a job run ahead at low speeds, so the wait is in proportion.
        self._slice_end_ns = self._slice_start_ns + self._dispatched * SLICE_NS // quota
        return max(0, self._slice_end_ns - now_ns)

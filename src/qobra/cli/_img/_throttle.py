"""``-r RATE``: keep a copy to so many bytes a second."""

from __future__ import annotations

import time

BURST_SECONDS = 0.1
"""How much of a pause may be made up for afterwards."""


class Throttle:
    """Lets ``rate`` bytes a second pass."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._due = time.monotonic()

    def wait(self, length: int) -> None:
        """``length`` bytes were copied: wait until the next may be."""
        now = time.monotonic()
        self._due = max(self._due, now - BURST_SECONDS) + length / self._rate
        if self._due > now:
            time.sleep(self._due - now)

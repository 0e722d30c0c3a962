"""Keeping to a bandwidth."""

from __future__ import annotations

import threading
from collections.abc import Callable

_BURST_S = 0.1
"""What may be sent in this time may be sent at once."""
_LONGEST_S = 0.1
"""The bandwidth may be changed meanwhile, so that it is asked for again."""
_S = 1e9


class Pacer:
    """Says how long to wait to keep to ``bandwidth()`` (bytes a second, 0: any). From any thread."""

    def __init__(self, now_ns: Callable[[], int], bandwidth: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._bandwidth = bandwidth
        self._lock = threading.Lock()
        self._settled_ns = now_ns()
        self._debt = 0.0
        # Bytes that were sent before their time.

    def charge(self, length: int) -> None:
        """So many bytes are sent."""
        with self._lock:
            self._settle()
            self._debt += length

    def wait(self) -> float:
        """Seconds to wait, and then ask again, before more may be sent; 0: none."""
        with self._lock:
            bandwidth = self._settle()
            over = self._debt - bandwidth * _BURST_S
            return min(over / bandwidth, _LONGEST_S) if bandwidth and over > 0 else 0

    def _settle(self) -> int:
        now, bandwidth = self._now_ns(), self._bandwidth()
        self._debt = max(0.0, self._debt - (now - self._settled_ns) * bandwidth / _S) if bandwidth else 0.0
        self._settled_ns = now
        return bandwidth

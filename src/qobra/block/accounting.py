"""Counting what a backend's user does: operations, bytes, times, failures, intervals and latency histograms."""

from __future__ import annotations

from qobra.clock import HostClock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


READ, WRITE, FLUSH, UNMAP = range(4)
_PREFIX = ("rd", "wr", "flush", "unmap")
_COUNT_NAMES = ("rd_operations", "wr_operations", "flush_operations", "unmap_operations")


class Accounting:
    """The counters of one backend. Adding is cheap and takes no lock: a lost count under contention is accepted.

    ``now_ns`` is what intervals go by; with ``request_ns`` each request counts as taking that long, however long it
    took: so a test that drives the time knows what to expect.
    """

    def __init__(self, now_ns: Callable[[], int] | None = None, request_ns: int | None = None) -> None:
        self._now_ns = now_ns or HostClock().monotonic_ns
        self._request_ns = request_ns
        self.operations = [0, 0, 0, 0]
        self.bytes = [0, 0, 0, 0]
        self.time_ns = [0, 0, 0, 0]
        self.failed = [0, 0, 0, 0]
        self.invalid = [0, 0, 0, 0]
        self.merged = [0, 0, 0, 0]
        self.account_invalid = True
        self.account_failed = True
        self.last_access_ns: int | None = None
        self._intervals: list[_Interval] = []
        self._histograms: dict[int, _Histogram] = {}

    def add(self, kind: int, operations: int, length: int, time_ns: int) -> None:
        """``operations`` requests of ``kind`` moved ``length`` bytes in ``time_ns`` altogether."""
        if self._request_ns is not None:
            time_ns = operations * self._request_ns
        self.operations[kind] += operations
        self.bytes[kind] += length
        self.time_ns[kind] += time_ns
        self._seen(kind, operations, time_ns)

    def add_failed(self, kind: int, time_ns: int) -> None:
        """A request failed after ``time_ns``."""
        self.failed[kind] += 1
        if self._request_ns is not None:
            time_ns = self._request_ns
        if self.account_failed:
            self.time_ns[kind] += time_ns
            self._seen(kind, 1, time_ns)

    def pardon(self, kind: int, length: int, *, done: bool) -> None:
        """A request that failed is none for the guest: it is made again, or (``done``) taken for carried out."""
        self.failed[kind] -= 1
        if done:
            self.operations[kind] += 1
            self.bytes[kind] += length

    def add_invalid(self, kind: int) -> None:
        """A request was refused before it started."""
        self.invalid[kind] += 1
        if self.account_invalid:
            self.last_access_ns = self._now_ns()

    @property
    def needs_each(self) -> bool:
        """Whether single requests' times matter, so that they cannot be added by the batch."""
        return bool(self._intervals or self._histograms)

    def _seen(self, kind: int, operations: int, time_ns: int) -> None:
        now_ns = self._now_ns()
        self.last_access_ns = now_ns
        if not operations or not self.needs_each:
            return
        each_ns = time_ns // operations
        for interval in self._intervals:
            interval.add(kind, operations, each_ns, now_ns)
        histogram = self._histograms.get(kind)
        if histogram is not None:
            histogram.add(operations, each_ns)

    def set_intervals(self, seconds: list[int]) -> None:
        """Keep latency statistics over the last of each of these interval lengths."""
        now_ns = self._now_ns()
        self._intervals = [_Interval(length, now_ns) for length in seconds]

    def set_histogram(self, kind: int, boundaries: list[int] | None) -> None:
        """Count latencies by these boundaries in nanoseconds; None ends that."""
        if boundaries is None:
            self._histograms.pop(kind, None)
        else:
            self._histograms[kind] = _Histogram(boundaries)

    def stats(self) -> dict[str, Any]:
        """BlockDeviceStats without ``wr_highest_offset``."""
        result: dict[str, Any] = {}
        for kind, prefix in enumerate(_PREFIX):
            result[_COUNT_NAMES[kind]] = self.operations[kind]
            result[f"{prefix}_total_time_ns"] = self.time_ns[kind]
            result[f"failed_{prefix}_operations"] = self.failed[kind]
            result[f"invalid_{prefix}_operations"] = self.invalid[kind]
            if kind != FLUSH:
                result[f"{prefix}_bytes"] = self.bytes[kind]
                result[f"{prefix}_merged"] = self.merged[kind]
        result["wr_highest_offset"] = 0
        result["account_invalid"] = self.account_invalid
        result["account_failed"] = self.account_failed
        now_ns = self._now_ns()
        if self.last_access_ns is not None:
            result["idle_time_ns"] = now_ns - self.last_access_ns
        result["timed_stats"] = [interval.stats(now_ns) for interval in self._intervals]
        for kind, name in ((READ, "rd"), (WRITE, "wr"), (FLUSH, "flush")):
            histogram = self._histograms.get(kind)
            if histogram is not None:
                result[f"{name}_latency_histogram"] = histogram.info()
        return result


class _Histogram:
    def __init__(self, boundaries: list[int]) -> None:
        self._boundaries = boundaries
        self._bins = [0] * (len(boundaries) + 1)

    def add(self, operations: int, time_ns: int) -> None:
        from bisect import bisect_right

        self._bins[bisect_right(self._boundaries, time_ns)] += operations

    def info(self) -> dict[str, Any]:
        return {"boundaries": list(self._boundaries), "bins": list(self._bins)}


class _Interval:
    """Latencies over half of ``seconds`` at least and all of them at most: the older of two overlapping windows."""

    def __init__(self, seconds: int, now_ns: int) -> None:
        self.seconds = seconds
        self._length_ns = seconds * 10**9
        self._windows = [_Window(now_ns - self._length_ns // 2), _Window(now_ns)]

    def _turn(self, now_ns: int) -> None:
        for window in self._windows:
            if now_ns - window.start_ns >= self._length_ns:
                late = (now_ns - window.start_ns) // self._length_ns
                window.reset(window.start_ns + late * self._length_ns)
        self._windows.sort(key=lambda window: window.start_ns)

    def add(self, kind: int, operations: int, time_ns: int, now_ns: int) -> None:
        self._turn(now_ns)
        for window in self._windows:
            window.add(kind, operations, time_ns)

    def stats(self, now_ns: int) -> dict[str, Any]:
        self._turn(now_ns)
        window = self._windows[0]
        elapsed_ns = max(1, now_ns - window.start_ns)
        result: dict[str, Any] = {"interval_length": self.seconds}
        for kind, prefix in ((READ, "rd"), (WRITE, "wr"), (FLUSH, "flush")):
            count, total, low, high = window.totals[kind]
            result[f"min_{prefix}_latency_ns"] = low if count else 0
            result[f"max_{prefix}_latency_ns"] = high
            result[f"avg_{prefix}_latency_ns"] = total // count if count else 0
            if kind != FLUSH:
                result[f"avg_{prefix}_queue_depth"] = total / elapsed_ns
        return result


class _Window:
    def __init__(self, start_ns: int) -> None:
        self.reset(start_ns)

    def reset(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.totals: dict[int, tuple[int, int, int, int]] = dict.fromkeys((READ, WRITE, FLUSH, UNMAP), (0, 0, 0, 0))

    def add(self, kind: int, operations: int, time_ns: int) -> None:
        count, total, low, high = self.totals[kind]
        self.totals[kind] = (
            count + operations,
            total + operations * time_ns,
            min(low, time_ns) if count else time_ns,
            max(high, time_ns),
        )

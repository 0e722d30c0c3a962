"""Counters, intervals and histograms on a simulated clock."""

from __future__ import annotations

import pytest

from qobra.block.accounting import FLUSH, READ, WRITE, Accounting
from qobra.clock import SimulatedClock

SECOND = 10**9


@pytest.fixture
def clock():
    return SimulatedClock()


def test_counts_and_times_add_up(clock):
    counters = Accounting(clock.monotonic_ns)
    counters.add(READ, 3, 3 * 4096, 300)
    counters.add(WRITE, 1, 512, 50)
    counters.add_failed(WRITE, 7)
    counters.add_invalid(FLUSH)
    clock.advance(5)
    stats = counters.stats()
    assert (stats["rd_operations"], stats["rd_bytes"], stats["rd_total_time_ns"]) == (3, 12288, 300)
    assert (stats["wr_operations"], stats["failed_wr_operations"], stats["wr_total_time_ns"]) == (1, 1, 57)
    assert stats["invalid_flush_operations"] == 1 and stats["idle_time_ns"] == 5


def test_failed_requests_need_not_count_as_time(clock):
    counters = Accounting(clock.monotonic_ns)
    counters.account_failed = False
    counters.add_failed(READ, 100)
    assert counters.stats()["rd_total_time_ns"] == 0 and "idle_time_ns" not in counters.stats()


def test_histogram_bins_by_boundaries(clock):
    counters = Accounting(clock.monotonic_ns)
    counters.set_histogram(READ, [10, 50, 100])
    for latency in (1, 9, 10, 49, 50, 99, 100, 5000):
        counters.add(READ, 1, 1, latency)
    counters.add(WRITE, 1, 1, 1)
    assert counters.stats()["rd_latency_histogram"] == {"boundaries": [10, 50, 100], "bins": [2, 2, 2, 2]}
    assert "wr_latency_histogram" not in counters.stats()
    counters.set_histogram(READ, None)
    assert "rd_latency_histogram" not in counters.stats()


def test_intervals_forget_what_is_older(clock):
    counters = Accounting(clock.monotonic_ns)
    counters.set_intervals([10])
    counters.add(READ, 1, 1, 5000)
    clock.advance(4 * SECOND)
    counters.add(READ, 1, 1, 1000)
    stats = counters.stats()["timed_stats"][0]
    assert (stats["interval_length"], stats["min_rd_latency_ns"], stats["max_rd_latency_ns"]) == (10, 1000, 5000)
    assert stats["avg_rd_latency_ns"] == 3000
    clock.advance(7 * SECOND)
    assert counters.stats()["timed_stats"][0]["max_rd_latency_ns"] == 0  # both are older than half an interval
    clock.advance(20 * SECOND)
    stats = counters.stats()["timed_stats"][0]
    assert stats["max_rd_latency_ns"] == 0


def test_requests_may_be_said_to_take_a_fixed_time():
    counters = Accounting(lambda: 0, 1000)
    counters.add(READ, 3, 4096, 77)
    counters.add_failed(WRITE, 77)
    stats = counters.stats()
    assert (stats["rd_total_time_ns"], stats["wr_total_time_ns"]) == (3000, 1000)

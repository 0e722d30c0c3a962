"""Who waits for whom where a job and a guest use the same bytes."""

from __future__ import annotations

import threading

import pytest

from qobra.block.copy.range_locks import RangeLocks


def _waits(held):
    """Whether entering ``held`` has to wait (then it is left again once it may)."""
    entered = threading.Event()

    def enter() -> None:
        with held:
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    return not entered.wait(0.02)


@pytest.mark.parametrize("ordered", [False, True])
def test_requests_of_the_guest_exclude_each_other_only_where_their_order_counts(ordered):
    locks = RangeLocks(ordered=ordered)
    with locks.guest(0, 100):
        assert _waits(locks.guest(99, 100)) == ordered
        assert not _waits(locks.guest(100, 100))
        assert _waits(locks.job(50, 10))
    with locks.job(0, 100):
        assert _waits(locks.guest(99, 1))
        assert not _waits(locks.job(0, 100))


def test_who_waits_is_not_in_the_way_of_others():
    locks = RangeLocks(ordered=True)
    with locks.guest(0, 100):
        assert _waits(locks.guest(0, 200))
        assert not _waits(locks.guest(100, 200))

"""I/O limits on a simulated clock."""

from __future__ import annotations

import threading

import pytest

from qobra.block.throttle import VALUE_MAX, Limits, Membership, ThrottleGroup, _Ticket, _Turns, limits_from_throttle
from qobra.clock import SimulatedClock
from qobra.errors import QobraError


class _JumpingClock(SimulatedClock):
    """Waiting takes no time: the clock jumps to the deadline."""

    def wait(self, condition, timeout_ns):
        self._now_ns += timeout_ns
        return False


def _never() -> bool:
    return False


@pytest.mark.parametrize("rate", [7, 100, 4096, 1_000_000])
def test_the_average_rate_is_kept(rate):
    clock = _JumpingClock()
    group = ThrottleGroup("g", clock)
    group.set_limits(Limits().updated({"iops-total": rate}))
    count = 10 * rate if rate < 10000 else 100_000
    for index in range(count):
        group.wait("disk", 4096, index % 2 == 0, _never)
    seconds = clock.monotonic_ns() / 1e9
    # a tenth of a second's worth goes ahead, and the last request does not wait for itself
    assert seconds == pytest.approx(count / rate - 0.1, rel=0.02, abs=1 / rate * 1.01)


def test_bytes_count_by_direction():
    clock = _JumpingClock()
    group = ThrottleGroup("g", clock)
    group.set_limits(Limits().updated({"bps-write": 1000}))
    for _ in range(100):
        group.wait("disk", 1000, False, _never)
    assert clock.monotonic_ns() == 0
    for _ in range(11):
        group.wait("disk", 1000, True, _never)
    assert clock.monotonic_ns() / 1e9 == pytest.approx(9.9, rel=0.02)


def test_a_burst_is_allowed_for_its_length():
    clock = _JumpingClock()
    group = ThrottleGroup("g", clock)
    group.set_limits(Limits().updated({"iops-total": 100, "iops-total-max": 1000, "iops-total-max-length": 2}))
    for _ in range(2000):
        group.wait("disk", 512, False, _never)
    assert clock.monotonic_ns() / 1e9 == pytest.approx(1.9, rel=0.02)
    before = clock.monotonic_ns()
    for _ in range(1000):
        group.wait("disk", 512, False, _never)
    assert (clock.monotonic_ns() - before) / 1e9 == pytest.approx(8.1, rel=0.05)


def test_iops_size_counts_large_requests_as_several():
    clock = _JumpingClock()
    group = ThrottleGroup("g", clock)
    group.set_limits(Limits().updated({"iops-total": 10, "iops-size": 4096}))
    for _ in range(11):
        group.wait("disk", 8192, False, _never)
    assert clock.monotonic_ns() / 1e9 == pytest.approx(1.9, rel=0.03)


def test_members_take_turns_however_much_each_has_waiting():
    turns = _Turns()
    tickets = {}
    for name in ("busy 1", "busy 2", "busy 3", "modest 1", "other 1", "other 2"):
        tickets[name] = _Ticket(512, threading.Condition())
        turns.add(name.split()[0], tickets[name])
    turns.remove("other", tickets["other 1"])
    served = []
    while turns:
        first = turns.first()
        taken = turns.take()
        served.append(next(name for name, ticket in tickets.items() if ticket is taken))
        assert tickets[served[-1]] is first
    assert served == ["busy 1", "modest 1", "other 2", "busy 2", "busy 3"]


def test_who_is_released_does_not_wait():
    group = ThrottleGroup("g", SimulatedClock())
    group.set_limits(Limits().updated({"iops-total": 1}))
    released = threading.Event()
    group.wait("disk", 1, False, released.is_set)
    thread = threading.Thread(target=group.wait, args=("disk", 1, False, released.is_set))
    thread.start()
    thread.join(0.02)
    assert thread.is_alive()
    released.set()
    group.wake()
    thread.join(10)
    assert not thread.is_alive()


def test_who_was_released_is_counted():
    clock = _JumpingClock()
    group = ThrottleGroup("g", clock)
    group.set_limits(Limits().updated({"iops-total": 1}))
    for _ in range(5):
        group.wait("disk", 1, False, lambda: True)
    assert clock.monotonic_ns() == 0
    group.wait("disk", 1, False, _never)
    assert clock.monotonic_ns() / 1e9 == pytest.approx(4.9)


def test_who_leaves_does_not_wait_and_is_no_member():
    group = ThrottleGroup("g", SimulatedClock())
    group.set_limits(Limits().updated({"iops-total": 1}))
    stays, leaves = Membership(group), Membership(group)
    assert group.members == 2
    stays.wait(1, False)
    thread = threading.Thread(target=leaves.wait, args=(1, False))
    thread.start()
    thread.join(0.02)
    assert thread.is_alive()
    leaves.leave()
    thread.join(10)
    assert not thread.is_alive()
    leaves.wait(1, False)  # of a request that was late
    leaves.leave()
    assert group.members == 1


def test_whose_turn_it_is_hears_of_one_that_was_released():
    """The first in line looks at the clock; when it is released, the next one has to."""
    clock = SimulatedClock()
    group = ThrottleGroup("g", clock)
    group.set_limits(Limits().updated({"iops-total": 1}))
    group.wait("disk", 1, False, _never)
    released = threading.Event()
    first = threading.Thread(target=group.wait, args=("one", 1, False, released.is_set))
    first.start()
    first.join(0.02)
    second = threading.Thread(target=group.wait, args=("two", 1, False, _never))
    second.start()
    second.join(0.02)
    released.set()
    group.wake()
    first.join(10)
    second.join(0.02)
    assert second.is_alive()
    clock.advance(3 * 10**9)
    second.join(10)
    assert not second.is_alive()


@pytest.mark.parametrize(
    "members",
    [
        {"bps-total": VALUE_MAX, "bps-total-max": VALUE_MAX, "bps-total-max-length": 1},
        {"iops-read": 5, "iops-write": 6, "iops-read-max": 5, "bps-total": 7},
        {"iops-total": 1, "iops-total-max": 10, "iops-total-max-length": VALUE_MAX // 10, "iops-size": 4096},
    ],
)
def test_limits_are_told_as_they_were_set(members):
    limits = Limits().updated(members)
    assert {name: limits.as_dict()[name] for name in members} == members
    assert limits.enabled()


def test_limits_as_a_drive_tells_them():
    group = ThrottleGroup("g", SimulatedClock())
    rates = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
    assert Membership(group).limits() == {"group": "g"} | rates
    group.set_limits(
        limits_from_throttle(
            rates | {"bps_rd": 5, "bps_rd_max": 9, "bps_rd_max_length": 3, "iops": 1, "iops_size": 512, "iops_max": 0}
        )
    )
    assert Membership(group).limits() == {"group": "g"} | rates | {
        "bps_rd": 5,
        "bps_rd_max": 9,
        "bps_rd_max_length": 3,
        "iops": 1,
        "iops_size": 512,
    }
    limits_from_throttle(rates | {"bps_max": 0, "bps_max_length": 0})
    with pytest.raises(QobraError, match="the burst length cannot be 0"):
        limits_from_throttle(rates | {"bps": 1, "bps_max": 1, "bps_max_length": 0})


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"iops-total": 1, "iops-read": 1}, "cannot be used at the same time"),
        ({"iops-total": -1}, r"must be within \[0, 1000000000000000\]"),
        ({"iops-total": VALUE_MAX + 1}, r"must be within \[0, 1000000000000000\]"),
        ({"iops-total": 1, "iops-total-max": VALUE_MAX + 1}, r"must be within \[0, 1000000000000000\]"),
        ({"iops-total": 1, "iops-total-max": -1}, r"must be within \[0, 1000000000000000\]"),
        ({"bps-total": 9, "bps-total-max": 9, "bps-write-max": 9}, "cannot be used at the same time"),
        (
            {"iops-total": 1, "iops-total-max": 10, "iops-total-max-length": VALUE_MAX // 10 + 1},
            "burst length too high for this burst rate",
        ),
        ({"iops-total": 100, "iops-total-max": 10}, "bps_max/iops_max cannot be lower than bps/iops"),
        ({"iops-total-max": 10}, "bps_max/iops_max require corresponding bps/iops values"),
        ({"iops-total": 1, "iops-total-max-length": 0}, "the burst length cannot be 0"),
        ({"iops-total": 1, "iops-total-max-length": 5}, "burst length set without burst rate"),
        ({"iops-total": 1, "iops-total-max-length": -1}, "burst length set without burst rate"),
        ({"iops-total": 1, "iops-total-max": 1, "iops-total-max-length": -1}, "burst length too high"),
        ({"bps-total": 1, "bps-read": 1, "bps-total-max-length": 0}, "cannot be used at the same time"),
        ({"iops-size": 5}, "iops size requires an iops value to be set"),
    ],
)
def test_limits_that_make_no_sense_are_refused(members, text):
    with pytest.raises(QobraError, match=text):
        Limits().updated(members)

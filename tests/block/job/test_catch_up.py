"""When a mirror has caught up with the guest that it follows, and how much it gives way meanwhile."""

from __future__ import annotations

import pytest

from qobra.block.job.catch_up import AT_ONCE_NS, LOOK_NS, MOST_AT_ONCE, NEARLY, PATIENCE, SHARE, CatchUp
from qobra.block.job.pace import Pace
from qobra.block.slots import Flight

MIB = 1 << 20


class Clock:
    now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace():
    return Pace(Flight())


@pytest.fixture
def catch_up(pace, clock):
    return CatchUp(pace, is_local=True, now=clock)


def test_a_job_that_does_not_gain_gives_way_less(catch_up, pace, clock):
    def share_after(copied, left, later_ns=LOOK_NS):
        clock.now_ns += later_ns
        catch_up.note(copied * MIB, None)
        catch_up.adapt_pace(lambda: left * MIB)
        return pace.share

    catch_up.begin(1000 * MIB)
    assert share_after(100, 900) == SHARE
    assert share_after(100, 825) == SHARE
    assert share_after(100, 800, LOOK_NS - 1) == SHARE, "it is not looked at yet"
    assert share_after(0, 800, 1) == SHARE // 2, "what was left got less by 25 MiB of 100"
    assert [share_after(100, 800) for _ in range(5)] == [SHARE // 4, 1, 1, 1, 1]
    assert share_after(300, 500) == 1
    assert not catch_up.is_there(MIB, ending=False)
    assert [share_after(10, 1) for _ in range(5)] == [2, 4, SHARE, SHARE, SHARE], "in step"
    assert not catch_up.is_there(2 * MIB, ending=False)
    catch_up.is_there(2 * MIB, ending=True)
    assert share_after(10, 1) == 1


def test_the_first_passes_are_for_all_that_is_written(catch_up):
    assert [catch_up.is_there(NEARLY, ending=False) for _ in range(3)] == [False, False, True]
    assert not catch_up.is_there(NEARLY + 1, ending=False)
    assert catch_up.is_there(0, ending=False)


def test_nothing_that_is_left_is_enough_at_once(catch_up):
    assert catch_up.is_there(0, ending=False)


def test_what_is_copied_at_once_may_be_left(catch_up):
    def passed(remaining, took_ns):
        catch_up.note(8 * MIB, took_ns)
        return catch_up.is_there(remaining, ending=False)

    results = [passed(8 * MIB, took) for took in (AT_ONCE_NS, AT_ONCE_NS, AT_ONCE_NS, AT_ONCE_NS + 1)]
    assert results == [False, False, True, False]
    assert passed(4 * MIB, 2 * AT_ONCE_NS)
    assert not passed(MOST_AT_ONCE + 1, 1)
    assert not catch_up.is_there(8 * MIB, ending=False), "nothing was copied in this pass"


def test_how_long_it_takes_is_not_known_while_others_do_the_work(catch_up):
    for _ in range(3):
        catch_up.is_there(8 * MIB, ending=False)
    catch_up.note(8 * MIB, None)
    assert not catch_up.is_there(8 * MIB, ending=False)
    catch_up.note(8 * MIB, 1)
    assert catch_up.is_there(8 * MIB, ending=False)


def test_a_job_that_is_told_to_end_does_so_whatever_is_written(catch_up):
    assert not catch_up.is_there(1 << 40, ending=False)
    ended = [catch_up.is_there(1 << 40, ending=True) for _ in range(PATIENCE)]
    assert ended == [False] * (PATIENCE - 1) + [True]

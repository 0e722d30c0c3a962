"""When a mirror has caught up with the guest that it follows, and how much it gives way meanwhile."""

from __future__ import annotations

import pytest

from qobra.block.copy.carrier import Carrier
from qobra.block.job.catch_up import AT_ONCE_NS, MOST_AT_ONCE, NEARLY, PATIENCE, CatchUp
from qobra.block.job.pace import SHARE, Pace
from qobra.block.slots import Flight

MIB = 1 << 20


@pytest.fixture
def pace():
    return Pace(Flight())


@pytest.fixture
def carrier():
    return Carrier()


@pytest.fixture
def catch_up(pace, carrier):
    return CatchUp(pace, carrier, is_local=True)


def test_a_job_that_falls_behind_gives_way_less(catch_up, pace):
    shares = []
    catch_up.begin(90 * MIB)
    for remaining in (40, 30, 30, 10, 9, 9, 9, 1):
        catch_up.is_there(remaining * MIB, ending=False)
        shares.append(pace.share)
    assert shares == [SHARE, SHARE // 2, SHARE // 4, SHARE // 4, SHARE // 8, 1, 1, SHARE]
    catch_up.is_there(2 * MIB, ending=True)
    assert pace.share == 1


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


def test_how_long_it_takes_is_not_known_while_others_do_the_work(catch_up, carrier):
    for _ in range(3):
        catch_up.is_there(8 * MIB, ending=False)
    carrier.share = 2
    catch_up.note(8 * MIB, 1)
    assert not catch_up.is_there(8 * MIB, ending=False)
    carrier.share = 1
    catch_up.note(8 * MIB, 1)
    assert catch_up.is_there(8 * MIB, ending=False)


def test_a_job_that_is_told_to_end_does_so_whatever_is_written(catch_up):
    assert not catch_up.is_there(1 << 40, ending=False)
    ended = [catch_up.is_there(1 << 40, ending=True) for _ in range(PATIENCE)]
    assert ended == [False] * (PATIENCE - 1) + [True]

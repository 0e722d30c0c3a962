"""Where threads that serve guests run, in both forms."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from qobra.block.export.placement import CROWDED, LONGEST_NS, LOOK_NS, PurePlacement
from qobra.native import compiled

_compiled: Any = compiled("placement")
needs_compiled = pytest.mark.skipif(_compiled is None, reason="the compiled form was not built")
FORMS = [
    pytest.param(PurePlacement, id="pure"),
    pytest.param(_compiled and _compiled.Placement, marks=needs_compiled, id="compiled"),
]


def in_thread(work: Any) -> Any:
    """What ``work`` returns in a thread of its own, whose processors are nobody else's business."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def processor() -> int:
    with open("/proc/thread-self/stat") as stream:
        return int(stream.read().rpartition(")")[2].split()[36])


@pytest.mark.parametrize("form", FORMS)
def test_a_processor_is_left_where_the_thread_waits_for_more_than_a_part_of_the_time(form: Any) -> None:
    placement = form()
    assert not placement.judge(5_000, 900_000_000)  # what was before it first looked is of no account
    now, waited = 5_000, 900_000_000
    for part, moves in ((0, False), (CROWDED, False), (CROWDED - 1, True), (2 * CROWDED, False), (1, True)):
        now += 12 * LOOK_NS
        waited += 12 * LOOK_NS // part if part else 0
        assert placement.judge(now, waited) is moves, part


def look_times(placement: PurePlacement, waits: list[bool]) -> list[int]:
    """Nanoseconds from each look to the next one."""
    now = waited = 1
    placement.judge(now, waited)
    times = []
    for crowded in waits:
        rest = placement._next_ns - now
        times.append(rest)
        now += rest
        waited += rest // 2 if crowded else 0
        assert placement.judge(now, waited) is crowded
    return times


def test_moves_that_are_in_vain_become_rare_and_one_that_helps_makes_them_frequent_again() -> None:
    times = look_times(PurePlacement(), [True] * 10 + [False] + [True] * 2)
    doubling = [min(LOOK_NS << index, LONGEST_NS) for index in range(9)]
    assert times == [LOOK_NS, *doubling, LONGEST_NS, LOOK_NS, LOOK_NS]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor only")
def test_moving_leaves_the_thread_all_its_processors(form: Any) -> None:
    def work() -> tuple[int, bool, int, set[int], set[int]]:
        allowed = set(sorted(os.sched_getaffinity(0))[:2])
        first = min(allowed)
        os.sched_setaffinity(0, {first})  # now it is there
        os.sched_setaffinity(0, allowed)
        before = processor()
        return before, form().leave(), processor(), allowed, os.sched_getaffinity(0)

    for _ in range(20):  # the kernel may move it, too
        before, left, after, allowed, stays = in_thread(work)
        assert left and stays == allowed
        if after != before:
            return
    pytest.fail("it stayed where it was")


@pytest.mark.parametrize("form", FORMS)
def test_a_thread_with_one_processor_stays_there(form: Any) -> None:
    def work() -> tuple[bool, set[int], set[int]]:
        mine = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(0, mine)
        return form().leave(), os.sched_getaffinity(0), mine

    left, stays, mine = in_thread(work)
    assert not left and stays == mine


@pytest.mark.parametrize("form", FORMS)
def test_looking_moves_only_what_waits(form: Any) -> None:
    """And has its times closed in the end."""

    def work() -> tuple[int, int]:
        open_files = len(os.listdir("/proc/self/fd"))
        placement = form()
        for _ in range(3):
            placement.look()
        del placement
        return open_files, len(os.listdir("/proc/self/fd"))

    before, after = in_thread(work)
    assert before == after

"""Marks that loops without the GIL make: against a set, with several threads at once, and at the edges."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from qobra.native import compiled

marks_form: Any = compiled("marks")
pytestmark = pytest.mark.skipif(marks_form is None, reason="the compiled form was not built")

PAGE = 1 << 15
GRANULES = 11 * PAGE + 77


def numbers(taken: list[tuple[int, bytes]]) -> set[int]:
    found = set()
    for page, data in taken:
        value = int.from_bytes(data, "little")
        while value:
            low = value & -value
            found.add(page * PAGE + low.bit_length() - 1)
            value ^= low
    return found


@pytest.mark.parametrize("seed", range(4))
def test_random_marks_equal_a_set(seed: int) -> None:
    rng = random.Random(seed)
    shift = rng.choice((9, 12, 16))
    marks = marks_form.Marks(GRANULES, shift)
    for _ in range(4):
        model: set[int] = set()
        for _ in range(20):
            first = rng.choice([0, 63, 64, PAGE - 1, PAGE, 10 * PAGE, GRANULES - 1, rng.randrange(GRANULES)])
            count = rng.choice([1, 2, 64, 65, PAGE, 2 * PAGE + 3])
            end = min(first + count, GRANULES)
            skip = rng.randrange(1 << shift)
            marks.mark((first << shift) + skip, (count << shift) - skip)
            model.update(range(first, end))
        assert marks.waiting
        assert numbers(marks.take()) == model
        assert not marks.waiting and marks.take() == []


def test_no_mark_is_lost_between_threads_that_mark_and_one_that_takes() -> None:
    marks = marks_form.Marks(GRANULES, 9)
    found: set[int] = set()
    expected: set[int] = set()
    plans = [[random.Random(n).randrange(GRANULES) for _ in range(3000)] for n in range(3)]
    for plan in plans:
        expected.update(plan)

    def mark(plan: list[int]) -> None:
        for number in plan:
            marks.mark(number << 9, 1)

    threads = [threading.Thread(target=mark, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found |= numbers(marks.take())
    found |= numbers(marks.take())
    assert found == expected


def test_what_is_past_the_end_or_empty_is_left_out() -> None:
    marks = marks_form.Marks(10, 16)
    for offset, length in ((10 << 16, 1), (1 << 63, 1), (5, 0), ((1 << 64) - 1, (1 << 64) - 1), (1, (1 << 64) - 1)):
        marks.mark(offset, length)
    assert marks.take() == []
    marks.mark(9 << 16, 1 << 40)
    assert numbers(marks.take()) == {9}
    nothing = marks_form.Marks(0, 16)
    nothing.mark(0, 1 << 40)
    assert nothing.take() == []


@pytest.mark.parametrize(("granules", "shift"), [(1 << 40, 9), ((1 << 64) - 1, 9), (1, 63), (1, -1)])
def test_too_many_granules_are_refused(granules: int, shift: int) -> None:
    with pytest.raises(ValueError):
        marks_form.Marks(granules, shift)

"""Reading ahead in another thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qobra.block.copy.ahead import read_ahead


def test_all_items_come_in_order() -> None:
    assert list(read_ahead(iter(range(1000)), 3)) == list(range(1000))
    assert list(read_ahead([], 1)) == []


def test_it_is_no_further_ahead_than_asked() -> None:
    found: list[int] = []
    most = 0

    def items() -> Iterator[int]:
        for number in range(50):
            found.append(number)
            yield number

    for number in read_ahead(items(), 2):
        most = max(most, len(found) - number)
    assert most <= 4


def test_an_error_is_raised_to_the_caller() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("x")

    taken = []
    with pytest.raises(KeyError):
        for number in read_ahead(items(), 5):
            taken.append(number)  # noqa: PERF402
    assert taken == [1]


def test_whoever_stops_early_ends_the_thread() -> None:
    before = threading.active_count()
    ahead = read_ahead(iter(range(1 << 30)), 2)
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before

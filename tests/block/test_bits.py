"""Sparse bits: against a plain set of integers."""

from __future__ import annotations

import random

import pytest

from qobra.block.bits import PAGE_SIZE, Bits

SIZE = 3 * PAGE_SIZE + 77


@pytest.mark.parametrize("seed", range(8))
def test_random_operations_equal_a_set(seed):
    rng = random.Random(seed)
    bits, model = Bits(SIZE), set()
    edges = [0, 1, 7, 8, 9, 63, 64, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE, 3 * PAGE_SIZE, SIZE]
    for _ in range(60):
        first = rng.choice([rng.choice(edges), rng.randrange(SIZE)])
        end = rng.choice([rng.choice(edges), min(SIZE, first + rng.randrange(20)), rng.randrange(SIZE + 1)])
        if rng.random() < 0.6:
            bits.set(first, end)
            model.update(range(first, end))
        else:
            bits.clear(first, end)
            model.difference_update(range(first, end))
    assert bits.count() == len(model)
    listed = set()
    for start, end in bits.runs(0, SIZE):
        assert start - 1 not in model and end not in model
        listed.update(range(start, end))
    assert listed == model
    for number in [*edges[:-1], *(rng.randrange(SIZE) for _ in range(50))]:
        assert (number in bits) == (number in model)
        assert bits.next_set(number, SIZE) == next((n for n in range(number, SIZE) if n in model), SIZE)
        assert bits.next_clear(number, SIZE) == next((n for n in range(number, SIZE) if n not in model), SIZE)
    data = bits.to_bytes(0, SIZE)
    assert int.from_bytes(data, "little") == sum(1 << n for n in model)
    again = Bits(SIZE)
    again.load(0, data[:1000])
    again.load(8000, data[1000:])
    assert again.to_bytes(0, SIZE) == data
    other = Bits(SIZE)
    other.set(5, PAGE_SIZE + 9)
    other.merge(bits)
    assert other.count() == len(model | set(range(5, PAGE_SIZE + 9)))
    assert bits.count() == len(model)


def test_shrinking_and_growing_forgets():
    bits = Bits(SIZE)
    bits.set(0, SIZE)
    bits.resize(PAGE_SIZE + 3)
    bits.resize(SIZE)
    assert list(bits.runs(0, SIZE)) == [(0, PAGE_SIZE + 3)]


def test_loading_drops_what_is_past_the_end():
    bits = Bits(10)
    bits.load(0, b"\xff" * 20)
    assert bits.count() == 10


def test_a_set_disk_of_many_terabytes_takes_no_memory():
    bits = Bits(1 << 40)
    bits.set(0, 1 << 30)
    assert bits.count() == 1 << 30
    assert len({id(page) for page in bits.pages.values()}) == 1

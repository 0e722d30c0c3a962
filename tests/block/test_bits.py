"""Sparse bits: against a plain set of integers."""

from __future__ import annotations

import random

import pytest

from qobra.block.bits import PAGE_SIZE, Bits, pure_union
from qobra.native import compiled

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


def test_pages_are_added_without_what_is_past_the_end():
    bits = Bits(SIZE)
    bits.set(5, 9)
    full = b"\xff" * (PAGE_SIZE // 8)
    bits.add_pages([(0, b"\1" + bytes(PAGE_SIZE // 8 - 1)), (1, full), (3, full), (4, full), (1 << 30, full)])
    assert list(bits.runs(0, SIZE)) == [(0, 1), (5, 9), (PAGE_SIZE, 2 * PAGE_SIZE), (3 * PAGE_SIZE, SIZE)]
    assert bits.count() == 5 + PAGE_SIZE + 77
    bits.clear(0, SIZE)
    assert bits.count() == 0 and not any(any(page) for page in bits.pages.values())
    exact = Bits(PAGE_SIZE)
    exact.add_pages([(0, full), (1, full)])
    assert exact.count() == PAGE_SIZE


def test_loading_drops_what_is_past_the_end():
    bits = Bits(10)
    bits.load(0, b"\xff" * 20)
    assert bits.count() == 10


def test_a_set_disk_of_many_terabytes_takes_no_memory():
    bits = Bits(1 << 40)
    bits.set(0, 1 << 30)
    assert bits.count() == 1 << 30
    assert len({id(page) for page in bits.pages.values()}) == 1


def test_as_bytes_a_set_of_any_size_is_whole():
    for size in [*range(1, 18), PAGE_SIZE + 1, PAGE_SIZE + 7]:
        bits = Bits(size)
        bits.set(size - 1, size)
        assert bits.to_bytes(0, size) == (1 << size - 1).to_bytes((size + 7) // 8, "little")


def test_a_few_numbers_of_a_large_set_are_found():
    bits = Bits(1 << 40)
    numbers = [5, 9 * PAGE_SIZE + 7, 9 * PAGE_SIZE + 8, (1 << 39) + 1, (1 << 40) - 1]
    for number in numbers:
        bits.set(number, number + 1)
    found, at = [], 0
    while at < 1 << 40:
        at = bits.next_set(at, 1 << 40)
        found.append(at)
        at += 1
    assert found == numbers
    assert bits.next_set(6, 9 * PAGE_SIZE + 7) == 9 * PAGE_SIZE + 7
    assert bits.next_set((1 << 39) + 2, (1 << 40) - 1) == (1 << 40) - 1
    bits.clear((1 << 40) - 1, 1 << 40)
    assert bits.next_set((1 << 39) + 2, 1 << 41) == 1 << 40


_compiled = compiled("bits")


@pytest.mark.parametrize("union", [pure_union] if _compiled is None else [pure_union, _compiled.union])
def test_union_of_pages(union):
    rng = random.Random(5)
    for size in (1, 7, 64, 4096):
        mine, theirs = rng.randbytes(size), rng.randbytes(size)
        both = union(bytearray(mine), theirs)
        assert isinstance(both, bytes) and both == bytes(a | b for a, b in zip(mine, theirs, strict=True))
        assert union(both, mine) is both and union(mine, bytes(size)) is mine
    if union is not pure_union:
        with pytest.raises(ValueError, match="different sizes"):
            union(b"12", b"1")


def test_merged_sets_share_no_page_that_can_change():
    ours, theirs = Bits(SIZE), Bits(SIZE)
    theirs.set(5, 9)
    theirs.load(PAGE_SIZE, bytes(4095) + b"\x80")
    ours.merge(theirs)
    before = ours.copy()
    ours.set(0, 1)
    ours.set(PAGE_SIZE, PAGE_SIZE + 1)
    theirs.clear(5, 6)
    assert list(before.runs(0, SIZE)) == [(5, 9), (2 * PAGE_SIZE - 1, 2 * PAGE_SIZE)]
    assert list(theirs.runs(0, SIZE)) == [(6, 9), (2 * PAGE_SIZE - 1, 2 * PAGE_SIZE)]
    theirs.load(PAGE_SIZE, bytes(4096))
    assert list(theirs.runs(0, SIZE)) == [(6, 9)]


@pytest.mark.parametrize("seed", range(8))
def test_what_stays_stored_equals_what_is_loaded(seed: int) -> None:
    rng = random.Random(seed)
    data = b"".join(rng.choice([bytes(600), b"\xff" * 600, rng.randbytes(600)]) for _ in range(-(-SIZE // 4800)))
    file = b"before" + data
    reads = []

    def read(offset: int, length: int) -> bytes:
        reads.append(length)
        return file[offset : offset + length]

    loaded, stored = Bits(SIZE), Bits(SIZE)
    loaded.load(0, data[: SIZE + 7 >> 3])
    stored.refer(0, read, 6, SIZE + 7 >> 3)
    assert sum(reads) < PAGE_SIZE >> 3  # what is not a whole page
    other = Bits(SIZE)
    for _ in range(10):
        start = rng.randrange(SIZE)
        other.set(start, start + rng.randrange(2 * PAGE_SIZE))
    before = stored.copy()
    for bits in (loaded, stored):
        assert bits.count() == loaded.count()
        assert list(bits.runs(0, SIZE)) == list(loaded.runs(0, SIZE))
    for bits in (loaded, stored):
        bits.clear(100, 200)
        bits.merge(other)
        bits.set(PAGE_SIZE + 5, PAGE_SIZE + 9)
    assert stored.to_bytes(0, SIZE) == loaded.to_bytes(0, SIZE)
    total = Bits(SIZE)
    total.merge(before)
    assert total.to_bytes(0, SIZE)[: SIZE >> 3] == data[: SIZE >> 3]

"""Scattered pieces are copied from disk to disk; what is no plain hit is left, and told of."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import DirtyBitmap
from qobra.block.copy.follow import LONGEST, MOST, PIECE, Follower, _ranges, can_follow
from qobra.testing.images import ImageLab
from qobra.testing.jobs import RecordingLayer

pytestmark = pytest.mark.skipif(not can_follow(), reason="the compiled form is not built")
MIB = 1 << 20
SIZE = 8 * MIB - 1000


@pytest.fixture
def layer():
    made = RecordingLayer()
    yield made
    with made.control:
        made.close()


def disk(layer, path, size=SIZE):
    with open(path, "wb") as file:
        file.truncate(size)
    node = layer.add_node({"driver": "file", "node-name": path.name, "filename": str(path)})
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(node)
    return backend


@pytest.fixture
def ends(layer, tmp_path):
    return disk(layer, tmp_path / "source"), disk(layer, tmp_path / "target")


def follow(ends, dirty):
    """All of it, and the ranges that were left to others."""
    follower = Follower(*ends, dirty)
    position, left = dirty.next_dirty(0), []
    while position < dirty.length:
        copied, stop, more = follower.copy(position)
        left += more
        assert copied < MOST + LONGEST and follower.taken == 0
        position = dirty.next_dirty(stop if stop > position else dirty.next_clean(position))
    return left


@pytest.mark.parametrize("seed", range(6))
def test_what_is_marked_is_copied_and_nothing_else(ends, seed):
    rng = random.Random(seed)
    source, target = ends
    source.write(0, rng.randbytes(SIZE))
    content, expected = source.read(0, SIZE), bytearray(SIZE)
    dirty = DirtyBitmap(source.node, None, PIECE, enabled=False)
    long = []
    for _ in range(rng.choice([1, 20, 400])):
        offset = rng.randrange(SIZE)
        dirty.set(offset, rng.choice([1, PIECE, 5 * PIECE, LONGEST]))
    for start, length in dirty.dirty_ranges():
        if length >= LONGEST:
            long.append((start, length))
        else:
            expected[start : start + length] = content[start : start + length]
    assert follow(ends, dirty) == []
    assert target.read(0, SIZE) == expected
    assert list(dirty.dirty_ranges()) == long, "who copies large parts does that"


def test_long_runs_are_copied_where_nobody_else_does(ends):
    source, target = ends
    source.write(0, random.Random(1).randbytes(SIZE))
    content, expected = source.read(0, SIZE), bytearray(SIZE)
    dirty = DirtyBitmap(source.node, None, PIECE, enabled=False)
    for start, length in ((PIECE, PIECE), (5 * PIECE, 3 * LONGEST + PIECE), (SIZE - LONGEST, LONGEST)):
        dirty.set(start, length)
    for start, length in dirty.dirty_ranges():
        expected[start : start + length] = content[start : start + length]
    follower = Follower(*ends, dirty)
    follower.leaves_long = False
    wanted = dirty.count() - -SIZE % PIECE
    assert follower.copy(0) == (wanted, SIZE, [])
    assert target.read(0, SIZE) == expected
    assert not dirty.count()


def test_holes_are_left_to_who_keeps_them(layer, tmp_path):
    file = {"driver": "file", "filename": ImageLab(tmp_path).create("source", size=MIB)}
    node = layer.add_node({"driver": "qcow2", "node-name": "image", "file": file})
    source = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    source.insert(node)
    target = disk(layer, tmp_path / "target", MIB)
    source.write(3 * 65536, b"x" * 65536)
    dirty = DirtyBitmap(node, None, PIECE, enabled=False)
    dirty.set(0, PIECE)
    dirty.set(3 * 65536 + PIECE, 2 * PIECE)
    assert follow((source, target), dirty) == [(0, PIECE)]
    assert list(dirty.dirty_ranges()) == [(0, PIECE)]
    assert target.read(0, MIB) == bytes(3 * 65536 + PIECE) + b"x" * 2 * PIECE + bytes(MIB - 3 * 65536 - 3 * PIECE)


@pytest.mark.parametrize("seed", range(10))
def test_runs_of_bits(seed):
    rng = random.Random(seed)
    bits = bytearray(rng.choice([b"\0", b"\xff", b"\x81", b"\x0f"])[0] & rng.randrange(256) for _ in range(20))
    begin, end = sorted(rng.randrange(161) for _ in range(2))
    numbers = [number for number in range(begin, end) if bits[number >> 3] >> (number & 7) & 1]
    found = _ranges(bits, begin, end)
    assert [number for low, high in found for number in range(low, high)] == numbers
    assert all(one[1] < two[0] for one, two in pairwise(found))

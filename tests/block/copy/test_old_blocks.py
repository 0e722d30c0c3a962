"""Old data that is kept: both forms against a model, and with writers and a copier at the same time."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from qobra.block.copy.old_blocks import BLOCK, PureOldBlocks
from qobra.native import compiled

_compiled = compiled("old_blocks")
FORMS = [PureOldBlocks] if _compiled is None else [PureOldBlocks, _compiled.OldBlocks]
CLUSTER = 65536
CLUSTERS = 8
LENGTH = CLUSTERS * CLUSTER - 3000


class Disk:
    """A disk that is written and copied, one step at a time."""

    def __init__(self, old: Any, rng: random.Random) -> None:
        self.old = old
        self.rng = rng
        self.data = bytearray(rng.randbytes(LENGTH))
        zero = rng.randrange(CLUSTERS - 1) * CLUSTER
        self.data[zero : zero + CLUSTER] = bytes(CLUSTER)
        self.before = bytes(self.data)
        self.copy = bytearray(LENGTH)
        self.left = set(range(CLUSTERS))

    def write(self) -> None:
        """As a guest does: keep what changes, if there is room, and then write."""
        offset = self.rng.randrange(LENGTH)
        length = min(LENGTH - offset, self.rng.choice([1, 4096, 9000, 3 * CLUSTER]))
        for start, size in self.old.missing(offset, length):
            assert start % BLOCK == 0 and (size % BLOCK == 0 or start + size == LENGTH)
            assert start // CLUSTER == (start + size - 1) // CLUSTER and start // CLUSTER in self.left
            cluster = start - start % CLUSTER
            if not any(self.data[cluster : cluster + CLUSTER]):
                if not self.old.keep_zeroes(cluster, min(CLUSTER, LENGTH - cluster)):
                    return
            elif not self.old.keep(start, memoryview(self.data)[start : start + size]):
                return
        assert self.old.missing(offset, length) == []
        self.data[offset : offset + length] = self.rng.randbytes(length) if self.rng.random() < 0.8 else bytes(length)

    def copy_part(self) -> None:
        """As a job does, with writes at every point in between."""
        number = self.rng.choice(sorted(self.left))
        count = self.rng.randrange(1, 4)
        clusters = [each for each in range(number, number + count) if each in self.left]
        clusters = clusters[: next((index for index, each in enumerate(clusters) if each != number + index), count)]
        offset = number * CLUSTER
        length = min(len(clusters) * CLUSTER, LENGTH - offset)
        mend = self.old.holds(offset, length)
        runs = self.old.runs(offset, length) if mend else [(offset, length, False)]
        assert sum(size for _start, size, _zero in runs) == length
        for start, size, zero in runs:
            self.write()
            view = memoryview(bytearray(size) if zero else self.data[start : start + size])
            self.write()
            if mend and not zero:
                cut = self.rng.randrange(size)
                self.old.mend(start, view[:cut], True)
                self.old.mend(start + cut, view[cut:], True)
            self.copy[start : start + size] = view
            self.write()
        if self.rng.random() < 0.3:
            self.copy[offset : offset + length] = bytes(length)
            self.old.again(offset, length)
            return
        while not self.old.settle(offset, length):
            for start, block in self.old.late(offset, length):
                self.copy[start : start + len(block)] = block
        self.left.difference_update(clusters)
        assert self.copy[offset : offset + length] == self.before[offset : offset + length]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(12))
def test_a_copy_is_exact_whatever_is_written_meanwhile(form: Any, seed: int) -> None:
    rng = random.Random(seed)
    limit = rng.choice([1 << 20, 16 * BLOCK])
    disk = Disk(form(LENGTH, 16, limit, [(0, LENGTH)]), rng)
    while disk.left:
        for _ in range(rng.randrange(4)):
            disk.write()
        if rng.random() < 0.2:
            offset = rng.randrange(LENGTH - 10000)
            view = memoryview(disk.data[offset : offset + 10000])
            disk.old.mend(offset, view, False)
            for at in range(0, 10000, 100):
                if (offset + at) // CLUSTER in disk.left and (offset + at + 99) // CLUSTER in disk.left:
                    assert view[at : at + 100] == disk.before[offset + at : offset + at + 100]
        disk.copy_part()
        assert disk.old.used <= limit
        assert {number * CLUSTER for number in disk.left}.issuperset(disk.old.clusters())
    assert disk.copy == disk.before
    assert disk.old.used == 0 and disk.old.clusters() == [] and disk.old.missing(0, LENGTH) == []


@pytest.mark.parametrize("form", FORMS)
def test_only_what_is_to_be_copied_is_asked_for(form: Any) -> None:
    old = form(LENGTH, 16, 1 << 20, [(CLUSTER, CLUSTER)])
    assert old.missing(0, LENGTH) == [(CLUSTER, CLUSTER)]
    assert old.missing(CLUSTER + 5000, 1) == [(CLUSTER + 4096, 4096)]
    assert old.keep(CLUSTER + 4096, bytes(4096)) and old.holds(CLUSTER, CLUSTER) and not old.holds(0, CLUSTER)
    assert old.missing(CLUSTER, 10000) == [(CLUSTER, 4096), (CLUSTER + 8192, 4096)]
    assert old.clusters() == [CLUSTER]
    old.release(CLUSTER, CLUSTER)
    assert old.missing(0, LENGTH) == [] and old.used == 0
    old = form(LENGTH, 16, 1 << 20, [(0, LENGTH)])
    old.off = True
    assert old.missing(0, LENGTH) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_memory_is_bounded(form: Any) -> None:
    old = form(LENGTH, 16, 3 * BLOCK, [(0, LENGTH)])
    assert old.keep(0, bytes(2 * BLOCK)) and not old.keep(CLUSTER, bytes(2 * BLOCK))
    assert old.used == old.limit == 3 * BLOCK
    assert old.keep(0, bytes(BLOCK))  # which is kept already
    old.release(0, CLUSTER)
    assert old.keep(CLUSTER, bytes(2 * BLOCK)) and old.used == 2 * BLOCK
    old.limit = 0
    assert not old.keep(5 * CLUSTER, bytes(BLOCK)) and not old.keep_zeroes(5 * CLUSTER, CLUSTER)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_given_whole_is_not_late(form: Any) -> None:
    old = form(LENGTH, 16, 1 << 20, [(0, LENGTH)])
    assert old.keep(0, b"a" * BLOCK + b"b" * BLOCK)
    view = memoryview(bytearray(BLOCK + 100))
    old.mend(0, view, False)
    assert view == b"a" * BLOCK + b"b" * 100 and not old.settle(0, CLUSTER)
    old.mend(0, view, True)
    assert not old.settle(0, CLUSTER) and old.late(0, CLUSTER) == [(BLOCK, b"b" * BLOCK)]
    assert old.late(0, CLUSTER) == []
    old.again(0, CLUSTER)
    assert len(old.late(0, CLUSTER)) == 2 and old.settle(0, CLUSTER)


@pytest.mark.parametrize("form", FORMS)
def test_what_lies_outside_is_left_out(form: Any) -> None:
    old = form(LENGTH, 16, 1 << 20, [(0, LENGTH)])
    assert old.missing(LENGTH, 1 << 40) == [] and old.missing(1 << 62, 5) == []
    last = LENGTH - LENGTH % BLOCK
    assert old.missing(last, 1 << 40) == [(last, LENGTH - last)]
    view = memoryview(bytearray(b"x" * 10))
    old.mend(LENGTH - 1, view, True)
    old.mend(1 << 40, view, True)
    assert view == b"x" * 10
    assert old.late(1 << 40, 1 << 40) == [] and not old.holds(1 << 40, 1 << 40) and old.settle(1 << 40, 1 << 40)


def test_the_compiled_form_refuses_what_it_has_no_room_for() -> None:
    if _compiled is None:
        pytest.skip("the compiled form was not built")
    for length, shift, capacity in ((1 << 62, 16, 0), (1 << 20, 9, 0), (1 << 20, 63, 0), (1 << 20, 16, -4096)):
        with pytest.raises(ValueError):
            _compiled.OldBlocks(length, shift, capacity, [])
    old = _compiled.OldBlocks(LENGTH, 16, 1 << 20, [(0, LENGTH), (LENGTH, 5), (0, 1 << 62), (1 << 63, 1 << 63)])
    assert not old.keep(5, bytes(BLOCK)) and not old.keep(0, bytes(5)) and not old.keep(1 << 40, bytes(BLOCK))


@pytest.mark.parametrize("form", FORMS)
def test_several_writers_beside_a_copier(form: Any) -> None:
    """The data of each block says which version it has: the copy may only have the first one."""
    blocks = CLUSTERS * CLUSTER // BLOCK
    data = [bytes([0]) * BLOCK for _ in range(blocks)]
    old = form(CLUSTERS * CLUSTER, 16, 1 << 20, [(0, CLUSTERS * CLUSTER)])
    stop = threading.Event()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            block = rng.randrange(blocks)
            if all(old.keep(start, data[block]) for start, _size in old.missing(block * BLOCK, BLOCK)):
                data[block] = bytes([rng.randrange(1, 256)]) * BLOCK

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    copy = bytearray(b"\xff" * (CLUSTERS * CLUSTER))
    for offset in range(0, CLUSTERS * CLUSTER, CLUSTER):
        view = memoryview(bytearray(b"".join(data[offset // BLOCK : (offset + CLUSTER) // BLOCK])))
        old.mend(offset, view, True)
        copy[offset : offset + CLUSTER] = view
        while not old.settle(offset, CLUSTER):
            for start, block in old.late(offset, CLUSTER):
                copy[start : start + BLOCK] = block
    stop.set()
    for thread in threads:
        thread.join()
    assert copy == bytes(len(copy))

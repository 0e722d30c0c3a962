"""Two disks in step: what is apart and what is not, where a write goes, and that none is lost between many threads."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import DirtyBitmap
from qobra.native import compiled
from qobra.testing.images import ImageLab
from qobra.testing.jobs import RecordingLayer
from qobra.testing.waiting import wait_until

form: Any = compiled("in_step")
marks_form: Any = compiled("marks")
pytestmark = pytest.mark.skipif(form is None or marks_form is None, reason="the compiled form was not built")

UNIT = 4096
PAGE = 1 << 15
SIZE = 256 * UNIT - 1000


class Disks:
    """A source and a target, the source's bitmap, and the roots of a guest and of a job."""

    def __init__(self, layer, tmp_path):
        self.layer = layer
        self.source, self.target = (self._disk(tmp_path / name) for name in ("source", "target"))
        self.dirty = DirtyBitmap(self.source.node, None, UNIT, enabled=False)
        self.dirty.keep_in_step()
        self.dirty.enable()
        self.step = self.dirty.in_step

    def _disk(self, path):
        with open(path, "wb") as file:
            file.truncate(SIZE)
        node = self.layer.add_node({"driver": "file", "node-name": path.name, "filename": str(path)})
        backend = BlockBackend(self.layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
        backend.insert(node)
        return backend

    def aim(self):
        self.step.aim(self.target.table().places)

    def write(self, offset, data):
        """As a loop does it; whether that was possible."""
        return self.source.table().places.write(offset, data)


@pytest.fixture
def disks(tmp_path):
    layer = RecordingLayer()
    yield Disks(layer, tmp_path)
    with layer.control:
        layer.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_holds_and_releases_equal_a_set(seed: int) -> None:
    rng = random.Random(seed)
    granules = 2 * PAGE + 77
    end = granules * UNIT - 5
    step = form.InStep(marks_form.Marks(granules, 12))
    model: set[int] = set()
    for _ in range(60):
        first = rng.choice([0, 63, 64, PAGE - 1, PAGE, granules - 1, rng.randrange(granules)])
        count = min(rng.choice([1, 2, 64, 65, PAGE + 3]), granules - first)
        skip, less = rng.choice([0, 0, 7]), rng.choice([0, 0, 9])
        kind = rng.randrange(4)
        if kind == 0:
            step.release(first * UNIT + skip, min(count * UNIT, end - first * UNIT) - skip - less, end)
            last = first + count
            at_end = min(last * UNIT, end) - less >= end
            model.update(range(first + (skip > 0), last if at_end or not less else last - 1))
        elif kind == 1:
            step.hold(first * UNIT + skip, count * UNIT - skip)
            model.difference_update(range(first, first + count))
        else:
            first -= first % 8
            bits = bytearray(rng.randbytes(min(40, (granules - first) // 8)))
            left = bytes(each & rng.randrange(256) for each in bits)
            if kind == 2:
                step.hold_bits(first * UNIT, bits)
                model.difference_update(first + n for n in range(8 * len(bits)) if bits[n >> 3] >> (n & 7) & 1)
            else:
                step.release_bits(first * UNIT, bits, left)
                done = [(each & ~other) for each, other in zip(bits, left, strict=True)]
                model.update(first + n for n in range(8 * len(bits)) if done[n >> 3] >> (n & 7) & 1)
        for number in {first, first + count - 1, min(first + count, granules - 1), rng.randrange(granules)}:
            assert step.is_in_step(number * UNIT, 1) == (number in model)
    assert all(step.is_in_step(number * UNIT, UNIT) == (number in model) for number in range(granules))


def test_what_is_in_step_is_written_to_both_and_not_marked(disks):
    disks.aim()
    assert disks.write(0, b"apart")
    assert disks.dirty.count() == UNIT and disks.target.read(0, 5) == bytes(5)
    disks.step.release(UNIT, SIZE - UNIT, SIZE)
    assert disks.write(5 * UNIT + 7, b"both") and disks.write(SIZE - 3, b"end")
    assert disks.dirty.count() == UNIT
    assert disks.target.read(5 * UNIT + 7, 4) == b"both" and disks.target.read(SIZE - 3, 3) == b"end"
    assert disks.source.read(5 * UNIT + 7, 4) == b"both"


def test_a_write_that_is_apart_in_part_is_marked_and_all_of_it_apart(disks):
    disks.aim()
    disks.step.release(0, UNIT, SIZE)
    assert disks.write(UNIT - 2, b"four")
    assert disks.dirty.count() == 2 * UNIT and not disks.step.is_in_step(0, 1)
    assert disks.target.read(UNIT - 2, 4) == bytes(4)


def test_other_bitmaps_are_marked_all_the_same(disks):
    other = DirtyBitmap(disks.source.node, "b", UNIT)
    disks.aim()
    disks.step.release(0, SIZE, SIZE)
    assert disks.write(UNIT, b"x")
    assert other.count() == UNIT and disks.dirty.count() == 0


def test_nobody_writes_a_target_that_is_not_aimed_at(disks):
    disks.step.release(0, SIZE, SIZE)
    assert disks.write(0, b"one") and disks.target.read(0, 3) == bytes(3) and disks.dirty.count() == UNIT
    disks.step.release(0, SIZE, SIZE)
    disks.aim()
    assert disks.step.target is disks.target.table().places
    assert disks.write(0, b"two") and disks.target.read(0, 3) == b"two"
    disks.step.aim(None)
    assert disks.write(0, b"six") and disks.target.read(0, 3) == b"two"


def test_a_target_that_is_of_another_graph_is_not_written(disks):
    disks.step.release(0, SIZE, SIZE)
    disks.aim()
    disks.layer.changed()
    assert disks.write(0, b"new") and disks.target.read(0, 3) == bytes(3) and disks.dirty.count() == UNIT
    disks.aim()
    disks.step.release(0, SIZE, SIZE)
    assert disks.write(0, b"now") and disks.target.read(0, 3) == b"now"


def test_a_target_that_cannot_be_written_leaves_a_mark(disks):
    disks.step.release(0, SIZE, SIZE)
    disks.target.node.plain_writes = lambda: False
    disks.layer.changed()
    disks.aim()
    assert disks.write(0, b"new") and disks.dirty.count() == UNIT and not disks.step.is_in_step(0, 1)


def test_a_bitmap_of_another_length_has_nothing_in_step(disks):
    disks.step.release(0, SIZE, SIZE)
    disks.aim()
    disks.dirty.resize(SIZE // 2)
    assert disks.dirty.in_step is None and disks.step.target is None


def test_what_cannot_be_is_refused(disks):
    with pytest.raises(TypeError):
        disks.step.aim(disks)
    with pytest.raises(ValueError, match="begins"):
        disks.step.hold_bits(UNIT, b"\1")
    with pytest.raises(ValueError, match="begins"):
        disks.step.release_bits(UNIT, b"\1", b"\0")
    with pytest.raises(ValueError, match="same granules"):
        disks.step.release_bits(0, b"\1", b"\0\0")
    disks.step.release_bits(0, b"\xff" * 99, bytes(99))
    disks.step.hold(SIZE - 1, 5 * SIZE)


def make_slow(disks, root, tmp_path):
    """Have ``root`` write to an image, whose lock makes it wait for new clusters."""
    path = ImageLab(tmp_path).create("slow", size=256 * UNIT)
    node = disks.layer.add_node({"driver": "qcow2", "node-name": "slow", "file": {"driver": "file", "filename": path}})
    root.remove()
    root.insert(node)
    root.table().look(0, SIZE)


@pytest.fixture
def slow(disks, tmp_path):
    """A target that can be made to wait."""
    make_slow(disks, disks.target, tmp_path)
    disks.aim()
    disks.step.release(0, SIZE, SIZE)
    return disks


def writing(disks, data):
    """A thread that has written the source, and waits for the target."""
    thread = threading.Thread(target=disks.write, args=(0, data))
    thread.start()
    wait_until(lambda: os.pread(disks.source.node.fd, len(data), 0) == data)
    return thread


def test_a_job_waits_for_those_who_write_both(slow):
    slow.source.table()
    with slow.target.node.image.lock:
        writer = writing(slow, b"under way")
        job = threading.Thread(target=slow.step.hold, args=(UNIT, UNIT))
        job.start()
        job.join(0.05)
        assert job.is_alive()
    writer.join(30)
    job.join(30)
    assert not job.is_alive() and not slow.step.is_in_step(UNIT, 1)


def test_a_job_stops_a_write_that_has_not_come_to_the_target_yet(disks, tmp_path):
    make_slow(disks, disks.source, tmp_path)
    dirty = DirtyBitmap(disks.source.node, None, UNIT, enabled=False)
    dirty.keep_in_step()
    dirty.enable()
    disks.source.table().look(0, SIZE)
    dirty.in_step.aim(disks.target.table().places)
    dirty.in_step.release(0, SIZE, SIZE)
    places = disks.source.table().places
    with disks.source.node.image.lock:
        writer = threading.Thread(target=places.write, args=(0, b"new"))
        writer.start()
        job = threading.Thread(target=dirty.in_step.hold, args=(UNIT, UNIT))
        while not job.is_alive():  # until the writer has its lane
            job = threading.Thread(target=dirty.in_step.hold, args=(UNIT, UNIT))
            job.start()
            job.join(0.05)
        end = threading.Thread(target=dirty.in_step.aim, args=(None,))
        end.start()
        end.join(0.05)
        assert end.is_alive()
    for thread in (writer, job, end):
        thread.join(30)
    assert dirty.in_step.target is None and disks.target.read(0, 3) == bytes(3)


def test_whoever_comes_while_another_writes_both_leaves_a_mark(slow):
    slow.source.table()
    with slow.target.node.image.lock:
        writer = writing(slow, b"under way")
        assert slow.write(UNIT, b"mark") and slow.dirty.is_dirty(UNIT) and not slow.step.is_in_step(UNIT, 1)
    writer.join(30)
    assert not writer.is_alive()


def test_a_target_that_is_slow_is_left_alone_for_a_while(slow):
    slow.source.table()
    with slow.target.node.image.lock:
        writer = writing(slow, b"slow")
        time.sleep(0.02)
    writer.join(30)
    slow.step.release(0, SIZE, SIZE)
    slow.write(0, b"mark")
    assert slow.dirty.count() == UNIT


@pytest.mark.parametrize("seed", range(3))
def test_no_write_is_lost_between_threads_that_write_and_one_that_copies(disks, seed):
    """Three loops write over each other all the time, one of them past the step; a job copies what is marked."""
    stop = threading.Event()
    disks.dirty.set_all()
    disks.aim()
    errors = []

    def write(number):
        rng = random.Random(seed * 10 + number)
        slot = disks.source.new_slot()
        try:
            while not stop.is_set():
                offset = rng.randrange(4 * UNIT)
                with slot:
                    if number == 2:
                        disks.source.node.write(offset, rng.randbytes(rng.randrange(1, 9000)))
                    else:
                        assert disks.write(offset, rng.randbytes(rng.randrange(1, 9000)))
        except Exception as error:
            errors.append(error)
        finally:
            slot.close()

    def copy_some():
        start = disks.dirty.next_dirty(0)
        if start == SIZE:
            return False
        length = min(disks.dirty.next_clean(start), start + 2 * UNIT) - start
        disks.dirty.clear(start, length)
        disks.step.hold(start, length)
        disks.target.write(start, disks.source.read(start, length))
        disks.step.release(start, length, SIZE)
        return True

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        copy_some()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    in_step = sum(disks.step.is_in_step(offset, 1) for offset in range(0, SIZE, UNIT))
    while copy_some():
        pass
    assert disks.source.read(0, SIZE) == disks.target.read(0, SIZE)
    assert in_step, "some was in step while it was written"

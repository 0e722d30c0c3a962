"""A point in time that is read while what is under it is written."""

from __future__ import annotations

import errno
import os
import random
import threading

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import DirtyBitmap
from qobra.block.copy.chunk import CopyFailed
from qobra.block.layer import BlockLayer

SIZE = 1 << 20
CLUSTER = 65536


@pytest.fixture
def layer(tmp_path):
    made = BlockLayer()
    content = random.Random(1).randbytes(SIZE // 2) + bytes(SIZE // 2)
    for name, data in (("disk", content[: SIZE // 2]), ("copy", b"")):
        with open(tmp_path / name, "wb") as file:
            file.write(data)
            file.truncate(SIZE)
        made.add_node({"driver": "file", "node-name": name, "filename": str(tmp_path / name), "discard": "unmap"})
    made.content = content
    yield made
    made.close()


def _set_up(layer, **options):
    layer.add_node({"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "copy", **options})
    guest = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    guest.insert(layer.find_node("cbw"))
    access = layer.add_node({"driver": "snapshot-access", "node-name": "sa", "file": "cbw", "discard": "unmap"})
    reader = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    reader.insert(access)
    return guest, reader


def test_what_was_there_is_read_after_writes(layer):
    guest, reader = _set_up(layer)
    guest.write(100, b"new")
    guest.write_zeroes(3 * CLUSTER, CLUSTER)
    guest.discard(5 * CLUSTER, CLUSTER)
    assert guest.read(99, 5) == layer.content[99:100] + b"new" + layer.content[103:104]
    assert reader.read(0, SIZE) == layer.content
    assert layer.find_node("copy").read(0, CLUSTER) == layer.content[:CLUSTER]


def test_zeroes_are_known_without_being_read(layer):
    guest, reader = _set_up(layer)
    guest.write(SIZE // 2, b"x")
    kinds = [extent.kind for extent in reader.node.map(0, SIZE)]
    assert kinds.count(1) >= 1 and sum(extent.length for extent in reader.node.map(0, SIZE)) == SIZE


def test_it_cannot_be_written(layer):
    _guest, reader = _set_up(layer)
    with pytest.raises(OSError) as error:
        reader.write(0, b"x")
    assert error.value.errno == errno.ENOTSUP


def test_a_discarded_part_is_neither_copied_nor_read(layer):
    guest, reader = _set_up(layer)
    reader.discard(CLUSTER, 2 * CLUSTER)
    guest.write(CLUSTER, b"x" * 100)
    assert layer.find_node("copy").read(CLUSTER, 100) == bytes(100)
    with pytest.raises(OSError) as error:
        reader.read(CLUSTER, 1)
    assert error.value.errno == errno.EACCES
    assert reader.read(0, CLUSTER) == layer.content[:CLUSTER]


def test_only_what_a_bitmap_has_can_be_read(layer):
    bitmap = DirtyBitmap(layer.find_node("disk"), "b", CLUSTER)
    bitmap.set(CLUSTER, 1)
    guest, reader = _set_up(layer, bitmap={"node": "disk", "name": "b"})
    guest.write(0, b"x" * CLUSTER * 3)
    assert reader.read(CLUSTER, CLUSTER) == layer.content[CLUSTER : 2 * CLUSTER]
    for offset in (0, 2 * CLUSTER):
        with pytest.raises(OSError):
            reader.read(offset, 1)


def test_it_stays_the_same_under_writes_at_the_same_time(layer):
    guest, reader = _set_up(layer)
    stop = threading.Event()
    failures = []

    def write(seed):
        chance = random.Random(seed)
        while not stop.is_set():
            offset = chance.randrange(SIZE - 4096)
            guest.write(offset, chance.randbytes(4096))

    writers = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    for each in writers:
        each.start()
    try:
        chance = random.Random(3)
        for _ in range(200):
            offset = chance.randrange(SIZE - 200_000)
            if reader.read(offset, 200_000) != layer.content[offset : offset + 200_000]:
                failures.append(offset)
    finally:
        stop.set()
        for each in writers:
            each.join()
    assert not failures


@pytest.mark.parametrize("gives_way", ["break-guest-write", "break-snapshot"])
def test_a_write_waits_only_so_long_for_its_copy(layer, monkeypatch, gives_way):
    guest, reader = _set_up(layer, **{"on-cbw-error": gives_way, "cbw-timeout": 1})
    once = layer.find_node("cbw").once
    once.timed = once.timed[0], 0.02
    may_end = threading.Event()
    copied = once.copier.copy

    def slowly(*args):
        may_end.wait(10)
        return copied(*args)

    monkeypatch.setattr(once.copier, "copy", slowly)
    for _ in range(2):  # at first its own copy takes too long, then the one that is under way
        try:
            guest.write(0, b"n" * CLUSTER)
        except OSError as error:
            assert error.errno == errno.ETIMEDOUT and gives_way == "break-guest-write"
        else:
            assert gives_way == "break-snapshot"
    may_end.set()
    with layer.drained():
        pass  # waits for the copy
    if gives_way == "break-snapshot":
        with pytest.raises(OSError, match="Permission denied"):
            reader.read(0, CLUSTER)
        assert guest.read(0, CLUSTER) == b"n" * CLUSTER
    else:
        guest.write(0, b"n" * CLUSTER)
        assert reader.read(0, CLUSTER) == layer.content[:CLUSTER]


def test_a_failure_of_a_timed_copy_is_that_of_the_write(layer, monkeypatch):
    guest, _reader = _set_up(layer, **{"cbw-timeout": 60})
    monkeypatch.setattr(layer.find_node("cbw").once.copier, "copy", _fail)
    with pytest.raises(OSError, match="No space left"):
        guest.write(0, b"n" * CLUSTER)


def _fail(*_args, **_kwargs):
    raise CopyFailed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False)

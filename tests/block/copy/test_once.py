"""What is left to be copied of a point in time, and what writes may change."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qobra.block.copy.chunk import ChunkCopier, CopyFailed
from qobra.block.copy.once import LARGE, OnceCopy
from qobra.block.layer import BlockLayer

CLUSTER = 65536
CLUSTERS = 32


@pytest.fixture
def once(tmp_path: Any) -> Any:
    layer = BlockLayer()
    size = CLUSTER * CLUSTERS
    for name in "ab":
        (tmp_path / name).write_bytes(bytes([ord(name)]) * size)
    source, target = (
        layer.add_node({"driver": "file", "node-name": name, "filename": str(tmp_path / name)}) for name in "ab"
    )
    copy = OnceCopy(source, ChunkCopier(source, target), CLUSTER)
    copy.todo.set_all()
    yield copy
    with layer.control:
        layer.close()


@pytest.mark.parametrize("seed", range(10))
def test_what_is_copied_may_be_written_and_the_rest_only_once_it_is_kept(once: OnceCopy, seed: int) -> None:
    rng = random.Random(seed)
    once.todo.clear(5 * CLUSTER, CLUSTER)
    once.begin(1 << 22)
    once.old.limit = 0
    unsafe = set(range(CLUSTERS)) - {5}
    claimed: list[tuple[int, int]] = []
    for _ in range(40):
        part = once.claim(rng.randrange(CLUSTERS) * CLUSTER, rng.randrange(1, 5) * CLUSTER)
        if part is not None:
            claimed.append(part)
        if claimed and rng.random() < 0.6:
            offset, length = claimed.pop(rng.randrange(len(claimed)))
            once.copy_claimed(offset, length)
            unsafe -= set(range(offset // CLUSTER, (offset + length) // CLUSTER))
        offset = rng.randrange(CLUSTER * CLUSTERS)
        length = rng.randrange(1, CLUSTER * CLUSTERS - offset + 1)
        touched = set(range(offset // CLUSTER, (offset + length - 1) // CLUSTER + 1))
        assert once.keep(offset, length) == (not touched & unsafe)
    once.old.limit = 1 << 22
    assert once.keep(0, LARGE)
    assert once.keep(CLUSTER, LARGE + CLUSTER) == (not unsafe & set(range(1, CLUSTERS // 2 + 2)) - set(range(16)))


def test_a_copy_that_fails_is_made_again_with_the_same_old_data(once: OnceCopy, monkeypatch: Any) -> None:
    once.begin(1 << 20)
    assert once.keep(100, 5000)
    once.source.write(100, b"new" * 1000)
    part = once.claim(0, CLUSTER)
    assert part == (0, CLUSTER)
    monkeypatch.setattr(once.copier.target, "_write", _fail)
    with pytest.raises(CopyFailed):
        once.copy_claimed(*part)
    monkeypatch.undo()
    assert once.old.used == 8192
    part = once.claim(0, CLUSTER)
    assert part is not None
    once.copy_claimed(*part)
    assert once.copier.target.read(0, CLUSTER) == b"a" * CLUSTER
    assert once.old.used == 0


def test_zeroes_that_were_written_over_are_copied_as_zeroes(once: OnceCopy) -> None:
    once.source.write_zeroes(0, 2 * CLUSTER, may_unmap=True)
    once.begin(1 << 20)
    assert once.keep(CLUSTER + 100, 5000)
    assert once.old.used == 0  # it is known to be zeroes
    once.source.write(CLUSTER + 100, b"new" * 1000)
    part = once.claim(CLUSTER, CLUSTER)
    assert part == (CLUSTER, CLUSTER)
    once.copy_claimed(*part)
    assert once.copier.target.read(CLUSTER, 2 * CLUSTER) == bytes(CLUSTER) + b"b" * CLUSTER


def test_the_old_data_is_read_as_it_was(once: OnceCopy) -> None:
    once.begin(1 << 20)
    assert once.keep(100, 5000)
    once.source.write(100, b"new" * 1000)
    view = memoryview(bytearray(20000))
    once.old_data(0, view)
    assert view == b"a" * 20000


def _fail(*_args: object) -> None:
    raise OSError(5, "Input/output error")

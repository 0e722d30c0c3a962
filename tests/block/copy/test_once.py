"""What is left to be copied of a point in time, and what is safe."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qobra.block.copy.chunk import ChunkCopier
from qobra.block.copy.once import OnceCopy
from qobra.block.layer import BlockLayer

CLUSTER = 65536
CLUSTERS = 32


@pytest.fixture
def once() -> Any:
    layer = BlockLayer()
    size = CLUSTER * CLUSTERS
    source, target = (
        layer.add_node({"driver": "null-co", "node-name": name, "size": size, "read-zeroes": True}) for name in "ab"
    )
    copy = OnceCopy(source, ChunkCopier(source, target), CLUSTER)
    copy.todo.set_all()
    yield copy
    with layer.control:
        layer.close()


@pytest.mark.parametrize("seed", range(20))
def test_parts_cover_the_range_and_tell_what_is_safe(once: OnceCopy, seed: int) -> None:
    rng = random.Random(seed)
    unsafe = set(range(CLUSTERS))
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
        position = offset
        for size, safe in once.parts(offset, length):
            assert size > 0
            for cluster in range(position // CLUSTER, (position + size - 1) // CLUSTER + 1):
                assert (cluster not in unsafe) == safe
            position += size
        assert position == offset + length

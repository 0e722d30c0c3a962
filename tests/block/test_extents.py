"""Where the bytes of a node live, and which node of its chain holds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qobra.block.creation._image import plan
from qobra.block.extents import ZERO, resolve
from qobra.block.layer import BlockLayer

CLUSTER = 65536


@pytest.fixture
def layer() -> Iterator[BlockLayer]:
    made = BlockLayer()
    yield made
    made.close()


@pytest.mark.parametrize("filters", [0, 1, 2])
def test_what_shows_its_file_as_it_is_does_not_change_who_holds_what(
    layer: BlockLayer, tmp_path: Path, filters: int
) -> None:
    below: object = None
    for name in ("base", "mid", "top"):
        plan(layer, str(tmp_path / name), "qcow2", size=4 * CLUSTER).run(layer)
        file = {"driver": "file", "filename": str(tmp_path / name)}
        node = layer.add_node({"driver": "qcow2", "node-name": name, "file": file, "backing": below})
        below = name
        for number in range(filters):
            below = layer.add_node({"driver": "raw", "node-name": f"{name}{number}", "file": below}).node_name
    layer.find_node("base").write(0, b"x" * CLUSTER)
    layer.find_node("mid").write(CLUSTER, b"x" * CLUSTER)
    node.write(2 * CLUSTER, b"x" * CLUSTER)
    runs = resolve(node, 0, 4 * CLUSTER)
    assert [run.depth for run in runs] == [2, 1, 0, -1]
    assert runs[-1].kind == ZERO

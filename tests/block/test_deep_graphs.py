"""Graphs of hundreds of nodes on one another, and those that an image's header makes endless."""

from __future__ import annotations

import struct

import pytest

from qobra.block import permissions, query
from qobra.block.extents import MAX_DEPTH
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


def _raws(depth):
    options = {"driver": "null-co", "size": 4096, "read-zeroes": True}
    for _ in range(depth):
        options = {"driver": "raw", "file": options}
    return {**options, "node-name": "top"}


def _image(path, backing):
    """An empty qcow2 image of 64 KiB in clusters of 512 bytes, with that backing file name."""
    name = backing.encode() if backing else b""
    extensions = struct.pack(">II8s", 0xE2792ACA, 5, b"qcow2") + bytes(8)
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        *(b"QFI\xfb", 3, 104 + len(extensions) if name else 0, len(name), 9, 65536, 0),
        *(2, 3 * 512, 512, 1, 0, 0, 0, 0, 0, 4, 104),
    )
    clusters = [header + extensions + name, struct.pack(">Q", 1024), struct.pack(">4H", 1, 1, 1, 1), b""]
    path.write_bytes(b"".join(cluster.ljust(512, b"\0") for cluster in clusters))


def _chain(directory, count):
    for number in range(count):
        _image(directory / f"{number}.qcow2", f"{number - 1}.qcow2" if number else None)
    return {
        "driver": "qcow2",
        "node-name": "top",
        "file": {"driver": "file", "filename": str(directory / f"{count - 1}.qcow2")},
    }


def test_nodes_lie_deep_on_one_another(layer):
    node = layer.add_node(_raws(MAX_DEPTH - 1))
    assert node.read(100, 10) == bytes(10)
    node.write(0, b"x")
    assert len(query.named_block_nodes(layer, flat=False)) == MAX_DEPTH
    assert node.filename.startswith('json:{"driver": "raw"') and len(node.filename) < 4096
    assert node.filename.endswith("...")
    layer.delete_node("top")
    assert not layer.graph.nodes


def test_deeper_is_refused_and_leaves_nothing(layer):
    with pytest.raises(QobraError, match=f"more than {MAX_DEPTH} deep"):
        layer.add_node(_raws(MAX_DEPTH))
    assert not layer.graph.nodes


@pytest.mark.parametrize("nodes_too_many", [0, 1])
def test_graphs_that_were_not_too_deep_may_be_on_one_another(layer, nodes_too_many):
    upper = layer.add_node(_raws(MAX_DEPTH // 2) | {"node-name": "upper"})
    lower = layer.add_node(_raws(MAX_DEPTH // 2 - 1 + nodes_too_many) | {"node-name": "lower"})
    bottom = upper
    while bottom.file.driver == "raw":
        bottom = bottom.file

    def join():
        with layer.graph.change() as change:
            change.attach(bottom, "file", lower, permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)

    if nodes_too_many:
        with pytest.raises(QobraError, match=f"Block graph under node 'upper' is deeper than {MAX_DEPTH} nodes"):
            join()
        assert bottom.file.driver == "null-co"
    else:
        join()
        assert bottom.file is lower
        assert upper.read(0, 512) == bytes(512)


def test_a_chain_of_hundreds_of_images_reads_and_is_told_of(layer, tmp_path):
    node = layer.add_node(_chain(tmp_path, 400))
    assert node.read(0, 512) == bytes(512)
    node.write(0, b"t" * 512)
    assert node.read(0, 513) == b"t" * 512 + b"\0"
    assert query.device_info(node)["backing_file_depth"] == 399
    info, images = query.image_chain(node, flat=False), 1
    while "backing-image" in info:
        info, images = info["backing-image"], images + 1
    assert images == 400
    stats, images = query.node_stats(node, chain=True), 1
    while "backing" in stats:
        stats, images = stats["backing"], images + 1
    assert images == 400


@pytest.mark.parametrize("names", [["a.qcow2"], ["a.qcow2", "b.qcow2"], ["a.qcow2", "b.qcow2", "c.qcow2"]])
def test_images_that_back_one_another_are_a_loop(layer, tmp_path, names):
    for number, name in enumerate(names):
        _image(tmp_path / name, names[(number + 1) % len(names)])
    with pytest.raises(QobraError, match="Backing file '..qcow2' creates an infinite loop"):
        layer.add_node(
            {
                "driver": "qcow2",
                "node-name": "top",
                "file": {"driver": "file", "filename": str(tmp_path / "a.qcow2"), "read-only": True},
                "read-only": True,
            }
        )
    assert not layer.graph.nodes

"""x-blockdev-change: children of a quorum come and go."""

from __future__ import annotations

import pytest

from qobra.block.change_children import add, remove
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError

SIZE = 1 << 16


@pytest.fixture
def layer():
    made = BlockLayer()
    for name in ("a", "b", "c"):
        made.add_node({"driver": "null-co", "node-name": name, "size": SIZE, "read-zeroes": True})
    yield made
    made.close()


def _quorum(layer, **options):
    return layer.add_node(
        {"driver": "quorum", "node-name": "q", "vote-threshold": 1, "children": ["a", "b"], **options}
    )


def _refused(text, function, *args):
    with pytest.raises(QobraError) as caught:
        function(*args)
    assert str(caught.value) == text


def test_children_come_and_go(layer):
    quorum = _quorum(layer)
    find = layer.find_node
    layer.add_node({"driver": "null-co", "node-name": "short", "size": 4096})
    add(layer, quorum, find("short"))
    assert list(quorum.children) == ["children.0", "children.1", "children.2"]
    assert quorum.length == 4096 and quorum.children["children.2"] is find("short")
    remove(layer, quorum, "children.2")
    assert quorum.length == SIZE and layer.graph.parents(find("short")) == []
    add(layer, quorum, find("c"))  # the number of one that went is not used again
    assert list(quorum.children) == ["children.0", "children.1", "children.3"]
    remove(layer, quorum, "children.0")
    remove(layer, quorum, "children.1")
    _refused("The number of children cannot be lower than the vote threshold 1", remove, layer, quorum, "children.3")
    assert list(quorum.children) == ["children.3"]


def test_refusals(layer):
    quorum = _quorum(layer)
    raw = layer.add_node({"driver": "raw", "node-name": "r", "file": "c"})
    above = layer.add_node({"driver": "raw", "node-name": "above", "file": "q"})
    _refused("The node c already has a parent", add, layer, quorum, layer.find_node("c"))
    _refused("Making 'above' a children.2 child of 'q' would create a cycle", add, layer, quorum, above)
    _refused("The node r does not support adding a child", add, layer, raw, layer.find_node("a"))
    _refused("Node 'q' does not have child 'children.9'", remove, layer, quorum, "children.9")
    _refused("The node r does not support removing a child", remove, layer, raw, "file")
    assert list(quorum.children) == ["children.0", "children.1"]


def test_two_that_are_compared_stay_two(layer):
    quorum = _quorum(layer, blkverify=True, **{"vote-threshold": 2})
    _refused("Cannot add a child to a quorum in blkverify mode", add, layer, quorum, layer.find_node("c"))

"""What concerns all nodes at once."""

from __future__ import annotations

from functools import partial

import pytest

from qobra.block.layer import BlockLayer


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


def test_flush_reaches_each_node_once(layer, monkeypatch):
    """A backing file is not its overlay's to flush; what is not active belongs to another."""
    flushed = []
    for name in ("file", "other", "gone"):
        layer.add_node({"driver": "null-co", "node-name": name, "size": 1 << 20})
    layer.add_node({"driver": "raw", "node-name": "format", "file": "file"})
    layer.add_node({"driver": "raw", "node-name": "reader", "file": "other", "read-only": True})
    for name in ("file", "other", "gone"):
        node = layer.find_node(name)
        monkeypatch.setattr(node, "_flush", partial(flushed.append, name))
    layer.find_node("gone").inactive = True
    layer.flush()
    assert sorted(flushed) == ["file", "other"]


def test_a_discard_is_no_write(layer):
    """It does not tell how far a node was written, but that its file has to be flushed."""
    layer.add_node({"driver": "null-co", "node-name": "n", "size": 1 << 20})
    node = layer.add_node({"driver": "raw", "node-name": "r", "file": "n", "discard": "unmap"})
    node.discard(65536, 512)
    assert node.highest_write() == 0 and node.written_around
    node.write(512, bytes(512))
    assert node.highest_write() == 1024


def test_limits_do_not_hold_up_a_flush(layer, monkeypatch):
    """Who writes may wait for them, and have the lock of an image whose metadata are to be written."""
    node = layer.add_node({"driver": "null-co", "node-name": "n"})
    let_go = []
    monkeypatch.setattr(node, "_flush", lambda: let_go.append(layer.flight.words.draining))
    layer.flush()
    assert let_go == [1]

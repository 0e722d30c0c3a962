"""block-set-write-threshold: the event comes once, and only of writes past the offset."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.block.write_threshold import set_write_threshold
from qobra.errors import QobraError

OFFSET = 4096


@pytest.fixture
def layer():
    made = BlockLayer()
    made.add_node({"driver": "null-co", "node-name": "disk", "size": 1 << 20})
    yield made
    made.close()


@pytest.fixture
def events(layer, monkeypatch):
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(layer, "emit_from_request", lambda name, data: found.append((name, data)))
    return found


@pytest.fixture
def backend(layer):
    made = BlockBackend(layer, "d", perm=permissions.CONSISTENT_READ | permissions.WRITE)
    made.insert(layer.find_node("disk"))
    yield made
    made.remove()


def test_a_write_past_it_is_told_of_once(layer, backend, events):
    node = layer.find_node("disk")
    set_write_threshold(node, OFFSET)
    assert node.write_threshold == OFFSET
    backend.write(0, bytes(OFFSET))
    assert not events
    backend.write(OFFSET - 512, bytes(1024))
    assert events == [
        ("BLOCK_WRITE_THRESHOLD", {"node-name": "disk", "amount-exceeded": 512, "write-threshold": OFFSET})
    ]
    assert node.write_threshold == 0
    backend.write(OFFSET, bytes(512))
    assert len(events) == 1
    set_write_threshold(node, OFFSET)
    backend.write_zeroes(OFFSET * 2, 512)
    assert events[1:] == [
        ("BLOCK_WRITE_THRESHOLD", {"node-name": "disk", "amount-exceeded": OFFSET + 512, "write-threshold": OFFSET})
    ]


def test_a_new_one_takes_the_place_of_the_old(layer, backend, events):
    node = layer.find_node("disk")
    for threshold in (OFFSET, 3 * OFFSET, 2 * OFFSET):
        set_write_threshold(node, threshold)
    assert len(node.trackers) == 1
    backend.write(OFFSET, bytes(512))
    assert not events
    backend.write(4 * OFFSET, bytes(512))
    assert [data["write-threshold"] for _name, data in events] == [2 * OFFSET]


def test_none_ends_it(layer, backend, events):
    node = layer.find_node("disk")
    set_write_threshold(node, OFFSET)
    set_write_threshold(node, 0)
    assert node.write_threshold == 0
    assert not node.trackers
    backend.write(OFFSET, bytes(512))
    assert not events


def test_a_negative_one_changes_nothing(layer):
    node = layer.find_node("disk")
    set_write_threshold(node, OFFSET)
    with pytest.raises(QobraError, match="Parameter 'write-threshold' expects a non-negative value"):
        set_write_threshold(node, -1)
    assert node.write_threshold == OFFSET

"""The graph: opening, permissions, transactions, resolving, draining."""

from __future__ import annotations

import threading

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.extents import DATA, ZERO, resolve
from qobra.block.layer import BlockLayer
from qobra.block.query import block_graph
from qobra.errors import QobraError


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


def _raw(layer, path, name="disk", **options):
    return layer.add_node(
        {"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": str(path)}, **options}
    )


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
        file.seek(65536)
        file.write(b"x" * 65536)
    return path


def test_read_and_write_go_through_raw_to_the_file(layer, image):
    node = _raw(layer, image)
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(node)
    assert backend.read(65530, 12) == bytes(6) + b"x" * 6
    backend.write(1000, b"hello")
    assert image.read_bytes()[1000:1005] == b"hello"
    backend.remove()


def test_resolve_finds_holes_only_when_asked(layer, image):
    node = _raw(layer, image)
    assert [(run.start, run.length, run.kind) for run in resolve(node, 0, 1 << 20)] == [(0, 1 << 20, DATA)]
    assert [(run.start, run.length, run.kind) for run in resolve(node, 0, 1 << 20, want_zero=True)] == [
        (0, 65536, ZERO),
        (65536, 65536, DATA),
        (131072, (1 << 20) - 131072, ZERO),
    ]


def test_table_of_a_window_is_linear(layer, image):
    node = _raw(layer, image, offset=4096, size=65536)
    backend = BlockBackend(layer)
    backend.insert(node)
    assert backend.table().linear == (node.file.fd, 4096, node.file.folios)
    backend.remove()


def test_conflicting_permissions_name_both_users_and_change_nothing(layer, image):
    node = _raw(layer, image)
    writer = BlockBackend(layer, "a", perm=permissions.WRITE)
    writer.insert(node)
    jealous = BlockBackend(layer, "b", shared=permissions.ALL & ~permissions.WRITE)
    with pytest.raises(QobraError) as error:
        jealous.insert(node)
    assert "block device 'a'" in str(error.value) and "block device 'b'" in str(error.value)
    assert jealous.node is None and layer.graph.roots_of(node) == [writer]
    writer.remove()


def test_two_writers_of_one_file_are_kept_apart_by_locks(layer, image):
    node = _raw(layer, image)
    # raw passes its users' wishes on, so a format's exclusive use is asked for by hand
    backend = BlockBackend(layer, perm=permissions.WRITE, shared=permissions.CONSISTENT_READ)
    backend.insert(node)
    other = BlockLayer()
    twin = _raw(other, image)
    rival = BlockBackend(other, perm=permissions.WRITE)
    with pytest.raises(QobraError, match='Failed to get "write" lock'):
        rival.insert(twin)
    backend.remove()
    rival.insert(twin)
    rival.remove()
    other.close()


def test_a_failed_open_leaves_nothing(layer, tmp_path):
    with pytest.raises(QobraError, match="No such file or directory"):
        _raw(layer, tmp_path / "absent")
    assert layer.graph.nodes == {}


def test_node_names(layer, image):
    _raw(layer, image)
    with pytest.raises(QobraError, match="Duplicate nodes with node-name='disk'"):
        _raw(layer, image)
    with pytest.raises(QobraError, match="Invalid node-name: '1x'"):
        _raw(layer, image, name="1x")


def test_deleting_closes_what_nobody_uses(layer, image):
    node = _raw(layer, image)
    file = node.file
    layer.delete_node("disk")
    assert file.fd == -1 and layer.graph.nodes == {}
    with pytest.raises(QobraError, match="Failed to find node with node-name='disk'"):
        layer.delete_node("disk")


def test_a_cycle_is_refused(layer, image):
    lower = _raw(layer, image, "lower")
    upper = layer.add_node({"driver": "raw", "node-name": "upper", "file": "lower"})
    with pytest.raises(QobraError, match="cycle"), layer.graph.change() as change:
        change.attach(lower, "file", upper, permissions.ROLE_FILTERED)
    assert lower.file.driver == "file"


def test_drain_waits_for_requests_and_stops_new_ones(layer, image):
    node = _raw(layer, image)
    backend = BlockBackend(layer)
    backend.insert(node)
    slot = backend.new_slot()
    slot.enter()
    drained = threading.Event()
    release = threading.Event()

    def drain() -> None:
        with layer.drained():
            drained.set()
            release.wait(10)

    thread = threading.Thread(target=drain)
    thread.start()
    assert not drained.wait(0.02)
    slot.leave()
    assert drained.wait(10)
    entered = threading.Event()
    late = threading.Thread(target=lambda: (slot.enter(), entered.set(), slot.leave()))
    late.start()
    assert not entered.wait(0.02)
    release.set()
    assert entered.wait(10)
    thread.join()
    late.join()
    slot.close()
    backend.remove()


def test_retired_space_comes_back_only_after_older_requests(layer, image):
    node = _raw(layer, image)
    backend = BlockBackend(layer)
    backend.insert(node)
    slot = backend.new_slot()
    released = []
    slot.enter()
    layer.flight.retire(lambda: released.append("a"))
    assert released == []
    slot.leave()
    slot.enter()
    layer.flight.reclaim()
    assert released == ["a"]
    slot.leave()
    slot.close()
    backend.remove()


def test_the_graph_is_told_with_the_latest_first(layer):
    for name in ("left", "right"):
        layer.add_node({"driver": "null-co", "node-name": name})
    layer.add_node({"driver": "quorum", "node-name": "both", "vote-threshold": 1, "children": ["left", "right"]})
    layer.add_node({"driver": "raw", "node-name": "top", "file": "both"})
    backend = BlockBackend(layer, "")
    backend.insert(layer.find_node("left"))
    graph = block_graph(layer)
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    assert list(names.values()) == ["top", "both", "right", "left", ""]
    edges = [(names[edge["parent"]], edge["name"], names[edge["child"]]) for edge in graph["edges"]]
    assert edges == [
        ("top", "file", "both"),
        ("both", "children.0", "left"),
        ("both", "children.1", "right"),
        ("", "root", "left"),
    ]
    backend.remove()

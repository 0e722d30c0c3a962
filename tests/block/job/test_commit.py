"""Commit of the active image and of intermediate ones, under writes; names, refusals, errors."""

from __future__ import annotations

import random

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.copy.follow import PIECE, can_follow
from qobra.block.job.commit import start_commit
from qobra.errors import QobraError

MIB = 1 << 20


def commit(layer, device="top", **args):
    with layer.control, layer.drained():
        job = start_commit(layer.jobs, {"job-id": "c", "device": device, **args})
        job.start()
    return job


def test_an_intermediate_commit(layer, tree, tmp_path, chain_names):
    rng = random.Random(1)
    commit(layer, "drive", **{"top-node": "mid", "base-node": "base"})
    tree.random_requests(rng, 40)
    layer.wait_status("c", "null")
    assert chain_names(tree.node) == ["top", "base"]
    tree.random_requests(rng, 20)
    tree.check()
    assert layer.graph.find("top").backing_filename == str(tmp_path / "base")
    assert layer.wait_event("BLOCK_JOB_COMPLETED") == {
        "type": "commit", "device": "c", "len": MIB, "offset": MIB, "speed": 0,
    }  # fmt: skip
    assert layer.story() == [
        "created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null",
    ]  # fmt: skip


def test_what_is_committed_is_on_the_disk_before_the_overlay_names_another_base(layer, tree, monkeypatch):
    done = []
    for node_name, call in (("base", "flush"), ("top", "change_backing_file")):
        node = layer.graph.find(node_name)
        usual = getattr(node, call)

        def noted(*args, usual=usual, call=call):
            done.append(call)
            usual(*args)

        monkeypatch.setattr(node, call, noted)
    commit(layer, "drive", **{"top-node": "mid", "base-node": "base"})
    layer.wait_status("c", "null")
    assert done[done.index("change_backing_file") - 1] == "flush"


def test_the_recorded_name_may_be_another(layer, tree):
    commit(layer, "drive", top="mid", **{"base-node": "base", "backing-file": "elsewhere"})
    layer.wait_status("c", "null")
    assert layer.graph.find("top").backing_filename == "elsewhere"


def test_the_recorded_name_is_seen_from_the_directory_of_the_image(layer, relative_chain):
    commit(layer, **{"top-node": "mid", "base-node": "base"})
    layer.wait_status("c", "null")
    relative_chain()


@pytest.mark.parametrize("base", ["mid", "base"])
def test_an_active_commit(layer, tree, base, chain_names):
    rng = random.Random(1)
    job = commit(layer, "drive", speed=4 * MIB, **{"base-node": base})
    tree.random_requests(rng, 40)
    with layer.control:
        job.set_speed(0)
    layer.wait_event("BLOCK_JOB_READY")
    tree.random_requests(rng, 20)
    with layer.control:
        job.complete()
    layer.wait_status("c", "null")
    assert chain_names(tree.node) == ["mid", "base"][["mid", "base"].index(base) :]
    tree.random_requests(rng, 20)
    tree.check()
    assert layer.statuses("c") == ["created", "running", "ready", "waiting", "pending", "concluded", "null"]
    assert layer.wait_event("BLOCK_JOB_READY")["type"] == "commit"


def test_an_active_commit_follows_a_guest_by_small_pieces(layer, tree, monkeypatch):
    monkeypatch.setattr("qobra.block.job.commit.default_granularity", lambda _node: 65536)
    job = commit(layer, "drive")
    assert job._dirty.granularity == (PIECE if can_follow() else 65536)
    layer.wait_event("BLOCK_JOB_READY")
    with layer.control:
        job.complete()
    layer.wait_status("c", "null")


def test_a_cancelled_active_commit_leaves_the_chain(layer, tree, chain_names):
    job = commit(layer, "drive")
    layer.wait_event("BLOCK_JOB_READY")
    with layer.control:
        job.user_cancel(True)
    layer.wait_status("c", "null")
    assert chain_names(tree.node) == ["top", "mid", "base"]
    tree.check()


@pytest.mark.parametrize("active", [False, True])
def test_a_read_only_base_is_made_writable_for_the_time(layer, qcow2, make_guest, tmp_path, active):
    for name, backing in (("base", None), ("mid", "base"), ("top", "mid")):
        writer = make_guest(qcow2(name, backing), "writer")
        writer.fill(len(name))
        layer.backends.pop("writer").remove()
    for name in ("top", "mid", "base"):
        layer.delete_node(name)
    file = {"driver": "file", "filename": str(tmp_path / "top")}
    guest = make_guest(layer.add_node({"driver": "qcow2", "node-name": "top", "file": file}))
    base = guest.node.backing.backing
    assert base.read_only
    mid = guest.node.backing.node_name
    job = commit(layer, "drive", **({} if active else {"top-node": mid}))
    if active:
        layer.wait_event("BLOCK_JOB_READY")
        assert not base.read_only
        with layer.control:
            job.complete()
    layer.wait_status("c", "null")
    assert base.read_only == (not active)
    guest.check()
    guest.write(0, b"still writable")


def test_an_error_stops_and_goes_on(layer, tree, fail):
    base = layer.graph.find("base")
    fail(base, "_write", 1)
    job = commit(layer, "drive", **{"top-node": "mid", "on-error": "stop"})
    layer.wait_status("c", "paused")
    assert job.block_info()["io-status"] == "failed"
    with layer.control:
        job.user_resume()
    layer.wait_status("c", "null")
    assert "error" not in layer.wait_event("BLOCK_JOB_COMPLETED")
    tree.check()


def test_an_error_is_reported_and_the_chain_stays(layer, tree, fail, chain_names):
    fail(layer.graph.find("base"), "_write", 1)
    commit(layer, "drive", **{"top-node": "mid"})
    layer.wait_status("c", "null")
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"
    assert chain_names(tree.node) == ["top", "mid", "base"]
    tree.check()


REFUSALS = [
    ({"device": "x"}, "Device 'x' not found"),
    ({"base": "nosuch"}, "Can't find 'nosuch' in the backing chain"),
    ({"base-node": "nosuch"}, "Cannot find device='' nor node-name='nosuch'"),
    ({"base-node": "other"}, "'other' is not in this backing file chain"),
    ({"top": "nosuch"}, "Top image file nosuch not found"),
    ({"top-node": "other"}, "'other' is not in this backing file chain"),
    ({"top": "a", "top-node": "b"}, "'top-node' and 'top' are mutually exclusive"),
    ({"base": "a", "base-node": "b"}, "'base-node' and 'base' are mutually exclusive"),
    ({"top-node": "base"}, "cannot commit an image into itself"),
    ({"backing-file": "x"}, "'backing-file' specified, but 'top' is the active layer"),
    ({"top-node": "mid", "speed": -1}, "Parameter 'speed' expects a non-negative value"),
    ({"device": "mid"}, "Need a root block node"),
]


@pytest.mark.parametrize(("args", "text"), REFUSALS, ids=[text for _args, text in REFUSALS])
def test_refusals_leave_nothing(layer, tree, raw, args, text):
    raw("other")
    before = dict(layer.graph.nodes), layer.graph.state.roots.keys()
    with pytest.raises(QobraError) as error:
        commit(layer, **{"device": "drive", **args})
    assert str(error.value) == text
    assert (layer.graph.nodes, layer.graph.state.roots.keys()) == before


def test_a_filter_right_on_the_base_may_be_read_meanwhile(layer, tree, qcow2, raw):
    with layer.control:
        base = layer.graph.find("base")
        layer.add_node({"driver": "compress", "node-name": "f", "file": "base"})
        with layer.graph.change() as change:
            change.attach(layer.graph.find("mid"), "backing", layer.graph.find("f"), permissions.ROLE_COW)
    commit(layer, "drive", **{"top-node": "mid", "base-node": "base"})
    layer.wait_status("c", "null")
    assert tree.node.backing is base
    tree.check()


def test_what_lies_behind_the_end_of_a_short_image_does_not_show_through(layer, qcow2):
    base = qcow2("base")
    writer = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    writer.insert(base)
    writer.write(0, b"b" * MIB)
    writer.remove()
    qcow2("mid", "base", size=MIB // 2)
    qcow2("top", "mid")
    commit(layer, "top", **{"base-node": "base"})
    layer.wait_event("BLOCK_JOB_READY")
    with layer.control:
        layer.jobs.find("c").complete()
    layer.wait_status("c", "null")
    assert base.read(0, MIB) == b"b" * (MIB // 2) + bytes(MIB // 2)


def test_a_node_that_a_commit_is_busy_with_says_so(layer, tree):
    job = commit(layer, "drive")
    layer.wait_event("BLOCK_JOB_READY")
    with layer.control:
        with pytest.raises(QobraError, match="Node 'mid' is busy: block device is in use by block job: commit"):
            layer.delete_node("mid")
        job.user_cancel(True)
    layer.wait_status("c", "null")
    with pytest.raises(QobraError, match="Node 'mid' is busy: node is used as backing hd of 'top'"):
        layer.delete_node("mid")

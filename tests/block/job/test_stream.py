"""Stream: all of the chain or a part of it, under writes; what the image records; errors and refusals."""

from __future__ import annotations

import itertools
import random
import threading

import pytest

from qobra.block.bitmap import DirtyBitmap
from qobra.block.copy.pool import CopyPool
from qobra.block.copy.writeback import Writeback
from qobra.block.extents import resolve
from qobra.block.job.stream import SHARE, start_stream
from qobra.block.reopen import reopen
from qobra.block.slots import Flight
from qobra.errors import QobraError
from qobra.testing.waiting import wait_until

MIB = 1 << 20


def stream(layer, device="drive", **args):
    with layer.control, layer.drained():
        job = start_stream(layer.jobs, {"job-id": "s", "device": device, **args})
        job.start()
    return job


@pytest.mark.parametrize("seed", range(3))
def test_streaming_all_leaves_no_backing_file(layer, tree, seed, chain_names):
    rng = random.Random(seed)
    bitmap = DirtyBitmap(tree.node, "b", 4096)
    job = stream(layer, speed=MIB)
    assert tree.node.driver == "copy-on-read" and tree.node.implicit
    tree.random_requests(rng, 60)
    with layer.control:
        job.set_speed(0)
    layer.wait_status("s", "null")
    assert chain_names(tree.node) == ["top"]
    assert tree.node.backing_filename == ""
    tree.random_requests(rng, 20)
    tree.check()
    assert bitmap.count() < MIB
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["len"] == MIB


def test_the_recorded_name_is_seen_from_the_directory_of_the_image(layer, relative_chain):
    stream(layer, "top", **{"base-node": "base"})
    layer.wait_status("s", "null")
    relative_chain()


def test_what_is_streamed_is_not_dirty(layer, tree):
    bitmap = DirtyBitmap(tree.node, "b", 4096)
    stream(layer)
    layer.wait_status("s", "null")
    assert bitmap.count() == 0


@pytest.mark.parametrize("how", [{"base-node": "base"}, {"bottom": "mid"}, {"base": "base"}])
def test_streaming_a_part(layer, tree, tmp_path, how, chain_names):
    if "base" in how:
        how = {"base": str(tmp_path / "base")}
    stream(layer, **how)
    layer.wait_status("s", "null")
    assert chain_names(tree.node) == ["top", "base"]
    assert tree.node.backing_filename == str(tmp_path / "base")
    tree.check()


def test_the_recorded_name_may_be_another(layer, tree):
    stream(layer, **{"base-node": "base", "backing-file": "elsewhere"})
    layer.wait_status("s", "null")
    assert tree.node.backing_filename == "elsewhere"


def test_an_ignored_error_keeps_the_backing_file(layer, tree, fail, chain_names):
    fail(tree.node.file, "_write", 1)
    stream(layer, **{"on-error": "ignore"})
    layer.wait_status("s", "null")
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"
    assert chain_names(tree.node) == ["top", "mid", "base"]
    tree.check()


def test_an_error_stops_and_goes_on(layer, tree, fail, chain_names):
    fail(tree.node.file, "_write", 1)
    job = stream(layer, **{"on-error": "stop"})
    layer.wait_status("s", "paused")
    with layer.control:
        job.user_resume()
    layer.wait_status("s", "null")
    assert chain_names(tree.node) == ["top"]
    tree.check()


@pytest.mark.parametrize("beside_a_guest", [False, True])
def test_the_disk_is_not_told_to_write_what_a_guest_is_writing(layer, tree, monkeypatch, beside_a_guest):
    noted = []
    monkeypatch.setattr(Writeback, "note", lambda self, length: noted.append(length))
    served = itertools.count()
    if beside_a_guest:
        monkeypatch.setattr(Flight, "served", property(lambda self: next(served)))
    stream(layer)
    layer.wait_status("s", "null")
    assert bool(noted) != beside_a_guest
    tree.check()


def test_a_pause_while_the_last_part_is_copied_keeps_the_job(layer, qcow2, make_guest, monkeypatch):
    make_guest(qcow2("base"), "writer").fill()
    layer.backends.pop("writer").remove()
    guest = make_guest(qcow2("top", "base"))
    go, waits = threading.Event(), threading.Event()
    run, wait_idle = CopyPool._run, CopyPool.wait_idle
    monkeypatch.setattr(CopyPool, "_run", lambda *args: go.wait(30) and run(*args))
    monkeypatch.setattr(CopyPool, "wait_idle", lambda pool: waits.set() or wait_idle(pool))
    job = stream(layer)
    assert waits.wait(30)
    with layer.control:
        job.user_pause()
    go.set()
    wait_until(lambda: job.status != "running")
    assert job.status == "paused"
    with layer.control:
        job.user_resume()
    layer.wait_status("s", "null")
    guest.check()


def test_cancelling_leaves_the_chain(layer, tree, chain_names):
    job = stream(layer, speed=1)
    with layer.control:
        job.user_cancel(False)
    layer.wait_status("s", "null")
    assert chain_names(tree.node) == ["top", "mid", "base"]
    tree.check()


REFUSALS = [
    ({"device": "x"}, "Cannot find device='x' nor node-name='x'"),
    ({"base": "nosuch"}, "Can't find 'nosuch' in the backing chain"),
    ({"base-node": "top"}, "Node 'top' is not a backing image of 'drive'"),
    ({"base-node": "other"}, "Node 'other' is not a backing image of 'drive'"),
    ({"bottom": "other"}, "Node 'other' is not in a chain starting from 'drive'"),
    ({"base": "a", "base-node": "b"}, "'base' and 'base-node' cannot be specified at the same time"),
    ({"base": "a", "bottom": "b"}, "'base' and 'bottom' cannot be specified at the same time"),
    ({"base-node": "a", "bottom": "b"}, "'bottom' and 'base-node' cannot be specified at the same time"),
    ({"backing-file": "x"}, "backing file specified, but streaming the entire chain"),
    ({"backing-file": "x", "bottom": "base"}, "backing file specified, but streaming the entire chain"),
    ({"backing-file": "x", "bottom": "mid"}, "backing file specified, but streaming the entire chain"),
    ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
]


@pytest.mark.parametrize(("args", "text"), REFUSALS, ids=[text for _args, text in REFUSALS])
def test_refusals_leave_nothing(layer, tree, raw, args, text):
    raw("other")
    before = dict(layer.graph.nodes), layer.graph.state.roots.keys()
    with pytest.raises(QobraError) as error:
        stream(layer, **args)
    assert str(error.value) == text
    assert (layer.graph.nodes, layer.graph.state.roots.keys()) == before


def test_a_filter_is_nothing_to_copy_from(layer, qcow2, tmp_path):
    qcow2("base")
    layer.add_node({"driver": "copy-on-read", "node-name": "filter", "file": "base"})
    (tmp_path / "filter").touch()
    qcow2("top", "filter")
    stream(layer, "top", **{"base-node": "base"})
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["len"] == 0


def test_links_of_a_job_are_frozen(layer, qcow2):
    names = ("base", "mid", "top")
    for name, backing in zip(names, (None, "base", "mid"), strict=True):
        qcow2(name, backing)
    job = stream(layer, "top", **{"base-node": "base", "auto-finalize": False})
    layer.wait_status("s", "pending")
    files = {name: layer.graph.find(name).file.node_name for name in names}
    with layer.control:
        with pytest.raises(QobraError, match="Cannot change frozen 'backing' link from 'top' to 'mid'"):
            reopen(layer, [{"driver": "qcow2", "node-name": "top", "file": files["top"], "backing": None}])
        reopen(layer, [{"driver": "qcow2", "node-name": "mid", "file": files["mid"], "backing": None}])
        job.finalize()
    layer.wait_status("s", "null")
    top = layer.graph.find("top")
    assert top.backing is None and not layer.graph.frozen.holds(top, "backing")


def test_an_image_that_only_its_stream_still_has_is_finished(layer, tmp_path, qcow2):
    options = None
    for name, backing in (("base", None), ("mid", "base"), ("top", "mid")):
        qcow2(name, backing)
    for name in ("top", "mid", "base"):
        layer.delete_node(name)
    for name in ("base", "mid", "top"):
        file = {"driver": "file", "node-name": f"{name}-file", "filename": str(tmp_path / name)}
        options = {"driver": "qcow2", "node-name": name, "file": file, "backing": options}
    layer.add_node(options)
    job = stream(layer, "mid", **{"filter-node-name": "filter", "auto-finalize": False})
    layer.wait_status("s", "pending")
    with layer.control:
        reopen(layer, [{"driver": "qcow2", "node-name": "top", "file": "top-file", "backing": None}])
        job.finalize()
    layer.wait_status("s", "null")
    assert "error" not in layer.wait_event("BLOCK_JOB_COMPLETED")
    assert layer.graph.find("mid") is None
    options["backing"]["node-name"] = "again"
    del options["backing"]["backing"], options["backing"]["file"]["node-name"]
    assert layer.add_node(options["backing"]).backing_filename == ""


def test_a_stream_does_not_rely_on_the_filter_of_a_commit(layer, tree, qcow2, make_guest, chain_names):
    from qobra.block.job.commit import start_commit

    layer.backends.pop("drive").remove()
    over = make_guest(qcow2("over", "top"), "over")
    with layer.control, layer.drained():
        args = {"job-id": "c", "device": "over", "top-node": "mid", "base-node": "base", "speed": 1}
        commit = start_commit(layer.jobs, {**args, "filter-node-name": "filter"})
        commit.start()
    with pytest.raises(QobraError, match="Cannot freeze 'backing' link to 'filter'"):
        stream(layer, "top", **{"base-node": "mid"})
    # What the filter lies on is no concern of a stream that ends above it.
    stream(layer, "top", **{"base-node": "filter"})
    layer.wait_status("s", "null")
    with layer.control:
        commit.user_cancel(True)
    layer.wait_status("c", "null")
    assert chain_names(over.node) == ["over", "top", "mid", "base"]


def test_streams_side_by_side_in_a_chain_that_was_opened_with_all_its_names(layer, qcow2, make_guest, tmp_path):
    for name, backing in (("a", None), ("b", "a"), ("c", "b"), ("d", "c"), ("e", "d")):
        make_guest(qcow2(name, backing), "writer").fill()
        layer.backends.pop("writer").remove()
    for name in "edcba":
        layer.delete_node(name)
    options = None
    for name in "abcde":
        file = {"driver": "file", "filename": str(tmp_path / name)}
        options = {"driver": "qcow2", "node-name": name, "file": file, "backing": options}
    make_guest(layer.add_node(options))
    jobs = []
    for number, (device, bottom) in enumerate(("cb", "ed")):
        jobs.append(stream(layer, device, speed=1, bottom=bottom, **{"job-id": f"s{number}"}))
    with layer.control:
        for job in jobs:
            job.user_cancel(True)
    layer.wait_status("s0", "null")
    assert layer.graph.find("c").read_only


def test_what_the_image_holds_is_written_past_the_nodes_beside_a_stream(layer, tree):
    tree.write(0, b"held" * 1024)  # a whole cluster
    clusters = range(0, MIB, 4096)
    top = tree.node
    own = {start for start in clusters if resolve(top, start, 4096)[0].depth == 0}
    job = stream(layer, speed=1)
    wait_until(lambda: job.pace.share == SHARE)
    with tree.backend.slot():
        table = tree.backend.table()
        table.fill(0, MIB)
        page = table.pages[0]
    direct = {start for start in clusters if page[start // 4096] > 1 and page[start // 4096] & 1}
    assert table.writable
    assert 0 in direct and direct <= own
    with layer.control:
        job.set_speed(0)
    layer.wait_status("s", "null")
    tree.check()


@pytest.mark.parametrize("finish", ["finalize", "cancel"])
def test_a_read_only_image_that_others_write_to_meanwhile_stays_writable(layer, finish):
    node = layer.add_node({"driver": "null-co", "node-name": "n", "read-only": True, "size": MIB})
    job = stream(layer, "n", **{"auto-finalize": False})
    layer.wait_status("s", "pending")
    with layer.control:
        filter_options = {"driver": "blkdebug", "node-name": "other", "image": "n"}
        layer.add_node({**filter_options, "take-child-perms": ["write-unchanged"]})
        job.finalize() if finish == "finalize" else job.user_cancel(False)
    layer.wait_status("s", "null")
    assert not node.read_only

"""Jobs over nodes that fail as blkdebug says: each policy, on each side, for each kind of job."""

from __future__ import annotations

import random

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.creation._image import plan
from qobra.block.job.chain import root_node
from qobra.block.job.commit import start_commit
from qobra.block.job.start_backup import start_backup
from qobra.block.job.start_mirror import mirror_plan, start_mirror
from qobra.block.job.stream import start_stream
from qobra.testing.jobs import RecordingLayer

MIB = 1 << 20


@pytest.fixture
def layer():
    made = RecordingLayer()
    yield made
    made.close()


@pytest.fixture
def node(layer, tmp_path):
    """``node(name, iotype)``: a qcow2 node whose file fails one request of that type once it is armed."""

    def make(name, iotype=None, backing=None, number=5):
        path = str(tmp_path / name)
        plan(layer, path, "qcow2", [("cluster_size", "4096")], size=MIB).run(layer)
        file = {"driver": "file", "filename": path}
        if iotype is not None:
            rule = {"event": "l1_shrink_free_l2_clusters", "iotype": iotype, "errno": number, "once": True}
            file = {"driver": "blkdebug", "image": file, "inject-error": [rule]}
        return layer.add_node({"driver": "qcow2", "node-name": name, "file": file, "backing": backing})

    return make


def fill(layer, name, seed=1):
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(layer.graph.find(name))
    backend.write(0, random.Random(seed).randbytes(MIB // 2))
    backend.remove()


def arm(layer, name):
    # An event that these tests do not cause otherwise.
    layer.graph.find(name).file.debug_event("l1_shrink_free_l2_clusters")


def start(layer, kind, policy):
    with layer.control, layer.drained():
        common = {"job-id": "j", "device": "source", "sync": "full", "auto-dismiss": False}
        both = {"on-source-error": policy, "on-target-error": policy}
        target = layer.graph.find("target")
        if kind == "backup":
            job = start_backup(layer.jobs, layer.graph.find("source"), target, {**common, **both})
        elif kind == "mirror":
            args = {**common, **both}
            source = root_node(layer, "source")
            job = start_mirror(layer.jobs, source, target, mirror_plan(layer, source, target, args), args)
        elif kind == "commit":
            job = start_commit(layer.jobs, {**common, "on-error": policy})
        else:
            job = start_stream(layer.jobs, {**common, "on-error": policy})
        job.start()
    if kind == "backup":
        with layer.control:
            job.drain_over()
    return job


def finish(layer, job, kind):
    if kind in ("mirror", "commit"):
        layer.wait_event("BLOCK_JOB_READY")
        with layer.control:
            job.complete()
    layer.wait_status("j", "concluded")


# (kind of job, the node that fails, the type of request)
CASES = [
    ("backup", "source", "read"),
    ("backup", "target", "write"),
    ("mirror", "source", "read"),
    ("mirror", "target", "write"),
    ("commit", "target", "write"),
    ("stream", "target", "read"),
]


def stage(layer, node, kind, failing, side, number=5):
    node("target", side if failing == "target" else None, number=number)
    chained = kind in ("commit", "stream")
    node("source", side if failing == "source" else None, "target" if chained else None, number=number)
    fill(layer, "target" if kind == "stream" else "source")


@pytest.mark.parametrize(("kind", "failing", "side"), CASES)
def test_report(layer, node, kind, failing, side):
    stage(layer, node, kind, failing, side)
    arm(layer, failing)
    start(layer, kind, "report")
    layer.wait_status("j", "concluded")
    assert layer.wait_event("BLOCK_JOB_ERROR") == {"device": "j", "operation": side, "action": "report"}
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"


@pytest.mark.parametrize(("kind", "failing", "side"), CASES)
@pytest.mark.parametrize("policy", ["stop", "enospc"])
def test_stop_and_resume(layer, node, kind, failing, side, policy):
    stage(layer, node, kind, failing, side, number=28)
    arm(layer, failing)
    job = start(layer, kind, policy)
    layer.wait_event("BLOCK_JOB_ERROR", action="stop", operation=side)
    layer.wait_status("j", "paused")
    assert job.block_info()["io-status"] == "nospace"
    with layer.control:
        job.user_resume()
    finish(layer, job, kind)
    assert job.error is None and job.block_info()["io-status"] == "ok"
    expected = random.Random(1).randbytes(MIB // 2)
    shown = "source" if kind == "stream" else "target"
    assert layer.graph.find(shown).read(0, MIB // 2) == expected


@pytest.mark.parametrize(("kind", "failing", "side"), [case for case in CASES if case[0] != "stream"])
def test_ignore_tries_again(layer, node, kind, failing, side):
    stage(layer, node, kind, failing, side)
    arm(layer, failing)
    job = start(layer, kind, "ignore")
    finish(layer, job, kind)
    assert job.error is None
    assert layer.wait_event("BLOCK_JOB_ERROR") == {"device": "j", "operation": side, "action": "ignore"}
    assert layer.graph.find("target").read(0, MIB // 2) == random.Random(1).randbytes(MIB // 2)

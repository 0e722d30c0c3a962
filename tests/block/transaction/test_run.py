"""Transactions: all or nothing, one instant for several disks, and jobs that complete together."""

from __future__ import annotations

import pytest

from qobra.block.query import dirty_bitmaps
from qobra.block.transaction.run import run_transaction
from qobra.errors import QobraError
from qobra.testing.jobs import RecordingLayer

MIB = 1 << 20


@pytest.fixture
def layer():
    made = RecordingLayer()
    for name in ("a", "b", "ta", "tb"):
        made.add_node({"driver": "null-co", "node-name": name, "size": MIB, "read-zeroes": True})
    yield made
    with made.control:
        made.close()


def run(layer, *actions, mode="individual"):
    with layer.control:
        run_transaction(layer, [{"type": kind, "data": data} for kind, data in actions], mode)


def bitmap(kind, node, name, **more):
    return f"block-dirty-bitmap-{kind}", {"node": node, "name": name, **more}


def backup(job, device, target, **more):
    return "blockdev-backup", {"job-id": job, "device": device, "target": target, "sync": "full", **more}


def test_all_actions_are_done(layer):
    node = layer.graph.find("a")
    run(layer, bitmap("add", "a", "one"), bitmap("add", "a", "two", disabled=True))
    node.write(0, b"x")
    run(
        layer,
        bitmap("disable", "a", "one"),
        bitmap("enable", "a", "two"),
        bitmap("add", "a", "sum", disabled=True),
        ("block-dirty-bitmap-merge", {"node": "a", "target": "sum", "bitmaps": ["one", {"node": "a", "name": "two"}]}),
        bitmap("clear", "a", "one"),
        bitmap("remove", "a", "one"),
    )
    state = [(each["name"], each["recording"], each["count"]) for each in dirty_bitmaps(node)]
    assert state == [("sum", False, 65536), ("two", True, 0)]


def test_a_failure_undoes_everything(layer):
    node = layer.graph.find("a")
    run(layer, bitmap("add", "a", "one"), bitmap("add", "a", "two", disabled=True))
    node.write(0, b"x")
    before = dirty_bitmaps(node)
    with pytest.raises(QobraError, match="Transaction aborted using Abort action"):
        run(
            layer,
            bitmap("add", "a", "three"),
            bitmap("clear", "a", "one"),
            bitmap("disable", "a", "one"),
            bitmap("enable", "a", "two"),
            bitmap("remove", "a", "two"),
            backup("j", "a", "ta"),
            ("abort", {}),
        )
    assert dirty_bitmaps(node) == before
    assert layer.statuses("j") == ["created", "aborting", "concluded", "null"]
    assert layer.jobs.all() == [] and len(layer.graph.nodes) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_what_held_an_image_over_a_transaction_lets_it_go(layer, tmp_path, fails):
    from qobra.cli import img

    base, top = str(tmp_path / "base"), str(tmp_path / "top")
    img.main(["create", "-q", "-f", "qcow2", base, "1M"])
    layer.add_node({"driver": "qcow2", "node-name": "base", "file": {"driver": "file", "filename": base}})
    snapshot = "blockdev-snapshot-sync", {"node-name": "base", "snapshot-file": top, "snapshot-node-name": "top"}
    if fails:
        with pytest.raises(QobraError, match="Abort action"):
            run(layer, snapshot, ("abort", {}))
    else:
        run(layer, snapshot)
    assert not layer.graph.state.roots


def test_what_is_to_be_removed_cannot_be_used(layer):
    run(layer, bitmap("add", "a", "one"))
    with pytest.raises(QobraError, match="Bitmap 'one' is currently in use by another operation and cannot be used"):
        run(layer, bitmap("remove", "a", "one"), bitmap("clear", "a", "one"))
    run(layer, bitmap("clear", "a", "one"))


def test_jobs_that_complete_together(layer):
    run(layer, backup("j1", "a", "ta"), backup("j2", "b", "tb"), mode="grouped")
    layer.wait_status("j1", "null")
    layer.wait_status("j2", "null")
    story = [(data["id"], data["status"]) for name, data in layer.events if name == "JOB_STATUS_CHANGE"]
    assert story[:8] == [
        ("j1", "created"), ("j2", "created"), ("j1", "running"), ("j1", "paused"),
        ("j2", "running"), ("j2", "paused"), ("j1", "running"), ("j2", "running"),
    ]  # fmt: skip
    assert sorted(story[8:10]) == [("j1", "waiting"), ("j2", "waiting")]
    assert story[10:] == [
        ("j2", "pending"), ("j1", "pending"),
        ("j2", "concluded"), ("j2", "null"), ("j1", "concluded"), ("j1", "null"),
    ]  # fmt: skip


def test_one_that_fails_takes_the_others_along(layer, monkeypatch):
    run(layer, bitmap("add", "a", "m"))
    layer.graph.find("a").write(0, b"x")

    def fail(offset, length, *_args):
        raise OSError(28, "injected")

    monkeypatch.setattr(layer.graph.find("tb"), "_write_zeroes", fail)
    run(
        layer,
        backup("j1", "a", "ta", sync="bitmap", bitmap="m", **{"bitmap-mode": "on-success", "auto-dismiss": False}),
        backup("j2", "b", "tb", **{"auto-dismiss": False}),
        mode="grouped",
    )
    layer.wait_status("j1", "concluded")
    layer.wait_status("j2", "concluded")
    errors = {job.id: job.info()["error"] for job in layer.jobs.all()}
    assert errors == {"j1": "Operation canceled", "j2": "No space left on device"}
    assert layer.graph.find("a").bitmaps["m"].count() == 65536


def test_actions_that_are_done_at_once_cannot_be_grouped(layer):
    text = "Action 'block-dirty-bitmap-add' does not support Transaction property completion-mode = grouped"
    with pytest.raises(QobraError, match=text):
        run(layer, bitmap("add", "a", "x"), mode="grouped")


def test_a_stored_bitmap_moves_on_with_a_snapshot(layer, tmp_path):
    from qobra.cli import img

    base, top = str(tmp_path / "base"), str(tmp_path / "top")
    img.main(["create", "-q", "-f", "qcow2", base, "1M"])
    layer.add_node({"driver": "qcow2", "node-name": "base", "file": {"driver": "file", "filename": base}})
    run(layer, bitmap("add", "base", "stays", persistent=True), bitmap("add", "base", "moves", persistent=True))
    run(
        layer,
        ("blockdev-snapshot-sync", {"node-name": "base", "snapshot-file": top, "snapshot-node-name": "top"}),
        bitmap("add", "top", "moves", persistent=True),
        ("block-dirty-bitmap-merge",
         {"node": "top", "target": "moves", "bitmaps": [{"node": "base", "name": "moves"}]}),
        bitmap("remove", "base", "moves"),
    )  # fmt: skip
    node = layer.graph.find("base")
    assert node.read_only and list(node.bitmaps) == ["stays"]
    assert [each["name"] for each in node.info()["format-specific"]["data"]["bitmaps"]] == ["stays"]

"""drive-backup and drive-mirror make their targets themselves."""

from __future__ import annotations

import random

import pytest

from qobra.block.job.drive import start_drive_backup, start_drive_mirror
from qobra.block.snapshot import blockdev_snapshot
from qobra.errors import QobraError

MIB = 1 << 20


@pytest.fixture
def guest(layer, qcow2, make_guest, tmp_path):
    base = make_guest(qcow2("base"), "writer")
    base.fill()
    base.layer.backends.pop("writer").remove()
    made = make_guest(qcow2("top", "base"), "writer")
    made.write(5000, b"hello")
    layer.backends.pop("writer").remove()
    for name in ("top", "base"):
        layer.delete_node(name)
    # Opened through the top, the backing file is read-only, so that it may be opened once more.
    file = {"driver": "file", "filename": str(tmp_path / "top")}
    return make_guest(layer.add_node({"driver": "qcow2", "node-name": "top", "file": file}))


def run(layer, start, **args):
    with layer.control, layer.drained():
        job = start(layer.jobs, {"job-id": "j", "device": "drive", "sync": "full", **args})
        job.start()
    if hasattr(job, "drain_over"):
        with layer.control:
            job.drain_over()
    return job


def test_backup_to_a_new_raw_file(layer, guest, tmp_path):
    before = bytes(guest.model)
    run(layer, start_drive_backup, target=str(tmp_path / "b"), format="raw")
    guest.random_requests(random.Random(1), 30)
    layer.wait_status("j", "null")
    assert (tmp_path / "b").read_bytes() == before


def test_backup_of_the_top_has_the_same_backing_file(layer, guest, tmp_path):
    before = bytes(guest.model)
    run(layer, start_drive_backup, target=str(tmp_path / "b"), sync="top")
    layer.wait_status("j", "null")
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["len"] < MIB
    copy = layer.open_image(str(tmp_path / "b"), {"read-only": True}, monitor_owned=True)
    assert copy.backing_filename == str(tmp_path / "base")
    assert copy.read(0, MIB) == before


def test_fleecing_with_sync_none(layer, guest, tmp_path):
    before = bytes(guest.model)
    job = run(layer, start_drive_backup, target=str(tmp_path / "b"), sync="none")
    guest.random_requests(random.Random(1), 30)
    target = next(edge.node for edge in job._edges if edge.edge_name == "target")
    assert target.read(0, MIB) == before
    with layer.control:
        job.user_cancel(True)
    layer.wait_status("j", "null")


@pytest.mark.parametrize("sync", ["full", "top", "none"])
def test_mirror_to_a_new_image(layer, guest, tmp_path, sync):
    job = run(layer, start_drive_mirror, target=str(tmp_path / "m"), sync=sync, **{"node-name": "copy"})
    layer.wait_event("BLOCK_JOB_READY")
    guest.random_requests(random.Random(1), 30)
    with layer.control:
        job.complete()
    layer.wait_status("j", "null")
    assert guest.node.node_name == "copy"
    backing = {"full": None, "top": str(tmp_path / "base"), "none": str(tmp_path / "top")}[sync]
    assert (guest.node.backing.filename if guest.node.backing else None) == backing
    guest.random_requests(random.Random(2), 30)
    guest.check()


def test_a_target_that_was_made_an_overlay_under_way_is_none_in_the_end(layer, guest, tmp_path):
    layer.add_node({"driver": "null-co", "node-name": "other", "size": MIB})
    job = run(layer, start_drive_mirror, target=str(tmp_path / "m"), **{"node-name": "copy"})
    layer.wait_event("BLOCK_JOB_READY")
    with layer.control, layer.drained():
        blockdev_snapshot(layer, {"node": "other", "overlay": "copy"}).settle()
        job.complete()
    layer.wait_status("j", "null")
    assert guest.node.node_name == "copy"
    assert guest.node.backing is None
    guest.check()


@pytest.mark.parametrize("start", [start_drive_backup, start_drive_mirror])
def test_a_new_target_over_a_node_opened_by_a_relative_path_has_a_plain_name(
    layer, make_guest, qcow2, tmp_path, monkeypatch, start
):
    qcow2("base")
    layer.delete_node("base")
    monkeypatch.chdir(tmp_path)
    file = {"driver": "file", "filename": "base"}
    make_guest(layer.add_node({"driver": "qcow2", "node-name": "base", "file": file}))
    job = run(layer, start, target="copy", sync="none")
    if start is start_drive_mirror:
        layer.wait_event("BLOCK_JOB_READY")
        with layer.control:
            job.complete()
        layer.wait_status("j", "null")
        target = layer.backends["drive"].node
    else:
        target = next(edge.node for edge in job._edges if edge.edge_name == "target")
    assert (target.backing_filename, target.filename) == (str(tmp_path / "base"), "copy")
    if start is start_drive_backup:
        with layer.control:
            job.user_cancel(True)
        layer.wait_status("j", "null")


def test_mirror_to_an_image_that_exists_opens_its_backing_file(layer, guest, tmp_path):
    from qobra.block.creation._image import plan

    plan(
        layer, str(tmp_path / "m"), "qcow2", size=MIB,
        backing_file=str(tmp_path / "base"), backing_format="qcow2", unsafe=True,
    ).run(layer)  # fmt: skip
    job = run(layer, start_drive_mirror, target=str(tmp_path / "m"), sync="top", mode="existing", format="qcow2")
    layer.wait_event("BLOCK_JOB_READY")
    with layer.control:
        job.complete()
    layer.wait_status("j", "null")
    assert guest.node.filename == str(tmp_path / "m")
    assert guest.node.backing.filename == str(tmp_path / "base")
    guest.check()


@pytest.mark.parametrize("start", [start_drive_backup, start_drive_mirror])
def test_refusals_leave_no_node(layer, guest, tmp_path, start):
    before = dict(layer.graph.nodes)
    for args, text in (
        ({"device": "x"}, "Cannot find device='x' nor node-name='x'"),
        ({"format": "nosuch"}, "Unknown file format 'nosuch'"),
        ({"mode": "existing"}, f"Could not open '{tmp_path}/t': No such file or directory"),
        ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
    ):
        with pytest.raises(QobraError) as error:
            run(layer, start, **{"target": str(tmp_path / "t"), **args})
        assert str(error.value) == text
        assert layer.graph.nodes == before


def test_backup_to_a_file_that_has_no_format(layer, guest, tmp_path):
    before = bytes(guest.model)
    run(layer, start_drive_backup, target=str(tmp_path / "b"), format="file")
    layer.wait_status("j", "null")
    assert (tmp_path / "b").read_bytes() == before


def test_a_mirror_writes_whole_clusters_where_the_target_does_not_have_its_backing_file_yet(layer, guest, tmp_path):
    from qobra.block.creation._image import plan

    pairs = [("cluster_size", "131072")]
    backing = {"backing_file": str(tmp_path / "base"), "backing_format": "qcow2"}
    plan(layer, str(tmp_path / "t"), "qcow2", pairs, unsafe=True, size=MIB, **backing).run(layer)
    job = run(layer, start_drive_mirror, target=str(tmp_path / "t"), mode="existing", sync="top", granularity=4096)
    layer.wait_event("BLOCK_JOB_READY")
    guest.write(300_000, b"late")
    with layer.control:
        job.complete()
    layer.wait_status("j", "null")
    guest.check()
    assert guest.node.cluster_size() == 131072


def test_an_empty_format_is_no_driver(layer, guest, tmp_path):
    with pytest.raises(QobraError, match="Unknown driver ''"):
        run(layer, start_drive_mirror, target=str(tmp_path / "missing"), mode="existing", format="")

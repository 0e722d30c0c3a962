"""Snapshots outside and inside of images, and the backing file that an image records."""

from __future__ import annotations

import errno

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.creation._image import plan
from qobra.block.layer import BlockLayer
from qobra.block.snapshot import (
    blockdev_snapshot,
    blockdev_snapshot_sync,
    change_backing_file,
    delete_internal,
    snapshot_internal,
)
from qobra.block.transaction.run import run_transaction
from qobra.errors import QobraError

MIB = 1 << 20


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


@pytest.fixture
def image(layer, tmp_path):
    """``image(name)``: a new qcow2 node."""

    def make(name, **options):
        plan(layer, str(tmp_path / name), "qcow2", size=MIB).run(layer)
        file = {"driver": "file", "filename": str(tmp_path / name)}
        return layer.add_node({"driver": "qcow2", "node-name": name, "file": file, **options})

    return make


@pytest.fixture
def drive(layer, image):
    backend = BlockBackend(layer, "drive", perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(image("base"))
    layer.backends["drive"] = backend
    backend.write(0, b"before")
    return backend


def refused(text, function, *args):
    with pytest.raises(QobraError) as error:
        function(*args)
    assert str(error.value) == text


def test_a_new_image_has_the_absolute_path_of_its_backing_file(layer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan(layer, "base", "qcow2", size=MIB).run(layer)
    file = {"driver": "file", "filename": "base"}
    user = BlockBackend(layer)
    user.insert(layer.add_node({"driver": "qcow2", "node-name": "base", "file": file}))
    (tmp_path / "elsewhere").mkdir()
    with layer.drained():
        order = {"node-name": "base", "snapshot-file": "elsewhere/top", "snapshot-node-name": "top"}
        blockdev_snapshot_sync(layer, order).settle()
    assert user.node.backing_filename == str(tmp_path / "base")
    # The node under it is that file, if by a relative name: no other backing file than the header names.
    assert user.node.filename == "elsewhere/top"


def test_an_overlay_takes_the_place_and_the_old_image_is_kept(layer, drive, image):
    overlay = image("overlay")
    base = layer.graph.find("base")
    blockdev_snapshot(layer, {"node": "drive", "overlay": "overlay"}).settle()
    assert drive.node is overlay and overlay.backing is base and base.read_only
    drive.write(0, b"after!")
    assert drive.read(0, 6) == b"after!" and base.read(0, 6) == b"before"


def test_a_disk_that_fails_when_the_old_image_becomes_read_only_does_not_fail_a_snapshot(
    layer, drive, image, monkeypatch
):
    """By then the users are at the overlay, and cannot be told that there is none."""
    overlay = image("overlay")
    base = layer.graph.find("base")
    with monkeypatch.context() as patch:

        def fail(*_arguments):
            raise OSError(errno.ENOSPC, "injected")

        patch.setattr("qobra.block.reopen.reopen", fail)
        run_transaction(layer, [{"type": "blockdev-snapshot", "data": {"node": "drive", "overlay": "overlay"}}])
    assert drive.node is overlay and overlay.backing is base


@pytest.mark.parametrize("commit", [True, False])
def test_a_new_image_is_made(layer, drive, tmp_path, commit):
    base = layer.graph.find("base")
    file = str(tmp_path / "new")
    change = blockdev_snapshot_sync(layer, {"device": "drive", "snapshot-file": file, "snapshot-node-name": "new"})
    assert drive.node.node_name == "new" and drive.node.backing_filename == str(tmp_path / "base")
    if commit:
        change.settle()
        assert drive.node.backing is base
    else:
        change.undo()
        change.clean()
        assert drive.node is base and layer.graph.find("new") is None and not base.read_only
        drive.write(0, b"fine")


def test_an_existing_image_keeps_what_it_has(layer, drive, tmp_path):
    plan(layer, str(tmp_path / "there"), "qcow2", size=MIB).run(layer)
    blockdev_snapshot_sync(
        layer, {"device": "drive", "snapshot-file": str(tmp_path / "there"), "mode": "existing"}
    ).settle()
    assert drive.node.backing.node_name == "base" and drive.node.backing_filename == ""


def test_an_overlay_may_be_what_a_job_writes_to_but_not_what_anyone_reads(layer, image):
    overlay = image("overlay")
    layer.add_node({"driver": "null-co", "node-name": "base"})
    writer = BlockBackend(layer, perm=permissions.WRITE)
    writer.insert(overlay)
    layer.block_node(overlay, "block device is in use by block job: mirror")
    blockdev_snapshot(layer, {"node": "base", "overlay": "overlay"}).settle()
    assert overlay.backing.node_name == "base"
    writer.set_permissions(permissions.WRITE | permissions.CONSISTENT_READ, permissions.ALL)
    layer.add_node({"driver": "null-co", "node-name": "other"})
    refused("The overlay is already in use", blockdev_snapshot, layer, {"node": "other", "overlay": "overlay"})
    writer.remove()


def test_refusals(layer, drive, image, tmp_path):
    image("other")
    layer.add_node({"driver": "null-co", "node-name": "null"})
    sync = {"node-name": "base", "snapshot-file": str(tmp_path / "s")}
    take, take_sync = blockdev_snapshot, blockdev_snapshot_sync
    refused("Cannot find device='x' nor node-name='x'", take, layer, {"node": "x", "overlay": "other"})
    refused("Cannot find device='x' nor node-name='x'", take, layer, {"node": "base", "overlay": "x"})
    refused("The overlay does not support backing images", take, layer, {"node": "base", "overlay": "null"})
    refused("Cannot find device='' nor node-name=''", take_sync, layer, {"snapshot-file": "s"})
    refused("New overlay node-name missing", take_sync, layer, sync)
    refused("New overlay node-name already in use", take_sync, layer, {**sync, "snapshot-node-name": "other"})
    new = {**sync, "snapshot-node-name": "s"}
    refused("Backing file not supported for file format 'raw'", take_sync, layer, {**new, "format": "raw"})
    refused("Unknown file format 'nosuch'", take_sync, layer, {**new, "format": "nosuch"})
    refused(f"Could not open '{tmp_path}/s': No such file or directory", take_sync, layer, {**new, "mode": "existing"})
    take(layer, {"node": "base", "overlay": "other"}).settle()
    refused(
        "Node 'base' is busy: node is used as backing hd of 'other'", take, layer, {"node": "base", "overlay": "null"}
    )


def test_internal_snapshots(layer, drive):
    change = snapshot_internal(layer, {"device": "drive", "name": "one"})
    change.undo()
    assert drive.node.snapshot_list() == []
    snapshot_internal(layer, {"device": "drive", "name": "two"}).settle()
    refused(
        "Snapshot with name 'two' already exists on device 'drive'",
        snapshot_internal, layer, {"device": "drive", "name": "two"},
    )  # fmt: skip
    refused("Name is empty", snapshot_internal, layer, {"device": "drive", "name": ""})
    refused("Name or id must be provided", delete_internal, layer, {"device": "drive"})
    refused(
        "Snapshot with id '7' and name 'null' does not exist on device 'drive'",
        delete_internal, layer, {"device": "drive", "id": "7"},
    )  # fmt: skip
    assert delete_internal(layer, {"device": "drive", "name": "two"})["name"] == "two"
    assert drive.node.snapshot_list() == []


def test_the_recorded_backing_file_changes(layer, drive, tmp_path):
    args = {"device": "drive", "image-node-name": "base", "backing-file": "elsewhere"}
    refused("not allowing backing file change on an image without a backing file", change_backing_file, layer, args)
    blockdev_snapshot_sync(
        layer, {"device": "drive", "snapshot-file": str(tmp_path / "new"), "snapshot-node-name": "new"}
    ).settle()
    change_backing_file(layer, {**args, "image-node-name": "new"})
    assert drive.node.backing_filename == "elsewhere"


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_an_image_that_somebody_uses_is_not_overwritten_by_a_new_one(layer, drive, tmp_path, format):
    order = plan(layer, str(tmp_path / "base"), format, size=MIB)
    with pytest.raises(QobraError, match='Failed to get "write" lock'):
        order.run(layer)
    assert drive.read(0, 6) == b"before"
    assert (tmp_path / "base").stat().st_size > MIB // 4


def test_what_is_put_over_a_read_only_node_is_read_only(layer, image, tmp_path):
    image("fixed", **{"read-only": True})
    blockdev_snapshot_sync(
        layer, {"node-name": "fixed", "snapshot-file": str(tmp_path / "new"), "snapshot-node-name": "new"}
    ).settle()
    assert layer.graph.find("fixed").read_only


def test_both_sides_of_blkverify_keep_no_snapshots(layer, image):
    image("both")
    layer.add_node({"driver": "blkverify", "node-name": "v", "raw": "both", "test": "both"})
    assert layer.graph.find("v").snapshot_keeper() is None
    assert layer.graph.find("both").snapshot_keeper() is layer.graph.find("both")

"""blockdev-create as a job."""

from __future__ import annotations

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.job.create import CreateJob
from qobra.errors import QobraError
from qobra.testing.jobs import RecordingLayer


@pytest.fixture
def layer():
    made = RecordingLayer()
    yield made
    with made.control:
        made.close()


def create(layer, **options):
    with layer.control:
        job = CreateJob(layer.jobs, "c", options)
        job.start()
    layer.wait_status("c", "concluded")
    return job


def test_a_file_is_made_and_the_job_stays(layer, tmp_path):
    job = create(layer, driver="file", filename=str(tmp_path / "new"), size=12345)
    assert (tmp_path / "new").stat().st_size == 12345
    assert layer.story() == ["created", "running", "waiting", "pending", "concluded"]
    assert job.info() == {
        "id": "c", "type": "create", "status": "concluded", "current-progress": 1, "total-progress": 1,
    }  # fmt: skip


def test_a_format_is_made_in_an_open_node_or_in_one_of_its_own(layer, tmp_path):
    path = tmp_path / "new"
    path.write_bytes(b"")
    layer.add_node({"driver": "file", "node-name": "f", "filename": str(path)})
    create(layer, driver="raw", file="f", size=4096)
    assert path.stat().st_size == 4096
    with layer.control:
        layer.jobs.get("c").dismiss()
    layer.events.clear()
    layer.delete_node("f")
    create(layer, driver="raw", file={"driver": "file", "filename": str(path)}, size=8192)
    assert path.stat().st_size == 8192 and not layer.graph.nodes


def test_a_new_image_is_made_while_others_wait_for_a_migration(layer, tmp_path):
    path = tmp_path / "new"
    path.write_bytes(b"")
    layer.opens_inactive = True
    create(layer, driver="raw", file={"driver": "file", "filename": str(path)}, size=8192)
    assert path.stat().st_size == 8192 and not layer.graph.nodes
    with layer.control:
        layer.jobs.get("c").dismiss()
    layer.add_node({"driver": "file", "node-name": "f", "filename": str(path)})
    assert create(layer, driver="raw", file="f", size=4096).info()["error"] == "Block node is read-only"
    assert path.stat().st_size == 8192


def test_what_goes_wrong_is_told_by_the_job(layer, tmp_path):
    job = create(layer, driver="raw", file="nofile", size=0)
    assert job.info()["error"] == "Cannot find device='nofile' nor node-name='nofile'"
    assert layer.story() == ["created", "running", "aborting", "concluded"]
    with layer.control:
        job.dismiss()
    layer.events.clear()
    job = create(layer, driver="file", filename=str(tmp_path / "no" / "new"), size=0)
    assert job.info()["error"] == f"Could not create '{tmp_path}/no/new': No such file or directory"


def test_drivers_that_cannot_are_refused_at_once(layer):
    with layer.control:
        with pytest.raises(QobraError, match="Driver does not support blockdev-create"):
            CreateJob(layer.jobs, "c", {"driver": "null-co"})
        with pytest.raises(QobraError, match="Block driver 'x' not found or not supported"):
            CreateJob(layer.jobs, "c", {"driver": "x"})


def test_options_are_looked_at_before_anything_is_asked_of_the_file(layer, tmp_path):
    path = tmp_path / "new"
    path.write_bytes(b"")
    layer.add_node({"driver": "file", "node-name": "f", "filename": str(path)})
    keeper = BlockBackend(layer, perm=0, shared=permissions.CONSISTENT_READ)
    keeper.insert(layer.find_node("f"))
    for number, (options, error) in enumerate(
        [
            ({"cluster-size": 3, "data-file": "nofile"}, "Cluster size must be a power of two between 512 and 2048k"),
            ({"backing-fmt": "raw"}, "Backing format cannot be used without backing file"),
            (
                {"backing-file": "x" * 1024, "backing-fmt": "raw"},
                f"Could not assign backing file '{'x' * 1024}' with format 'raw': Invalid argument",
            ),
            ({"data-file": "nofile"}, "Cannot find device='nofile' nor node-name='nofile'"),
        ]
    ):
        job = create(layer, driver="qcow2", file="f", size=0, **options)
        assert job.info()["error"] == error, number
        with layer.control:
            job.dismiss()
        layer.events.clear()
    assert "Permission conflict on node 'f'" in create(layer, driver="qcow2", file="f", size=0).info()["error"]


def test_an_image_that_is_not_there_afterwards_was_not_made(layer):
    null = {"driver": "null-co", "read-zeroes": True}
    assert create(layer, driver="qcow2", file=null, size=0).info()["error"] == "Image is not in qcow2 format"


def test_an_image_in_its_own_data_file(layer, tmp_path):
    (tmp_path / "new").write_bytes(b"")
    layer.add_node({"driver": "file", "node-name": "f", "filename": str(tmp_path / "new")})
    error = create(layer, driver="qcow2", file="f", **{"data-file": "f"}, size=0).info()["error"]
    assert "unshared by" in error and "(uses node 'f' as 'data-file' child)." in error


def test_an_extent_size_hint_has_32_bits(layer, tmp_path):
    options = {"driver": "file", "filename": str(tmp_path / "new"), "size": 512}
    job = create(layer, **options, **{"extent-size-hint": 1 << 32})
    assert job.info()["error"] == "Extent size hint is too large" and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("preallocation", "told"),
    [("off", "Could not resize file: Invalid argument"), ("full", "Cannot use preallocation for shrinking files")],
)
def test_a_size_past_all_is_taken_for_negative(layer, tmp_path, preallocation, told):
    job = create(
        layer, driver="file", filename=str(tmp_path / "new"), size=(1 << 64) - 512, preallocation=preallocation
    )
    assert job.info()["error"] == told

"""Jobs and snapshots over the human monitor."""

from __future__ import annotations

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.creation._image import plan
from qobra.machine.machine import Machine
from qobra.qmp import hmp
from qobra.testing.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path):
    made = Machine()
    layer = made.block
    with made.control:
        plan(layer, str(tmp_path / "base"), "qcow2", size=MIB).run(layer)
        plan(layer, str(tmp_path / "disk"), "qcow2", backing_file=str(tmp_path / "base"), backing_format="qcow2").run(
            layer
        )
        file = {"driver": "file", "filename": str(tmp_path / "disk")}
        backend = BlockBackend(layer, "drive0", perm=permissions.CONSISTENT_READ | permissions.WRITE)
        backend.insert(layer.add_node({"driver": "qcow2", "node-name": "disk", "file": file}))
        layer.backends["drive0"] = backend
    yield made
    made.close()


def run(machine, line):
    with machine.control:
        return hmp.execute(machine, line)


def settle(machine):
    wait_until(lambda: not machine.block.jobs.all())


def test_jobs(machine, tmp_path):
    drive = machine.block.backends["drive0"]
    assert run(machine, f"drive_backup -f drive0 {tmp_path}/copy raw") == ""
    settle(machine)
    assert (tmp_path / "copy").stat().st_size == MIB
    assert run(machine, "block_stream drive0") == ""
    settle(machine)
    assert drive.node.backing is None
    assert run(machine, f"drive_mirror -f drive0 {tmp_path}/mirror") == ""
    wait_until(lambda: machine.block.jobs.get("drive0").ready)
    assert "Type mirror, device drive0: Completed" in run(machine, "info block-jobs")
    assert run(machine, "block_job_complete drive0") == ""
    settle(machine)
    assert drive.node.filename == f"{tmp_path}/mirror"
    assert run(machine, "block_job_cancel drive0") == "Error: Block job 'drive0' not found\r\n"
    assert run(machine, "block_stream x") == "Error: Cannot find device='x' nor node-name='x'\r\n"


def test_snapshots(machine, tmp_path):
    drive = machine.block.backends["drive0"]
    assert run(machine, "snapshot_blkdev_internal drive0 one") == ""
    assert [each["name"] for each in drive.node.snapshot_list()] == ["one"]
    assert run(machine, "snapshot_delete_blkdev_internal drive0 one") == ""
    text = "Error: Snapshot with id 'null' and name 'one' does not exist on device 'drive0'\r\n"
    assert run(machine, "snapshot_delete_blkdev_internal drive0 one") == text
    assert run(machine, "snapshot_blkdev drive0") == "Error: Parameter 'snapshot-file' is missing\r\n"
    assert run(machine, f"snapshot_blkdev drive0 {tmp_path}/top") == ""
    assert drive.node.filename == f"{tmp_path}/top" and drive.node.backing.node_name == "disk"

"""Sentences of the manual about block commands that QEMU 7.2 does not keep, over QMP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.creation._image import plan
from qobra.testing.waiting import wait_until

MIB = 1 << 20
NO_LIMITS = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
ZEROES = {"bps_max": 0, "bps_rd_max": 0, "bps_wr_max": 0, "iops_max": 0, "iops_rd_max": 0, "iops_wr_max": 0}
READY, STANDBY = "ready", "standby"


class Client:
    """A connection to a machine that has a drive ``drive0`` on a qcow2 node ``disk``, and a node ``other``."""

    def __init__(self, monitored: Any, directory: Path) -> None:
        self._raw = monitored.client()
        self.machine = monitored.machine
        layer = self.machine.block
        with self.machine.control:
            for name in ("disk", "other"):
                plan(layer, str(directory / name), "qcow2", size=MIB).run(layer)
                file = {"driver": "file", "filename": str(directory / name)}
                layer.add_node({"driver": "qcow2", "node-name": name, "file": file})
            drive = BlockBackend(layer, "drive0", perm=permissions.CONSISTENT_READ | permissions.WRITE)
            drive.insert(layer.find_node("disk"))
            layer.backends["drive0"] = drive

    def do(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What the command returned."""
        reply = self._raw.call(command, arguments)
        assert "return" in reply, reply
        return reply["return"]

    def refusal(self, command: str, arguments: dict[str, Any]) -> tuple[str, str]:
        """Class and text of the command's error."""
        error = self._raw.call(command, arguments)["error"]
        return error["class"], error["desc"]

    def wait_status(self, job_id: str, status: str) -> None:
        """Wait until the job is in ``status``; one that is not there is taken for ``null``."""
        wait_until(
            lambda: {job["id"]: job["status"] for job in self.do("query-jobs")}.get(job_id, "null") == status, 30
        )

    def statuses(self) -> list[str]:
        """The states of jobs that events told of, oldest first."""
        self.do("query-version")
        return [event["data"]["status"] for event in self._raw.events if event["event"] == "JOB_STATUS_CHANGE"]


@pytest.fixture
def client(monitored: Any, tmp_path: Path) -> Client:
    return Client(monitored, tmp_path)


@pytest.fixture
def mirror(client: Client) -> Iterator[Callable[[], None]]:
    """Starts a mirror ``m`` and waits until it is ready."""

    def start() -> None:
        client.do("blockdev-mirror", {"job-id": "m", "device": "drive0", "target": "other", "sync": "full"})
        client.wait_status("m", READY)

    yield start


UNKNOWN = {
    "block-dirty-bitmap-add": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-remove": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-clear": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-enable": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-disable": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-merge": {"node": "nope", "target": "b", "bitmaps": []},
    "x-debug-block-dirty-bitmap-sha256": {"node": "nope", "name": "b"},
    "block-stream": {"device": "nope"},
    "block-commit": {"device": "nope"},
    "change-backing-file": {"device": "nope", "image-node-name": "disk", "backing-file": "x"},
    "block_resize": {"device": "nope", "size": MIB},
    "blockdev-snapshot-sync": {"device": "nope", "snapshot-file": "x"},
    "block_set_io_throttle": {"device": "nope", **NO_LIMITS},
    "eject": {"device": "nope"},
}


@pytest.mark.parametrize("command", UNKNOWN)
def test_what_is_no_block_device_is_not_found(client: Client, command: str) -> None:
    assert client.refusal(command, UNKNOWN[command])[0] == "DeviceNotFound"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("drive-backup", {"device": "nope", "target": "x", "sync": "full"}),
        ("drive-mirror", {"device": "nope", "target": "x", "sync": "full"}),
        ("blockdev-backup", {"device": "nope", "target": "other", "sync": "full"}),
        ("blockdev-snapshot-internal-sync", {"device": "nope", "name": "s"}),
        ("blockdev-snapshot-delete-internal-sync", {"device": "nope", "name": "s"}),
        ("block-dirty-bitmap-clear", {"node": "drive0", "name": "nope"}),
    ],
)
def test_these_have_no_class_of_their_own_for_it(client: Client, command: str, arguments: dict[str, Any]) -> None:
    assert client.refusal(command, arguments)[0] == "GenericError"


@pytest.mark.parametrize(("command", "rest"), [("block_resize", {"size": 0}), ("blockdev-snapshot-sync", {})])
def test_a_device_or_a_node_name_but_not_both(client: Client, command: str, rest: dict[str, Any]) -> None:
    rest = rest or {"snapshot-file": "x", "snapshot-node-name": "x"}
    both = {"device": "drive0", "node-name": "disk", **rest}
    assert client.refusal(command, both) == ("GenericError", "Need exactly one of 'device' and 'node-name'")
    assert client.refusal(command, rest) == ("GenericError", "Cannot find device='' nor node-name=''")
    wrong = {"device": "", "node-name": "nope", **rest}
    assert client.refusal(command, wrong) == ("DeviceNotFound", "Cannot find device='' nor node-name='nope'")


def test_a_write_threshold_is_not_negative(client: Client) -> None:
    arguments = {"node-name": "disk", "write-threshold": -1}
    text = "Parameter 'write-threshold' expects a non-negative value"
    assert client.refusal("block-set-write-threshold", arguments) == ("GenericError", text)


def test_no_burst_may_have_no_length(client: Client) -> None:
    limits = {**NO_LIMITS, **ZEROES, "device": "drive0", "iops": 512, "bps_max_length": 0, "iops_size": 0}
    client.do("block_set_io_throttle", limits)
    (drive,) = client.do("query-block")
    assert (drive["inserted"]["iops"], drive["inserted"]["group"]) == (512, "drive0")
    for refused in ({"iops_max": 1000, "iops_max_length": 0}, {"iops_max_length": 5}):
        assert client.refusal("block_set_io_throttle", {**limits, **refused})[1].startswith(("the burst", "burst"))


@pytest.mark.parametrize("cluster", [4096, 65536, 2 * MIB])
def test_a_bitmap_has_granules_of_64_kib(client: Client, tmp_path: Path, cluster: int) -> None:
    layer = client.machine.block
    with client.machine.control:
        plan(layer, str(tmp_path / "image"), "qcow2", [("cluster_size", str(cluster))], size=4 * MIB).run(layer)
    file = {"driver": "file", "filename": str(tmp_path / "image")}
    client.do("blockdev-add", {"driver": "qcow2", "node-name": "image", "file": file})
    client.do("block-dirty-bitmap-add", {"node": "image", "name": "b"})
    (bitmap,) = client.do("query-named-block-nodes")[0]["dirty-bitmaps"]
    assert bitmap["granularity"] == 65536


def test_a_backup_of_a_dirty_bitmap_is_an_incremental_one(client: Client, tmp_path: Path) -> None:
    """As the command table of QEMU 2.5 has it."""
    client.do("block-dirty-bitmap-add", {"node": "drive0", "name": "b"})
    backup = {"device": "drive0", "target": str(tmp_path / "copy"), "sync": "dirty-bitmap"}
    assert "bitmap" in client.refusal("drive-backup", backup)[1]
    client.do("drive-backup", {**backup, "bitmap": "b"})
    client.wait_status("drive0", "null")
    assert client.statuses()[-1] == "null"
    assert (tmp_path / "copy").exists()


class TestPausedJobs:
    def test_cancelling_one_resumes_it(self, client: Client) -> None:
        backup = {"job-id": "j", "device": "drive0", "target": "other", "sync": "full", "speed": 1}
        client.do("blockdev-backup", backup)
        client.do("block-job-pause", {"device": "j"})
        client.wait_status("j", "paused")
        client.do("block-job-cancel", {"device": "j"})
        client.wait_status("j", "null")
        assert client.statuses()[-4:] == ["running", "aborting", "concluded", "null"]

    def test_one_that_is_ready_is_brought_to_its_end(self, client: Client, mirror: Callable[[], None]) -> None:
        mirror()
        client.do("job-pause", {"id": "m"})
        client.wait_status("m", STANDBY)
        client.do("block-job-cancel", {"device": "m"})
        client.wait_status("m", "null")
        assert client.statuses()[-5:] == ["ready", "waiting", "pending", "concluded", "null"]

    @pytest.mark.parametrize(("command", "name"), [("job-complete", "id"), ("block-job-complete", "device")])
    def test_one_cannot_be_completed(self, client: Client, mirror: Callable[[], None], command: str, name: str) -> None:
        mirror()
        client.do("job-pause", {"id": "m"})
        client.wait_status("m", STANDBY)
        refused = ("GenericError", "The active block job 'm' cannot be completed")
        assert client.refusal(command, {name: "m"}) == refused
        client.do("job-resume", {"id": "m"})
        client.do(command, {name: "m"})
        client.wait_status("m", "null")
        assert client.statuses()[-3:] == ["pending", "concluded", "null"]

"""What random scripts (``python -m qobra.testing.fuzz --server pc``) found to be answered differently once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.testing.differential import Run, against_system

DEVICES = (
    *(
        "-M",
        "pc",
        "-blockdev",
        "null-co,node-name=n0,read-zeroes=on,size=1048576",
        "-device",
        "virtio-blk-pci,drive=n0,id=d",
    ),
    *(
        "-device",
        "virtio-scsi-pci,id=scsi",
        "-device",
        "scsi-cd,id=cd",
        "-device",
        "isa-fdc",
        "-device",
        "floppy,id=fl",
    ),
)


@against_system(*DEVICES)
def test_devices_by_path(q: Run) -> None:
    """An id is a path below the users' devices."""
    for id in ("", "/machine", "/machine/peripheral/", "cd/", "scsi", "/nope", "fl/x"):
        q.do("eject", id=id)
    for id in ("", "nope", "scsi.0", "scsi/scsi.0", "scsi/virtio-backend"):
        q.do("device_del", id=id)
    q.do("device_add", id="", driver="nope")
    q.do("device_add", driver="isa-fdc")


@against_system(*DEVICES)
def test_backup_filter_is_seen(q: Run) -> None:
    q.add("null-co", node_name="target", read_zeroes=True, size=1 << 20)
    q.do("blockdev-backup", job_id="j", device="n0", target="target", sync="none")
    q("query-block")
    q("query-named-block-nodes")
    q("query-blockstats")


@against_system(*DEVICES)
def test_a_guest_uses_the_disk(q: Run) -> None:
    """Nodes are called by their devices; encryption keys may change meanwhile."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "1M")
    q.do("human-monitor-command", command_line="drive_add 0 if=none,id=drive,file=disk,format=qcow2,node-name=disk")
    q.do("device_add", driver="virtio-scsi-pci", id="other")
    q.do("device_add", driver="scsi-hd", drive="drive", id="hd", bus="other.0")
    q.do("x-blockdev-change", parent="disk", node="n0")
    q.do("x-blockdev-amend", job_id="amend", node_name="disk", options={"driver": "qcow2"})
    q.wait("JOB_STATUS_CHANGE", id="amend", status="concluded")


@against_system("-M", "none")
def test_what_qemu_io_counts(q: Run) -> None:
    """Asynchronous reads and writes of data, and the flush that waits for them."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "1M")
    q.do("human-monitor-command", command_line="drive_add 0 if=none,id=d,file=disk,format=qcow2,discard=unmap")
    lines = "read 0 512", "readv 0 512 512", "write 0 64k", "write -z 64k 64k", "writev 0 512 512", "discard 0 64k"
    for line in (*lines, "flush", "write -c 128k 64k", "read 2M 512", "write 2M 512", "discard 2M 512"):
        q.do("human-monitor-command", command_line=f'qemu-io d "{line}"')
        q("query-blockstats", pick=_counters)
    for line in ("aio_read 0 512", "aio_write 0 4k", "aio_write -z 0 64k", "aio_read 2M 512", "aio_write 2M 512"):
        q.do("human-monitor-command", command_line=f'qemu-io d "{line}"')
        q.do("human-monitor-command", command_line='qemu-io d "aio_flush"')
        q("query-blockstats", pick=_counters)


@pytest.mark.parametrize("line", ["write 4k 4k", "write 60k 8k", "write -z 0 4k", "write 0 128k", "write 100 10"])
def test_where_a_damaged_image_was_written(tmp_path: Path, line: str) -> None:
    """A write to a cluster that is the L1 table as well: the event tells where and how much."""

    def script(q: Run) -> None:
        q.tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "1M")
        q.tool("qemu-io", "-c", "write 0 128k", "disk")
        with Path(q.path("disk")).open("r+b") as image:
            header = image.read(48)
            l1 = int.from_bytes(header[40:48], "big")
            image.seek(l1)
            image.seek(int.from_bytes(image.read(8), "big") & ~(1 << 63))
            image.write((1 << 63 | l1).to_bytes(8, "big"))
        q.do("human-monitor-command", command_line=f"drive_add 0 if=none,id=d,file={q.path('disk')},format=qcow2")
        q.do("human-monitor-command", command_line=f'qemu-io d "{line}"')

    against_system("-M", "none")(script)(tmp_path)


def _counters(found: list[Any]) -> list[Any]:
    """Statistics without times."""
    return [{name: value for name, value in each["stats"].items() if not name.endswith("_ns")} for each in found]


@against_system("-M", "none")
def test_a_stream_that_is_refused_leaves_its_image_read_only(q: Run) -> None:
    q.tool("qemu-img", "create", "-q", "disk", "1M")
    q.do("human-monitor-command", command_line="drive_add 0 if=none,id=d,file=disk,format=raw,read-only=on")
    q.do("block-stream", job_id="9x", device="d")
    q.do("block-stream", job_id="j", device="d", speed=-1)
    q("query-named-block-nodes")


@against_system("-M", "none")
def test_drives_without_a_device(q: Run) -> None:
    """One that was opened with a file reads it; what is put into an empty one is asked for nothing."""
    q.tool("qemu-img", "create", "-q", "disk", "1M")
    q.do("human-monitor-command", command_line="drive_add 0 if=none,id=d,file=disk,format=raw,node-name=disk")
    q.do("human-monitor-command", command_line="drive_add 0 if=none,id=e")
    q("x-debug-query-block-graph")
    q.do("eject", device="d")
    q.do("blockdev-change-medium", device="e", filename=q.path("disk"), format="raw")
    q("x-debug-query-block-graph")


@against_system("-M", "none")
def test_aio_of_a_drive_is_no_option_of_its_node(q: Run) -> None:
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "1M")
    drive = "if=none,id=d,file=disk,format=qcow2,node-name=n0,aio=threads,readonly=on"
    q.do("human-monitor-command", command_line=f"drive_add 0 {drive}")
    for writable in (False, True):
        options = {"driver": "qcow2", "node-name": "n0", "file": q.file("disk"), "read-only": not writable}
        q("blockdev-reopen", {"options": [options]})
        q("query-block", pick=lambda found: found[0]["inserted"]["ro"])
    q.do("eject", device="d")


@against_system("-M", "none", "-incoming", "defer")
def test_images_that_wait_for_a_migration_are_not_written(q: Run) -> None:
    """Neither are those that are made beside one; a job that would is refused as it begins."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "1M")
    q.do("human-monitor-command", command_line="drive_add 0 if=none,id=d,file=disk,format=qcow2,node-name=n")
    for device in ("d", "n"):
        q.do("drive-backup", job_id="j", device=device, target=q.path("backup"), sync="full")
        q.do("drive-mirror", job_id="j", device=device, target=q.path("mirror"), sync="full")
    q.do("drive-backup", job_id="j", device="d", target=q.path("backup"), sync="top", mode="existing")
    q.do("blockdev-snapshot-sync", device="d", snapshot_file=q.path("overlay"))
    q.do("block-stream", job_id="j", device="d")
    q.do("block-commit", job_id="j", device="d")
    q("x-debug-query-block-graph")


@against_system("-M", "pc", "-drive", "if=floppy,id=fl", "-drive", "if=none,id=cd", "-device", "ide-cd,drive=cd,id=c")
def test_a_diskette_that_the_drive_may_not_write(q: Run) -> None:
    """It is out again; the one before it is, too."""
    for name in ("disk", "other"):
        q.tool("qemu-img", "create", "-q", name, "1M")
    q.do("blockdev-change-medium", device="cd", filename=q.path("disk"), format="raw")
    for name in ("other", "disk"):
        q.do("blockdev-change-medium", device="fl", filename=q.path(name), format="raw")
        q("query-block", pick=lambda found: [each.get("inserted", {}).get("file") for each in found])
    for command in ("block-commit", "block-stream"):
        q.do(command, device="fl")


@against_system("-M", "none")
def test_a_guest_that_stops_has_written(q: Run) -> None:
    """Who suspends a guest copies its images; also where it stood still before."""
    for name in ("image", "other"):
        q.tool("qemu-img", "create", "-q", "-f", "qcow2", name, "1M")
        q.add("qcow2", node_name=name, file=q.file(name))
    for pattern, command in ((1, "cont"), (2, "query-status"), (3, "cont")):
        q(command)
        for name in ("image", "other"):
            q.request("human-monitor-command", {"command-line": f'qemu-io {name} "write -P {pattern} {pattern}k 64k"'})
        q("stop")
        for name in ("image", "other"):
            q.tool("qemu-io", "-rU", "-c", f"read -P {pattern} {pattern}k 64k", name)


@against_system("-M", "none", "-drive", "if=none,id=d,driver=null-co,size=4M,read-zeroes=on,node-name=n,discard=unmap")
def test_what_a_write_blocking_mirror_counts(q: Run) -> None:
    q.add("null-co", node_name="t", size=4 << 20, read_zeroes=True)
    q.do("blockdev-mirror", job_id="m", device="n", target="t", sync="full", copy_mode="write-blocking")
    q.wait("BLOCK_JOB_READY")
    for line in ("write 0 64k", "write 0 64k", "write 1M 100k", "write -z 2M 64k", "discard 3M 64k", "write 100 100"):
        q.request("human-monitor-command", {"command-line": f'qemu-io d "{line}"'})
        q("query-block-jobs", pick=lambda found: [(job["offset"], job["len"]) for job in found])

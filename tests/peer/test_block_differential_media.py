"""Drives, removable media, limits and histograms of devices, on QEMU's system emulator and on ours."""

from __future__ import annotations

from typing import Any

from qobra.testing.differential import Run, against_system

SCSI = (
    "-M pc -drive if=none,id=cd0,media=cdrom -drive if=none,id=empty -blockdev null-co,node-name=hd,size=1048576 "
    "-device virtio-scsi-pci,id=scsi -device scsi-cd,id=drive0,drive=cd0 -device scsi-cd,id=drive1 "
    "-device scsi-hd,id=disk,drive=hd"
)
IDE = (
    "-M pc -drive if=none,id=cd0,media=cdrom -drive if=none,id=empty -blockdev null-co,node-name=hd,size=1048576 "
    "-device virtio-scsi-pci,id=scsi -device ide-cd,id=drive0,drive=cd0,bus=ide.0 -device ide-cd,id=drive1,bus=ide.0 "
    "-device ide-hd,id=disk,drive=hd,bus=ide.1"
)


def query(q: Run) -> None:
    q("query-block")
    q("query-blockstats")
    q("query-named-block-nodes")
    q("x-debug-query-block-graph")
    q("query-blockstats", {"query-nodes": True})


def media(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "raw", "a.raw", "1M")
    q.tool("qemu-img", "create", "-f", "qcow2", "b.qcow2", "1M")
    q.add("null-co", node_name="m0", size=1 << 20, read_only=True)
    q.add("null-co", node_name="m1", size=1 << 20)
    for c in ("blockdev-open-tray", "blockdev-close-tray", "eject"):
        q(c, {})
        q(c, {"id": "drive0", "device": "cd0"})
        q(c, {"id": "nope"})
        q(c, {"device": "nope"})
        q(c, {"id": "disk"})
        q(c, {"device": "empty"})
        q(c, {"id": "scsi"})
    q("blockdev-remove-medium", {"id": "drive0"})
    q("blockdev-remove-medium", {"id": "disk"})
    q("blockdev-remove-medium", {"id": "nope"})
    q("blockdev-insert-medium", {"id": "drive0", "node-name": "m0"})
    q("query-block")
    q("blockdev-open-tray", {"id": "drive0"})
    q("blockdev-open-tray", {"id": "drive0"})
    q("query-block")
    q("blockdev-remove-medium", {"id": "drive0"})
    q("blockdev-insert-medium", {"id": "drive0", "node-name": "m0"})
    q("blockdev-insert-medium", {"id": "drive0", "node-name": "m0"})
    q("blockdev-insert-medium", {"id": "drive0", "node-name": "m1"})
    q("blockdev-insert-medium", {"id": "drive0", "node-name": "nope"})
    q("blockdev-del", {"node-name": "m0"})
    q("query-block")
    q("blockdev-close-tray", {"id": "drive0"})
    q("blockdev-close-tray", {"id": "drive0"})
    q("blockdev-remove-medium", {"id": "drive0"})
    q("eject", {"id": "drive0"})
    q("query-block")
    q("eject", {"id": "drive0"})
    q("blockdev-insert-medium", {"id": "drive0", "node-name": "m1"})
    q("blockdev-close-tray", {"id": "drive0"})
    q("blockdev-change-medium", {"id": "drive0", "filename": q.path("a.raw")})
    q("query-block")
    q("blockdev-change-medium", {"id": "drive0", "filename": q.path("nope")})
    q("blockdev-change-medium", {"id": "drive0", "filename": q.path("b.qcow2"), "format": "raw"})
    q("query-block")
    q("blockdev-change-medium", {"id": "drive0", "filename": q.path("b.qcow2"), "format": "zz"})
    q("blockdev-change-medium", {"id": "drive0", "filename": q.path("a.raw"), "format": "qcow2"})
    q("blockdev-change-medium", {"id": "drive0", "filename": q.path("b.qcow2"), "read-only-mode": "read-write"})
    q("query-block")
    q("blockdev-change-medium", {"device": "cd0", "filename": q.path("b.qcow2"), "read-only-mode": "zz"})
    q("blockdev-change-medium", {"device": "cd0", "filename": q.path("b.qcow2")})
    q("query-block")
    q("blockdev-change-medium", {"id": "drive1", "filename": q.path("a.raw"), "format": "raw"})
    q("query-block")
    q("query-block")
    q("blockdev-change-medium", {"id": "disk", "filename": q.path("a.raw"), "format": "raw"})
    q("query-block")
    q("query-named-block-nodes")
    q("x-debug-query-block-graph")


def throttle(q: Run) -> None:
    def throttle(**limits: Any) -> None:
        kinds = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
        q("block_set_io_throttle", {**dict.fromkeys(kinds, 0), **limits})

    throttle(device="nope")
    throttle(id="nope")
    throttle()
    throttle(id="disk", device="x")
    throttle(id="drive0")
    throttle(device="cd0")
    throttle(device="empty")
    throttle(id="disk")
    throttle(id="disk", bps=5)
    q("query-block")
    throttle(id="disk", bps=-5)
    throttle(id="disk", bps=5, bps_rd=5)
    throttle(id="disk", bps=5, bps_max=4)
    throttle(id="disk", bps=0, bps_max=4)
    throttle(id="disk", bps=1000, bps_max=4000, bps_max_length=3, iops=10, iops_size=512, group="g")
    q("query-block")
    throttle(id="disk", iops_max_length=0, iops=5)
    throttle(id="disk", iops_max_length=5, iops=5)
    throttle(id="disk", bps=5, bps_rd=5, bps_max_length=0)
    throttle(id="disk", bps=5, bps_max=4, bps_max_length=0)
    throttle(id="disk", bps=5, bps_max=4, bps_max_length=-1)
    throttle(id="disk", bps=5, bps_max_length=-1)
    throttle(id="disk", bps=1 << 50)
    throttle(id="disk", iops_size=-1, iops=3)
    throttle(id="disk", iops_size=1 << 50, iops=3)
    q("query-block")
    throttle(id="disk", bps_rd=100, bps_rd_max=200, bps_wr=5, iops_rd=1, iops_wr=2, iops_wr_max=9, iops_wr_max_length=2)
    q("query-block")
    q("query-named-block-nodes")
    throttle(id="disk")
    q("query-block")
    q("blockdev-del", {"node-name": "hd"})

    def histogram(**boundaries: Any) -> None:
        q.do("block-latency-histogram-set", **boundaries)

    histogram(id="nope")
    histogram(id="disk")
    histogram(id="disk", boundaries=[10, 20])
    q("query-blockstats")
    histogram(id="disk", boundaries=[10, 5])
    histogram(id="disk", boundaries=[])
    histogram(id="disk", boundaries=[0, 1])
    histogram(id="disk", boundaries_read=[5], boundaries_write=[1, 2], boundaries_flush=[])
    q("query-blockstats")
    histogram(id="disk", boundaries_read=[5, 6], boundaries=[1])
    q("query-blockstats")
    histogram(id="disk")
    q("query-blockstats")
    histogram(id="drive0", boundaries=[10, 20])
    histogram(id="drive1", boundaries=[10, 20])
    histogram(id="cd0", boundaries=[10, 20])
    histogram(id="scsi", boundaries=[10, 20])
    histogram(id="/machine/peripheral/disk", boundaries=[10, 20])
    q("query-pr-managers")
    q("query-iothreads")
    q("block_resize", {"device": "disk", "size": 512})
    q("block_resize", {"device": "cd0", "size": 512})
    q("blockdev-add", {"driver": "null-co", "node-name": "cd0"})
    q("blockdev-add", {"driver": "raw", "node-name": "rr", "file": "cd0"})


@against_system("-M", "pc")
def test_drives_of_the_human_monitor(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "raw", "a", "1M")

    def h(line: str) -> None:
        q("human-monitor-command", {"command-line": line})

    a = q.path("a")
    h(f"drive_add 0 if=none,id=d0,file={a},format=raw")
    h(f"drive_add 0 if=none,id=d0,file={a},format=raw")
    h("drive_add 0 if=none,id=d1,file=/nope,format=raw")
    h("drive_add 0 if=zz,id=d1")
    h("drive_add 0 if=none")
    h(f"drive_add 0 if=virtio,id=dv,file={a},format=raw")
    h("drive_add -n 0 driver=null-co,node-name=n0")
    h("drive_add -n 0 driver=null-co")
    h("drive_add 0 zz=1")
    h("drive_add 0")
    q("query-block")
    h("device_add virtio-scsi-pci,id=s")
    h("device_add scsi-hd,drive=d0,id=x")
    q("query-block")
    h("drive_del d0")
    q("query-block")
    h("drive_del d0")
    h("drive_del n0")
    h("drive_del n0")
    h("drive_del nope")
    h("drive_del none0")
    q("query-block")
    q("query-named-block-nodes")


test_query_of_scsi = against_system(*SCSI.split())(query)
test_query_of_ide = against_system(*IDE.split())(query)


test_media_of_scsi = against_system(*SCSI.split())(media)
test_media_of_ide = against_system(*IDE.split())(media)


test_throttle_of_scsi = against_system(*SCSI.split())(throttle)
test_throttle_of_ide = against_system(*IDE.split())(throttle)

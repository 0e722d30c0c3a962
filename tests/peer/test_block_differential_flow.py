"""Throttling, thresholds, threads and children that come and go, on QEMU's storage daemon and on ours."""

from __future__ import annotations

from typing import Any

from qobra.testing.differential import Run, against_storage_daemon, against_system


@against_storage_daemon
def test_flow(q: Run) -> None:
    q.add("null-co", node_name="n0", size=1 << 20)

    def oa(*, differs: str | None = None, **properties: Any) -> None:
        q.do("object-add", differs=differs, **properties)

    oa(qom_type="throttle-group", id="t0", limits={"iops-total": 100})
    oa(qom_type="throttle-group", id="t0", limits={"iops-total": 100})
    oa(qom_type="throttle-group", id="t1", limits={"iops-total": -1})
    oa(qom_type="throttle-group", id="t1", limits={"iops-total": 100, "iops-read": 5})
    oa(qom_type="throttle-group", id="t1", limits={"iops-total-max": 100})
    oa(qom_type="throttle-group", id="t1", limits={"iops-total": 100, "iops-total-max": 50})
    oa(qom_type="throttle-group", id="t1", limits={"iops-total": 100, "iops-total-max-length": 0})
    oa(qom_type="throttle-group", id="t1", limits={"iops-total": 100, "iops-total-max-length": 5})
    oa(qom_type="throttle-group", id="t1", limits={"bps-total": 1 << 60})
    oa(qom_type="throttle-group", id="t1", limits={"iops-size": 100})
    oa(qom_type="throttle-group", id="t1", limits={"iops-size": 100, "iops-read": 10})
    oa(qom_type="throttle-group", id="t2", limits={"zz": 100})
    oa(qom_type="throttle-group", id="t2", limits=5)
    oa(qom_type="throttle-group", id="t2", **{"x-iops-total": 7, "x-iops-total-max": 9, "x-iops-total-max-length": 3})
    oa(qom_type="throttle-group", id="t3", **{"x-iops-total": 7, "x-iops-read": 3})
    oa(qom_type="throttle-group", id="t3", **{"x-iops-total": -7})
    oa(qom_type="throttle-group", id="t3", **{"x-zz": 7}, differs="object-properties")
    oa(qom_type="throttle-group", id="t4")
    for i in ("t0", "t1", "t2", "t4"):
        q("qom-get", {"path": i, "property": "limits"})
        q("qom-get", {"path": "/objects/" + i, "property": "x-iops-total"})
    q("qom-get", {"path": "t0", "property": "zz"})
    q("qom-get", {"path": "zz", "property": "zz"})
    q("qom-set", {"path": "t0", "property": "limits", "value": {"iops-total": 50}})
    q("qom-get", {"path": "t0", "property": "limits"})
    q("qom-set", {"path": "t0", "property": "limits", "value": {"iops-total": 0, "bps-write": 3}})
    q("qom-get", {"path": "t0", "property": "limits"})
    q("qom-set", {"path": "t0", "property": "limits", "value": {"bps-write-max": 2}})
    q("qom-set", {"path": "t0", "property": "limits", "value": {"zz": 2}})
    q("qom-set", {"path": "t0", "property": "limits", "value": 2})
    q("qom-set", {"path": "t0", "property": "x-iops-total", "value": 2})
    q.add("throttle", node_name="th", file="n0", throttle_group="t0")
    q("object-del", {"id": "t0"})
    q("object-del", {"id": "t4"})
    q("object-del", {"id": "t4"})
    q("qom-list", {"path": "/objects/t0"})
    q("qom-list", {"path": "/objects"})
    q("qom-list-types", {"implements": "throttle-group"})
    q("blockdev-del", {"node-name": "th"})
    q("object-del", {"id": "t0"})
    q.do("block-set-write-threshold", node_name="n0", write_threshold=1000)
    q.do("block-set-write-threshold", node_name="nope", write_threshold=1000)
    q.do("block-set-write-threshold", node_name="n0", write_threshold=-1, differs="write-threshold")
    q.do("block-set-write-threshold", node_name="n0", write_threshold="x")
    q.do("block-set-write-threshold", node_name="n0", write_threshold=0)
    q.do("block-set-write-threshold", node_name="n0", write_threshold=1 << 62)
    q("query-named-block-nodes")
    oa(qom_type="iothread", id="io0")
    oa(qom_type="pr-manager-helper", id="pr0", path="/nope")
    oa(qom_type="pr-manager-helper", id="pr0")
    q.do("x-blockdev-set-iothread", node_name="nope", iothread="io0")
    q.do("x-blockdev-set-iothread", node_name="n0", iothread="nope")
    q.do("x-blockdev-set-iothread", node_name="n0", iothread=None)
    q("object-del", {"id": "io0"})
    q("object-del", {"id": "io0"})


@against_storage_daemon
def test_change(q: Run) -> None:
    for n in ("a", "b", "c", "d"):
        q.add("null-co", node_name=n, size=1 << 20)
    q.add("quorum", node_name="q", children=["a", "b"], vote_threshold=2)
    q.add("quorum", node_name="qb", children=["a", "b"], vote_threshold=2, blkverify=True)
    q.do("x-blockdev-change", parent="q")
    q.do("x-blockdev-change", parent="q", child="children.0", node="c")
    q.do("x-blockdev-change", parent="q", child="children.0")
    q.do("x-blockdev-change", parent="q", child="zz")
    q.do("x-blockdev-change", parent="q", node="zz")
    q.do("x-blockdev-change", parent="nope", node="c")
    q.do("x-blockdev-change", parent="a", node="c")
    q.do("x-blockdev-change", parent="q", node="c")
    q("x-debug-query-block-graph")
    q.do("x-blockdev-change", parent="q", node="c")
    q.do("x-blockdev-change", parent="q", node="a")
    q.do("x-blockdev-change", parent="q", node="q")
    q.do("x-blockdev-change", parent="a", child="x")
    q.do("x-blockdev-change", parent="q", child="children.0")
    q.do("x-blockdev-change", parent="q", child="children.0")
    q.do("x-blockdev-change", parent="q", child="children.1")
    q("query-named-block-nodes")
    q.do("x-blockdev-change", parent="q", node="d")
    q("x-debug-query-block-graph")
    q.do("x-blockdev-change", parent="qb", node="d")
    q.do("x-blockdev-change", parent="q", child="children.2")
    q.add("raw", node_name="r", file="d")
    q.do("x-blockdev-change", parent="q", node="d")
    q("x-debug-query-block-graph")


_UNLIMITED = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}


@against_system(
    *("-drive", "if=none,id=d0,driver=null-co,read-zeroes=on,size=1M,node-name=n0"),
    *("-drive", "if=none,id=d1,driver=null-co,read-zeroes=on,size=1M,node-name=n1"),
)
def test_groups_of_drives_objects_and_filters(q: Run) -> None:
    """A group is there as long as it has members, and one that has members cannot be deleted."""

    def limit(device: str, **limits: Any) -> None:
        q.do("block_set_io_throttle", **_UNLIMITED | limits | {"device": device})
        q("query-block")

    limit("d0", iops=100)
    limit("d1", group="d0", bps_wr=1 << 20, bps_wr_max=1 << 22, bps_wr_max_length=7)
    q.do("object-add", qom_type="throttle-group", id="object", limits={"iops-total": 7})
    limit("d0", group="object", iops=33, iops_size=4096)
    q("qom-get", {"path": "/objects/object", "property": "limits"})
    q.do("object-del", id="object")
    q("qom-set", {"path": "/objects/object", "property": "limits", "value": {"iops-total": 44}})
    q("query-block")
    for number, group in enumerate(("d0", "object", "", "none")):
        q.add("throttle", node_name=f"t{number}", throttle_group=group, file="n0")
    limit("d0")
    q.do("object-del", id="object")
    q.do("blockdev-del", node_name="t1")
    q.do("object-del", id="object")
    limit("d1", group="", iops=5)
    limit("d1", iops=6)
    limit("d1")
    q.do("blockdev-del", node_name="t0")
    q.add("throttle", node_name="late", throttle_group="d0", file="n1")

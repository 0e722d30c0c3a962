"""Throttling, thresholds, threads and children that come and go, on QEMU's storage daemon and on ours."""

from __future__ import annotations

from typing import Any

from qobra.testing.differential import Run, against_storage_daemon


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
    q.do("block-set-write-threshold", node_name="n0", write_threshold=-1)
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

"""Snapshots outside and inside of images, backing file names, transactions, on QEMU's storage daemon and on ours."""

from __future__ import annotations

from typing import Any

from qobra.testing.differential import Run, against_storage_daemon


def files(nodes: list[dict[str, Any]]) -> list[list[Any]]:
    """What lies on what."""
    return [[node["node-name"], node["file"], node.get("backing_file"), node["ro"]] for node in formats(nodes)]


def formats(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the files, whose sizes are the format driver's own affair."""
    return [node for node in nodes if node["drv"] != "file"]


@against_storage_daemon
def test_snapshots(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "qcow2", "a", "1M")
    q.tool("qemu-img", "create", "-f", "qcow2", "b", "1M")
    q.tool("qemu-img", "create", "-f", "raw", "r", "1M")
    q.add("qcow2", node_name="a", file=q.file("a"))
    q.add("qcow2", node_name="b", file=q.file("b"), backing=None)
    q.add("raw", node_name="r", file=q.file("r"))
    q.add("qcow2", node_name="ro", file=q.file("a"), read_only=True)
    q.do("blockdev-snapshot", node="nope", overlay="b")
    q.do("blockdev-snapshot", node="a", overlay="nope")
    q.do("blockdev-snapshot", node="a", overlay="a")
    q.do("blockdev-snapshot", node="a", overlay="r")
    q.do("blockdev-snapshot", node="a", overlay="b")
    q.do("blockdev-snapshot", node="a", overlay="b")
    q.do("blockdev-snapshot", node="b", overlay="a")
    q("query-named-block-nodes", pick=files)
    q("query-named-block-nodes", pick=lambda nodes: [node["node-name"] for node in nodes])
    q("x-debug-query-block-graph")
    # Somebody has to use the overlays, or they are gone at once.
    q("nbd-server-start", {"addr": {"type": "unix", "data": {"path": q.path("socket")}}})
    q.do("block-export-add", type="nbd", id="e", node_name="b", writable=True)
    q.do("block-export-add", type="nbd", id="er", node_name="r", writable=True)
    q.do("blockdev-snapshot-sync", device="nope", snapshot_file=q.path("s"))
    q.do("blockdev-snapshot-sync", snapshot_file=q.path("s"))
    q.do("blockdev-snapshot-sync", node_name="b", snapshot_file=q.path("s"))
    q.do("blockdev-snapshot-sync", node_name="b", snapshot_node_name="b", snapshot_file=q.path("s"))
    q.do("blockdev-snapshot-sync", node_name="b", snapshot_node_name="0x", snapshot_file=q.path("s"))
    q.do("blockdev-snapshot-sync", node_name="b", snapshot_node_name="s1", format="zz", snapshot_file=q.path("s"))
    q.do("blockdev-snapshot-sync", node_name="b", snapshot_node_name="s1", format="raw", snapshot_file=q.path("s"))
    q.do(
        "blockdev-snapshot-sync", node_name="b", snapshot_node_name="s1", mode="existing", snapshot_file=q.path("nope")
    )
    q.do("blockdev-snapshot-sync", node_name="b", snapshot_node_name="s1", snapshot_file="/nope/x")
    q.do("blockdev-snapshot-sync", node_name="b", snapshot_node_name="s1", snapshot_file=q.path("s"))
    q.do("blockdev-snapshot-sync", node_name="a", snapshot_node_name="s2", snapshot_file=q.path("s"))
    q.do("blockdev-snapshot-sync", node_name="r", snapshot_node_name="s2", snapshot_file=q.path("s2"))
    q("query-named-block-nodes", pick=files)
    q("query-named-block-nodes", pick=lambda nodes: [node["node-name"] for node in nodes])
    q("x-debug-query-block-graph")
    q("query-named-block-nodes", pick=formats)
    q.do("change-backing-file", device="nope", image_node_name="b", backing_file="x")
    q.do("change-backing-file", device="s1", image_node_name="nope", backing_file="x")
    q.do("change-backing-file", device="s1", image_node_name="a", backing_file="x")
    q.do("change-backing-file", device="s1", image_node_name="s1", backing_file="x")
    q.do("change-backing-file", device="s1", image_node_name="b", backing_file="y")
    q.do("change-backing-file", device="s1", image_node_name="r", backing_file="y")
    q.do("change-backing-file", device="s1", image_node_name="b", backing_file="y" * 2000, differs="long-names")
    q("query-named-block-nodes", pick=formats)
    q.do("blockdev-snapshot-internal-sync", device="nope", name="x")
    q.do("blockdev-snapshot-internal-sync", device="r", name="x")
    q.do("blockdev-snapshot-internal-sync", device="s1", name="")
    q.do("blockdev-snapshot-internal-sync", device="s1", name="x")
    q.do("blockdev-snapshot-internal-sync", device="s1", name="x")
    q.do("blockdev-snapshot-internal-sync", device="b", name="x")
    q.do("blockdev-snapshot-delete-internal-sync", device="nope", name="x")
    q.do("blockdev-snapshot-delete-internal-sync", device="s1")
    q.do("blockdev-snapshot-delete-internal-sync", device="s1", id="7")
    q.do("blockdev-snapshot-delete-internal-sync", device="s1", name="y")
    q.do("blockdev-snapshot-delete-internal-sync", device="s1", id="1", name="y")
    q("query-named-block-nodes", pick=lambda r: [n["image"].get("snapshots") for n in r if n["drv"] != "file"])
    q.do("blockdev-snapshot-delete-internal-sync", device="s1", id="1", name="x")
    q.do("blockdev-snapshot-delete-internal-sync", device="s1", id="1")
    q.do("blockdev-snapshot-delete-internal-sync", device="r", name="x")

    def transaction(*actions: tuple[str, dict[str, Any]]) -> None:
        q.do("transaction", actions=[{"type": kind, "data": data} for kind, data in actions])

    transaction()
    transaction(("abort", {}))
    transaction(("zz", {}))
    transaction(("block-dirty-bitmap-add", {"node": "s1", "name": "b0"}), ("abort", {}))
    transaction(
        ("block-dirty-bitmap-add", {"node": "s1", "name": "b0"}),
        ("block-dirty-bitmap-add", {"node": "s1", "name": "b0"}),
    )
    transaction(
        ("block-dirty-bitmap-add", {"node": "s1", "name": "b0"}),
        ("block-dirty-bitmap-disable", {"node": "s1", "name": "b0"}),
    )
    transaction(
        ("block-dirty-bitmap-clear", {"node": "s1", "name": "b0"}),
        ("block-dirty-bitmap-remove", {"node": "s1", "name": "b0"}),
        ("abort", {}),
    )
    transaction(("blockdev-snapshot-internal-sync", {"device": "s1", "name": "t"}), ("abort", {}))
    transaction(
        ("blockdev-snapshot-sync", {"node-name": "s1", "snapshot-node-name": "s9", "snapshot-file": q.path("s9")}),
        ("abort", {}),
    )
    transaction(
        ("blockdev-snapshot-sync", {"node-name": "s1", "snapshot-node-name": "s9", "snapshot-file": q.path("s9")}),
        ("blockdev-snapshot-sync", {"node-name": "r", "snapshot-node-name": "s9", "snapshot-file": q.path("s10")}),
    )
    transaction(("blockdev-backup", {"job-id": "j", "device": "s1", "target": "nope", "sync": "full"}))
    transaction(("blockdev-backup", {"job-id": "j", "device": "s1", "target": "r", "sync": "zz"}))
    transaction(("drive-backup", {"job-id": "j", "device": "s1", "target": q.path("t"), "sync": "full"}), ("abort", {}))
    q("query-named-block-nodes", pick=formats)
    q("query-jobs")

"""Changes of the graph, of sizes and of what is exported, on QEMU's storage daemon and on ours."""

from __future__ import annotations

from typing import Any

from qobra.testing.differential import Run, against_storage_daemon


def formats(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the files, whose sizes are the format driver's own affair."""
    return [node for node in nodes if node["drv"] != "file"]


@against_storage_daemon
def test_reopen(q: Run) -> None:
    for n in ("a", "b", "c"):
        q.tool("qemu-img", "create", "-f", "qcow2", n + ".qcow2", "1M")
    q.add("file", node_name="fa", filename=q.path("a.qcow2"))
    q.add("qcow2", node_name="a", file="fa")
    q.add("qcow2", node_name="b", file=q.file("b.qcow2"))
    q.add("qcow2", node_name="c", file=q.file("c.qcow2"), backing="b")

    def ro(*nodes: dict[str, Any], differs: str | None = None) -> None:
        options = [{name.replace("_", "-"): value for name, value in node.items()} for node in nodes]
        q.do("blockdev-reopen", options=options, differs=differs)

    ro({"driver": "qcow2", "node_name": "nope", "file": "fa"})
    ro({"driver": "qcow2", "node_name": "a"})
    ro({"driver": "qcow2", "file": "fa"})
    ro({"driver": "raw", "node_name": "a", "file": "fa"})
    ro({"driver": "qcow2", "node_name": "a", "file": "nope"})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "read_only": True})
    q("query-named-block-nodes")
    q("x-debug-query-block-graph")
    ro({"driver": "qcow2", "node_name": "a", "file": "fa"})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "lazy_refcounts": True})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "cache": {"direct": True}})
    ro(
        {
            "driver": "qcow2",
            "node_name": "a",
            "file": "fa",
            "cache": {"no-flush": True},
            "discard": "unmap",
            "detect_zeroes": "unmap",
        }
    )
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "detect_zeroes": "unmap"}, differs="reopen-discard")
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "force_share": True})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "read_only": True, "force_share": True})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "overlap_check": "none"})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "l2_cache_size": 65536})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "zz": 1})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "backing": "b"})
    q("query-named-block-nodes")
    ro({"driver": "qcow2", "node_name": "a", "file": "fa"})
    ro({"driver": "qcow2", "node_name": "a", "file": "fa", "backing": None})
    ro({"driver": "qcow2", "node_name": "b", "file": q.file("b.qcow2"), "backing": "c"})
    ro({"driver": "qcow2", "node_name": "c", "file": q.file("c.qcow2"), "backing": "c"})
    ro({"driver": "qcow2", "node_name": "c", "file": q.file("c.qcow2"), "backing": "a"})
    q("x-debug-query-block-graph")
    ro({"driver": "qcow2", "node_name": "c", "file": q.file("c.qcow2"), "backing": None})
    q("x-debug-query-block-graph")
    ro({"driver": "qcow2", "node_name": "c", "file": q.file("zz.qcow2"), "backing": "a"})
    ro({"driver": "qcow2", "node_name": "c", "file": "fa"})
    ro({"driver": "file", "node_name": "fa", "filename": q.path("b.qcow2")})
    ro({"driver": "file", "node_name": "fa", "filename": q.path("a.qcow2"), "read_only": True})
    ro({"driver": "file", "node_name": "fa", "filename": q.path("a.qcow2"), "locking": "off"})
    ro({"driver": "file", "node_name": "fa", "filename": q.path("a.qcow2"), "aio": "native"})
    ro({"driver": "file", "node_name": "fa", "filename": q.path("a.qcow2"), "aio": "native", "cache": {"direct": True}})
    ro({"driver": "file", "node_name": "fa", "filename": q.path("a.qcow2"), "auto_read_only": True})
    ro(
        {"driver": "qcow2", "node_name": "a", "file": "fa", "read_only": True},
        {"driver": "qcow2", "node_name": "c", "file": "nope"},
    )
    q("query-named-block-nodes")
    ro({"driver": "qcow2", "node_name": "a", "file": "fa"}, {"driver": "qcow2", "node_name": "a", "file": "fa"})
    q.add("null-co", node_name="n0")
    ro({"driver": "null-co", "node_name": "n0", "size": 512})
    ro({"driver": "null-co", "node_name": "n0", "latency_ns": 512})
    ro({"driver": "null-co", "node_name": "n0"})
    q.add("throttle", node_name="tt", file="n0", throttle_group="x")
    q("object-add", {"qom-type": "throttle-group", "id": "tg0", "limits": {"iops-total": 100}})
    q("object-add", {"qom-type": "throttle-group", "id": "tg1", "limits": {"iops-total": 100}})
    q.add("throttle", node_name="tt", file="n0", throttle_group="tg0")
    ro({"driver": "throttle", "node_name": "tt", "file": "n0", "throttle_group": "tg1"})
    ro({"driver": "throttle", "node_name": "tt", "file": "n0", "throttle_group": "tg9"})
    q("object-del", {"id": "tg0"})
    q("object-del", {"id": "tg1"})
    q.add("raw", node_name="r0", file="n0")
    ro({"driver": "raw", "node_name": "r0", "file": "n0", "offset": 512})
    ro({"driver": "raw", "node_name": "r0", "file": "n0", "size": 512})
    ro({"driver": "raw", "node_name": "r0", "file": "tt"})
    q("query-named-block-nodes")
    q("blockdev-del", {"node-name": "tt"})
    q.add("copy-on-read", node_name="cor", file="n0")
    ro({"driver": "copy-on-read", "node_name": "cor", "file": "n0", "read_only": True})
    q.add("blkdebug", node_name="bd", image="n0")
    ro({"driver": "blkdebug", "node_name": "bd", "image": "n0", "align": 512})
    ro({"driver": "blkdebug", "node_name": "bd", "image": "n0"})
    q("x-debug-query-block-graph")
    ro({"driver": "raw", "node_name": "r0", "file": "bd"})
    q("x-debug-query-block-graph")


@against_storage_daemon
def test_resize(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "qcow2", "a.qcow2", "1M")
    q.tool("qemu-img", "create", "-f", "raw", "a.raw", "1M")
    q.add("qcow2", node_name="a", file=q.file("a.qcow2"))
    q.add("raw", node_name="r", file=q.file("a.raw"))
    q.add("raw", node_name="ro", file=q.file("a.raw"), read_only=True)
    for s in (0, 511, 512, 1 << 20, (1 << 20) + 1, (1 << 20) + 512, 1 << 62, (1 << 63) - 1, (1 << 63) - 512, 1 << 36):
        q("block_resize", {"node-name": "a", "size": s})
        q("query-named-block-nodes", pick=formats)
    for s in (0, 511, 512, 1 << 20, (1 << 20) + 1, 1 << 62, (1 << 63) - 1):
        q("block_resize", {"node-name": "r", "size": s})
        q("query-named-block-nodes", pick=formats)
    q("block_resize", {"node-name": "ro", "size": 512})
    q("block-dirty-bitmap-add", {"node": "a", "name": "b0"})
    q("block_resize", {"node-name": "a", "size": 2 << 20})
    q("query-named-block-nodes", pick=formats)
    q.add("throttle", node_name="zz", file="a", throttle_group="x")
    q("object-add", {"qom-type": "throttle-group", "id": "tg0"})
    q.add("throttle", node_name="zz", file="a", throttle_group="tg0")
    q("block_resize", {"node-name": "zz", "size": 3 << 20})
    q("query-named-block-nodes", pick=formats)
    q("nbd-server-start", {"addr": {"type": "unix", "data": {"path": q.path("s")}}})
    q("block-export-add", {"type": "nbd", "id": "e", "node-name": "a"})
    q("block_resize", {"node-name": "a", "size": 3 << 20})
    q("block_resize", {"node-name": "a", "size": 1 << 20})
    q("block_resize", {"node-name": "zz", "size": 1 << 20})


@against_storage_daemon
def test_bitmaps(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "qcow2", "a.qcow2", "1M")
    q.add("qcow2", node_name="a", file=q.file("a.qcow2"))
    q.add("null-co", node_name="n", size=1 << 20)

    def b(verb: str, *, differs: str | None = None, **arguments: Any) -> None:
        q.do(f"block-dirty-bitmap-{verb}", differs=differs, **arguments)

    b("add", node="a", name="b0")
    b("add", node="a", name="b0")
    b("add", node="nope", name="b0")
    b("add", node="a", name="")
    b("add", node="a", name="x" * 1024)
    b("add", node="a", name="x" * 1023)
    b("add", node="a", name="g", granularity=1)
    b("add", node="a", name="g", granularity=511)
    b("add", node="a", name="g", granularity=512)
    b("add", node="a", name="g2", granularity=(1 << 31))
    b("add", node="a", name="g3", granularity=1 << 40)
    b("add", node="a", name="g4", granularity=0)
    b("add", node="a", name="p0", persistent=True)
    b("add", node="n", name="p0", persistent=True)
    b("add", node="n", name="n0", disabled=True)
    b("add", node="n", name="n1")
    b("remove", node="a", name="nope")
    b("remove", node="nope", name="nope")
    b("remove", node="a", name="g")
    b("clear", node="a", name="nope")
    b("clear", node="a", name="b0")
    b("disable", node="a", name="b0")
    b("enable", node="a", name="b0")
    b("enable", node="a", name="zz")
    b("merge", node="a", target="b0", bitmaps=["nope"])
    b("merge", node="a", target="nope", bitmaps=["b0"])
    b("merge", node="a", target="b0", bitmaps=["p0"])
    b("merge", node="a", target="b0", bitmaps=["b0"])
    b("merge", node="a", target="b0", bitmaps=[{"node": "n", "name": "n1"}])
    b("merge", node="a", target="b0", bitmaps=[{"node": "zz", "name": "n1"}])
    b("merge", node="a", target="b0", bitmaps=[1], differs="type-names")
    b("merge", node="a", target="b0", bitmaps=["p0", "g2"])
    q("query-named-block-nodes", pick=formats)
    q("x-debug-block-dirty-bitmap-sha256", {"node": "a", "name": "b0"})
    q("x-debug-block-dirty-bitmap-sha256", {"node": "a", "name": "nope"})
    q("block_resize", {"node-name": "a", "size": 3 << 20})
    q("x-debug-block-dirty-bitmap-sha256", {"node": "a", "name": "b0"})
    q("blockdev-del", {"node-name": "a"})
    q.add("qcow2", node_name="a", file=q.file("a.qcow2"))
    q("query-named-block-nodes", pick=formats)
    b("remove", node="a", name="p0")
    q.add("qcow2", node_name="ar", file=q.file("a.qcow2"), read_only=True)
    q("blockdev-del", {"node-name": "a"})
    q.add("qcow2", node_name="ar", file=q.file("a.qcow2"), read_only=True)
    q("query-named-block-nodes", pick=formats)
    b("add", node="ar", name="p1", persistent=True)
    b("add", node="ar", name="p2")
    q("nbd-server-start", {"addr": {"type": "unix", "data": {"path": q.path("s")}}})
    q("block-export-add", {"type": "nbd", "id": "e", "node-name": "ar", "bitmaps": ["p2"]})
    b("remove", node="ar", name="p2")
    b("clear", node="ar", name="p2")
    b("enable", node="ar", name="p2")
    q("query-named-block-nodes", pick=formats)
    q("block-export-add", {"type": "nbd", "id": "e2", "node-name": "ar", "name": "x", "bitmaps": ["p2"]})
    q("block-export-add", {"type": "nbd", "id": "e3", "name": "y", "node-name": "ar", "bitmaps": ["zz"]})
    b("disable", node="ar", name="p2")
    q("block-export-del", {"id": "e"})
    b("disable", node="ar", name="p2")


@against_storage_daemon
def test_exports(q: Run) -> None:
    q.add("null-co", node_name="n", size=1 << 20)
    q.add("null-co", node_name="r", size=1 << 20, read_only=True)

    def export(type: str, *, differs: str | None = None, **options: Any) -> None:
        q.do("block-export-add", type=type, differs=differs, **options)

    u = {"type": "unix", "data": {"path": q.path("s")}}
    export("nbd", id="e0", node_name="n")
    q("nbd-server-add", {"device": "n"})
    q("nbd-server-remove", {"name": "n"})
    q("nbd-server-stop")
    q("query-block-exports")
    q("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "/nope/x"}}})
    q("nbd-server-start", {"addr": {"type": "unix", "data": {}}})
    q("nbd-server-start", {"addr": {"type": "unix"}})
    q("nbd-server-start", {"addr": {"type": "zz", "data": {}}})
    q("nbd-server-start", {"addr": u, "tls-creds": "nope"})
    q("nbd-server-start", {"addr": u, "tls-authz": "nope"})
    q("nbd-server-start", {"addr": u})
    q("nbd-server-start", {"addr": u})
    export("nbd", id="e0", node_name="n")
    export("nbd", id="e0", node_name="n")
    export("nbd", id="e1", node_name="n")
    export("nbd", id="e1", node_name="n", name="x")
    export("nbd", id="0", node_name="n", name="y")
    export("nbd", id="e2", node_name="nope", name="y")
    export("nbd", id="e2", node_name="r", name="y", writable=True)
    export("nbd", id="e2", node_name="r", name="y")
    export("nbd", id="e3", node_name="n", name="z" * 4097)
    export("nbd", id="e3", node_name="n", name="zz", description="d" * 4097)
    export("nbd", id="e3", node_name="n", name="zz", description="d", writable=True, writethrough=True)
    export("nbd", id="e4", node_name="n", name="e4", iothread="nope")
    export("nbd", id="e4", node_name="n", name="e4", fixed_iothread=True)
    export("zz", id="e4", node_name="n")
    export("nbd", id="e5", node_name="n", name="e5", bitmaps=["x"])
    q("query-block-exports")
    q("x-debug-query-block-graph")
    q("blockdev-del", {"node-name": "n"})
    q("nbd-server-add", {"device": "n", "name": "e0"})
    q("nbd-server-add", {"device": "n"})
    q("nbd-server-add", {"device": "nope"})
    q("nbd-server-add", {"device": "r", "writable": True, "name": "rw"})
    q("nbd-server-add", {"device": "n", "bitmap": "x", "name": "e9"})
    q("query-block-exports")
    q("nbd-server-remove", {"name": "n"})
    q("nbd-server-remove", {"name": "e0"})
    q("nbd-server-remove", {"name": "zz"})
    q("block-export-del", {"id": "zz"})
    q("block-export-del", {"id": "e1"})
    q("block-export-del", {"id": "e1"})
    q("query-block-exports")
    q("nbd-server-stop")
    q("query-block-exports")
    q("nbd-server-stop")
    export("vhost-user-blk", id="v0", node_name="n", addr={"type": "unix", "path": q.path("v")})
    export("vhost-user-blk", id="v1", node_name="n", addr={"type": "unix", "path": q.path("v")})
    export(
        type="vhost-user-blk",
        id="v1",
        node_name="n",
        addr={"type": "unix", "path": q.path("v2")},
        logical_block_size=511,
    )
    export("vhost-user-blk", id="v1", node_name="n", addr={"type": "unix", "path": q.path("v2")}, num_queues=0)
    export("vhost-user-blk", id="v1", node_name="n", addr={"type": "unix"})
    q("query-block-exports")
    q("block-export-del", {"id": "v0"})
    q("query-block-exports")


@against_storage_daemon
def test_what_a_job_forbids(q: Run) -> None:
    for name in "abc":
        q.tool("qemu-img", "create", "-f", "qcow2", name, "64M")
    q.tool("qemu-io", "-c", "write -P 7 0 64M", "a")
    for name in "abc":
        q.add("qcow2", node_name=name, file=q.file(name, node_name=f"{name}f"))
    q("nbd-server-start", {"addr": {"type": "unix", "data": {"path": q.path("socket")}}})
    # It has copied all and only has yet to be finalized. One that copies slowly forbids the same, but QEMU's daemon may
    # wait forever to drain it: its main thread polls in blockdev-reopen, or in a transaction, and nothing wakes it.
    q.do("blockdev-backup", job_id="j", device="a", target="b", sync="full", auto_finalize=False)
    q.wait("JOB_STATUS_CHANGE", id="j", status="pending")
    q("query-named-block-nodes", pick=lambda nodes: [node["node-name"] for node in nodes])
    q("x-debug-query-block-graph")
    for name in "ab":
        node = {"driver": "qcow2", "node-name": name, "file": f"{name}f"}
        q.do("blockdev-del", node_name=name)
        q.do("block_resize", node_name=name, size=2 << 20)
        q.do("blockdev-reopen", options=[node])
        q.do("blockdev-reopen", options=[{**node, "read-only": True}])
        q.do("blockdev-snapshot-internal-sync", device=name, name="s")
        q.do("block-commit", job_id="k", device=name)
        q.do("blockdev-mirror", job_id="k", device=name, target="c", sync="full")
        q.do("block-export-add", type="nbd", id=f"e{name}", name=name, node_name=name, writable=True)
        q.do("block-export-del", id=f"e{name}")
        q.do("change-backing-file", device=name, image_node_name=name, backing_file="x")
        q.do("block-dirty-bitmap-add", node=name, name="x")
        q.do("block-dirty-bitmap-remove", node=name, name="x")
    q("query-jobs", pick=lambda jobs: [[job["id"], job["type"], job["status"]] for job in jobs])
    q.do("job-cancel", id="j")
    q.wait("JOB_STATUS_CHANGE", id="j", status="null")
    q("query-named-block-nodes", pick=formats)


@against_storage_daemon
def test_creation(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "raw", "r", "1M")
    q.add("file", node_name="f", filename=q.path("r"))
    q.add("null-co", node_name="n", size=1 << 20)
    q.add("null-co", node_name="ro", size=1 << 20, read_only=True)
    count = 0

    def create(driver: str, **options: Any) -> None:
        nonlocal count
        count += 1
        job = f"j{count}"
        named = {name.replace("_", "-"): value for name, value in options.items()}
        q("blockdev-create", {"job-id": job, "options": {"driver": driver, **named}})
        if "return" in q.steps[-1].reply:
            q.wait("JOB_STATUS_CHANGE", id=job, status="concluded")
            q("query-jobs")
            q("job-dismiss", {"id": job})

    create("file", filename=q.path("x"), size=1 << 20)
    create("file", filename=q.path("x"), size=1 << 20, preallocation="falloc")
    create("file", filename=q.path("x"), size=1 << 20, preallocation="metadata")
    create("file", filename=q.path("x"), size=-1)
    create("file", filename="/nope/x", size=1)
    create("file", filename=q.path("x"), size=1 << 62)
    create("file", filename=q.path("x"), size=65536, nocow=True)
    create("file", filename=q.path("x"), size=65536, extent_size_hint=65536)
    create("raw", size=1)
    create("null-co", size=1)
    create("blkdebug")
    create("zz")
    create("qcow2", file="f", size=1 << 20)
    create("qcow2", file="nope", size=1 << 20)
    create("qcow2", file=q.file("x"), size=1 << 20)
    create("qcow2", file="ro", size=1 << 20)
    create("qcow2", file="f", size=511)
    create("qcow2", file="f", size=0)
    create("qcow2", file="f", size=1 << 20, version="v2", cluster_size=1)
    create("qcow2", file="f", size=1 << 20, cluster_size=513)
    create("qcow2", file="f", size=1 << 20, cluster_size=1 << 22)
    create("qcow2", file="f", size=1 << 20, version="v2", lazy_refcounts=True)
    create("qcow2", file="f", size=1 << 20, version="v2", refcount_bits=8)
    create("qcow2", file="f", size=1 << 20, refcount_bits=3)
    create("qcow2", file="f", size=1 << 20, refcount_bits=128)
    create("qcow2", file="f", size=1 << 20, extended_l2=True, cluster_size=4096)
    create("qcow2", file="f", size=1 << 20, extended_l2=True, version="v2")
    create("qcow2", file="f", size=1 << 20, compression_type="zz")
    create("qcow2", file="f", size=1 << 20, compression_type="zstd", version="v2")
    create("qcow2", file="f", size=1 << 20, backing_fmt="raw")
    create("qcow2", file="f", size=1 << 20, backing_file="nope", backing_fmt="raw")
    create("qcow2", file="f", size=1 << 20, data_file_raw=True)
    create("qcow2", file="f", size=1 << 20, encrypt={"format": "luks"})
    create("qcow2", file="f", size=1 << 20, encrypt={"format": "luks", "key-secret": "s"})
    create("qcow2", file="f", size=1 << 20, preallocation="zz")
    q.do("blockdev-create", job_id="0", options={"driver": "file", "filename": q.path("x"), "size": 1})
    q.do("blockdev-create", job_id="", options={"driver": "file", "filename": q.path("x"), "size": 1})
    q("query-named-block-nodes", pick=lambda nodes: [node["node-name"] for node in nodes])


@against_storage_daemon
def test_bitmaps_of_an_image_that_became_read_only(q: Run) -> None:
    """They stay as they are stored; what is recorded can still be chosen, and what is not stored changed."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "disk", "1M")
    q.add("file", node_name="file", filename=q.path("disk"))
    q.add("qcow2", node_name="disk", file="file")
    for name in ("stored", "other", "own"):
        q.do("block-dirty-bitmap-add", node="disk", name=name, persistent=name != "own")
    read_only = {"driver": "qcow2", "node-name": "disk", "file": "file", "read-only": True}
    q.do("blockdev-reopen", options=[read_only])
    for name in ("stored", "own"):
        q.do("block-dirty-bitmap-clear", node="disk", name=name)
        q.do("block-dirty-bitmap-merge", node="disk", target=name, bitmaps=["other"])
        q.do("block-dirty-bitmap-disable", node="disk", name=name)
        q.do("block-dirty-bitmap-enable", node="disk", name=name)
        q.do("block-dirty-bitmap-remove", node="disk", name=name)
    q("query-named-block-nodes", pick=formats)
    q.do("blockdev-reopen", options=[read_only | {"read-only": False}])
    q.do("block-dirty-bitmap-clear", node="disk", name="stored")
    q.do("block-dirty-bitmap-remove", node="disk", name="stored")
    q("query-named-block-nodes", pick=formats)

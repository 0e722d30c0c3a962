"""What random scripts (``python -m qobra.testing.fuzz``) found to be answered differently once."""

from __future__ import annotations

from typing import Any

from qobra.testing.differential import Run, against_storage_daemon

MIB = 1 << 20


def disk(q: Run, name: str, **options: Any) -> None:
    """A qcow2 node ``name`` on an image of that name."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", name, "1M")
    q.add("qcow2", node_name=name, file=q.file(name), **options)


@against_storage_daemon
def test_order_of_opening(q: Run) -> None:
    """The file comes first, then the name, then what the driver wants."""
    q.add("raw", node_name="a", file={"driver": "null-co", "node-name": "a"})
    q.add("quorum", vote_threshold=1, node_name="a", children=[{"driver": "null-co", "node-name": "a"}])
    q.add("quorum", vote_threshold=1, node_name="a", children=[{"driver": "null-co", "node-name": "b"}, "b"])
    q.add("quorum", vote_threshold=9, node_name="a", children=["x"])
    q.add("quorum", vote_threshold=1, node_name="d", children=[{"driver": "null-co", "node-name": "e"}] * 2)
    q.add("file", node_name="9x", filename="nope")
    q.add("file", node_name="a", filename="nope")
    q.add("raw", node_name="a", file={"driver": "file", "filename": "nope"})
    q.add("preallocate", node_name="a", file="b", prealloc_align=1)
    q.add("null-co", node_name="0bad", size=-1)
    q.add("throttle", node_name="t", throttle_group="nope", file="nope")
    q.add("throttle", node_name="t", throttle_group="nope", file="b")
    q("query-named-block-nodes")


@against_storage_daemon
def test_filters_and_formats(q: Run) -> None:
    q.do("object-add", qom_type="throttle-group", id="tg")
    q.add("null-co", node_name="n", size=MIB)
    q.add("null-co", node_name="small", size=65536)
    q.add("quorum", vote_threshold=1, node_name="q", children=["n", "small"])
    q.add("compress", node_name="c", file={"driver": "throttle", "throttle-group": "tg", "file": "n"})
    q.add("compress", node_name="c2", file={"driver": "blkdebug", "image": "n"})
    q.add("compress", node_name="c3", file={"driver": "compress", "file": "c"})
    q.add("copy-on-read", node_name="cor", file={"driver": "null-co", "read-only": True})
    q.add("copy-on-read", node_name="cor", read_only=True, file="n")
    q.do("blockdev-snapshot", node="n", overlay="c")
    disk(q, "top", backing="n")
    q.add("blkdebug", node_name="dbg", image="top")
    q.do("change-backing-file", device="dbg", image_node_name="dbg", backing_file="x")
    q.add("raw", node_name="r", file="small", size=512)
    q.do("blockdev-reopen", options=[{"driver": "raw", "node-name": "r", "file": "nope", "size": 1000}])


@against_storage_daemon
def test_permissions(q: Run) -> None:
    """A window onto a file does not resize it; a stream holds its filter."""
    q.tool("qemu-img", "create", "-q", "flat", "1M")
    q.add("file", node_name="flat", filename=q.path("flat"))
    q.add("raw", node_name="r1", file="flat", size=512)
    q.add("raw", node_name="r2", file="flat", size=MIB)
    q.add("null-co", node_name="n", size=MIB)
    q.do("blockdev-mirror", job_id="j", device="n", target="r2", sync="full", auto_dismiss=False)
    q.wait("BLOCK_JOB_READY")
    q("x-debug-query-block-graph")
    q.do("block-job-cancel", device="j")
    q.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    disk(q, "top", backing="n")
    q.do("block-stream", job_id="s", device="top", auto_finalize=False, filter_node_name="f")
    q.wait("JOB_STATUS_CHANGE", id="s", status="pending")
    q("x-debug-query-block-graph")
    q.do("blockdev-del", node_name="f")
    q.do("job-finalize", id="s")
    q.wait("JOB_STATUS_CHANGE", id="s", status="null")


@against_storage_daemon
def test_bitmaps(q: Run) -> None:
    q.add("null-co", node_name="n", size=MIB)
    q.do("block-dirty-bitmap-add", node="n", name="b")
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "kept", "1M")
    q.tool("qemu-img", "bitmap", "--add", "kept", "b")
    q.add("qcow2", node_name="kept", read_only=True, file=q.file("kept"))
    q.do("block-dirty-bitmap-merge", node="kept", target="b", bitmaps=["nope"])
    q.do("block-dirty-bitmap-merge", node="kept", target="b", bitmaps=[{"node": "n", "name": "b"}])


@against_storage_daemon
def test_job_errors(q: Run) -> None:
    """What a job fails with is told by the number of the error."""
    q.add("null-co", node_name="short", size=1000)
    disk(q, "top", backing="short")
    q.do("block-commit", job_id="j", device="top")
    q.wait("JOB_STATUS_CHANGE", id="j", status="null")


@against_storage_daemon
def test_progress_of_files_that_end_inside_a_sector(q: Run) -> None:
    """A mirror counts whole sectors, a backup whole clusters."""
    for name in ("odd", "even"):
        q.tool("truncate", "-s", "99999" if name == "odd" else "100352", name)
        q.add("file", node_name=name, filename=q.path(name))
    q.do("blockdev-mirror", job_id="m", device="odd", target="even", sync="full")
    q.wait("BLOCK_JOB_READY")
    q.do("job-complete", id="m")
    q.wait("JOB_STATUS_CHANGE", id="m", status="null")
    q.do("drive-backup", job_id="b", device="even", target=q.path("new"), sync="full")
    q.wait("JOB_STATUS_CHANGE", id="b", status="null")
    q.do("drive-backup", job_id="b", device="even", target=q.path("new"), sync="full", format="qcow2")
    q.wait("JOB_STATUS_CHANGE", id="b", status="null")


@against_storage_daemon
def test_snapshots_through_filters(q: Run) -> None:
    def images(nodes: Any) -> Any:
        return [(node["image"].get("cluster-size"), len(node["image"].get("snapshots", []))) for node in nodes]

    disk(q, "top")
    q.add("raw", node_name="raw", file="top")
    q.add("copy-on-read", node_name="cor", file="raw")
    q.do("blockdev-snapshot-internal-sync", device="cor", name="s0")
    q("query-named-block-nodes", {"flat": True}, pick=images)
    q.do("blockdev-snapshot-delete-internal-sync", device="cor", name="nope")
    q.do("blockdev-snapshot-delete-internal-sync", device="cor", name="s0", id="1")
    q.add("null-co", node_name="n", size=MIB)
    q.add("blkverify", node_name="v", test="n", raw="cor")
    q("query-named-block-nodes", {"flat": True}, pick=images)
    q.add("quorum", node_name="q", vote_threshold=1, children=["v"])
    q.do("blockdev-snapshot-internal-sync", device="q", name="s1")


@against_storage_daemon
def test_exports_and_their_node(q: Run) -> None:
    """First the node has to bear the export, then there has to be a server, then it must keep its size."""
    disk(q, "top")
    q.add("null-co", node_name="n")
    q.do("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "top", "file": "n"}])
    export = {"type": "nbd", "id": "e", "node-name": "n"}
    q("block-export-add", {**export, "writable": True})
    q("block-export-add", {**export, "node-name": "top"})
    q.do("nbd-server-start", addr={"type": "unix", "data": {"path": q.path("nbd")}})
    q("block-export-add", export)
    q("block-export-add", {**export, "name": "x" * 5000})
    q("block-export-add", {**export, "node-name": "top", "bitmaps": ["nope"]})
    q("block-export-add", {**export, "node-name": "top"})
    q.do("block_resize", node_name="top", size=2 * MIB)
    q("query-block-exports")


@against_storage_daemon
def test_backing_files_are_busy(q: Run) -> None:
    q.add("null-co", node_name="n", size=MIB)
    q.add("null-co", node_name="n2", size=MIB)
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
    base = {"driver": "qcow2", "node-name": "base", "file": q.file("base")}
    disk(q, "top", backing=base)
    q.do("blockdev-mirror", job_id="j", device="n", target="base", sync="full")
    q.do("blockdev-mirror", job_id="j", device="top", target="base", sync="full")
    q.do("blockdev-mirror", job_id="j", device="top", target="n", sync="full", replaces="base")
    q.do("blockdev-backup", job_id="j", device="n", target="base", sync="full")
    q.do("block_resize", node_name="base", size=MIB)
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "other", "1M")
    q.add("qcow2", node_name="o", file=q.file("other"), backing="nope")
    q.add("qcow2", node_name="o", file=q.file("other"), backing={"driver": "file", "filename": "nope"})
    q.add("qcow2", node_name="o", file=q.file("other"), backing={"driver": "null-co", "node-name": "o"})
    q.tool("qemu-img", "create", "-q", "flat", "1M")
    q.add("file", node_name="flat", filename=q.path("flat"))
    q.do("blockdev-create", job_id="c", options={"driver": "qcow2", "file": "flat", "data-file": "flat", "size": MIB})
    q.wait("JOB_STATUS_CHANGE", id="c", status="concluded")
    q("query-jobs")


@against_storage_daemon
def test_reopen_looks_at_all_names_first(q: Run) -> None:
    q.tool("truncate", "-s", "99999", "odd")
    q.add("file", node_name="odd", filename=q.path("odd"))
    q.add("raw", node_name="r", file="odd", size=MIB)
    q.add("raw", node_name="r", file="odd", offset=MIB)
    q.add("raw", node_name="r", file="odd", size=100352)
    raw = {"driver": "raw", "node-name": "r", "file": "nope"}
    q.do("blockdev-reopen", options=[raw, {"driver": "raw", "file": "odd"}])
    q.do("blockdev-reopen", options=[{**raw, "detect-zeroes": "unmap"}])
    q.add("null-co", node_name="n")
    q.add("blklogwrites", node_name="log", file="n", log="r", log_append=False, log_sector_size=512)
    q("query-named-block-nodes", {"flat": True}, pick=lambda nodes: nodes[0]["file"])


@against_storage_daemon
def test_permissions_of_an_active_commit(q: Run) -> None:
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
    disk(q, "top", backing={"driver": "qcow2", "node-name": "base", "file": q.file("base", node_name="f")})
    q.do("block-commit", job_id="j", device="top", filter_node_name="over")
    q.wait("BLOCK_JOB_READY")
    q("x-debug-query-block-graph")


@against_storage_daemon
def test_nodes_that_cannot_be_opened(q: Run) -> None:
    """What was opened of them leaves nothing behind."""
    q.tool("qemu-img", "create", "-q", "flat", "1M")
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "image", "1M")
    log = {"driver": "file", "filename": q.path("flat")}
    inner = {"driver": "blklogwrites", "file": {"driver": "null-co"}, "log": log}
    q.add("blklogwrites", node_name="l", file=inner, log=log)
    q.add("blklogwrites", node_name="l", file={"driver": "null-co"}, log=log, log_sector_size=1000)
    q.add("raw", node_name="a", detect_zeroes="unmap", file={"driver": "null-co", "node-name": "a"})
    q.add("file", node_name="f", filename=q.path("flat"))
    q.do("nbd-server-start", addr={"type": "unix", "data": {"path": q.path("nbd")}})
    q.do("block-export-add", type="nbd", id="e", node_name="f")
    q.do("blockdev-create", job_id="d", options={"driver": "qcow2", "file": "f", "size": MIB})
    q.wait("JOB_STATUS_CHANGE", id="d", status="concluded")
    q("query-jobs", pick=lambda jobs: [job["error"] for job in jobs if job["id"] == "d"])
    q("query-named-block-nodes", pick=lambda nodes: [node["node-name"] for node in nodes])


@against_storage_daemon
def test_filters_of_jobs_that_cannot_be_put_in_place(q: Run) -> None:
    q.tool("qemu-img", "create", "-q", "flat", "1M")
    q.add("null-co", node_name="other", size=MIB)
    q.add("null-co", node_name="fixed", size=MIB, read_only=True)
    q.add("raw", node_name="on-fixed", read_only=True, file="fixed")
    q.add("quorum", node_name="quorum", vote_threshold=1, children=["other", "fixed"])
    q.add("raw", node_name="on-quorum", file="quorum")
    q.do("block-stream", job_id="s", device="on-quorum")
    q.do("blockdev-backup", job_id="b", device="other", target="fixed", sync="none")
    q.add("file", node_name="file", filename=q.path("flat"))
    q.add("raw", node_name="mine", file="file", size=65536)
    q.do("blockdev-backup", job_id="b", device="file", target="other", sync="none")


@against_storage_daemon
def test_children_that_are_replaced(q: Run) -> None:
    q.add("null-co", node_name="n", size=MIB)
    q.add("quorum", node_name="q", vote_threshold=2, children=["n", "n"])
    q.add("blkverify", node_name="v", test="n", raw="q")
    q.do("blockdev-snapshot-sync", node_name="q", snapshot_file=q.path("new"), snapshot_node_name="s")
    q("query-named-block-nodes", pick=lambda nodes: [node["image"].get("cluster-size") for node in nodes])


@against_storage_daemon
def test_internal_snapshots_below_other_nodes(q: Run) -> None:
    disk(q, "disk")
    q.add("quorum", node_name="quorum", vote_threshold=1, children=["disk"])
    q.add("raw", node_name="raw", file="quorum")
    q.add("snapshot-access", node_name="access", file="disk")
    for name in ("disk", "raw", "access"):
        q.do("blockdev-snapshot-internal-sync", device=name, name=name)
    q(
        "query-named-block-nodes",
        pick=lambda nodes: [[each["name"] for each in node["image"].get("snapshots", [])] for node in nodes],
    )


@against_storage_daemon
def test_order_of_refusals(q: Run) -> None:
    q.add("null-co", node_name="n", size=MIB)
    copying = {"driver": "copy-before-write", "file": "n", "target": "n"}
    q.add("quorum", node_name="q", vote_threshold=2, children=["n", copying, "nope"])
    q.add("blkverify", node_name="v", test="n", raw={"driver": "null-co"})
    q.add("preallocate", node_name="fixed", read_only=True, file="n")
    q.do("nbd-server-start", addr={"type": "unix", "data": {"path": q.path("nbd")}})
    q.do("block-export-add", type="nbd", id="e", node_name="n", writable=True)
    q.do("blockdev-create", job_id="c", options={"driver": "qcow2", "file": "fixed", "size": MIB})
    q.wait("JOB_STATUS_CHANGE", id="c", status="concluded")
    q("query-jobs", pick=lambda jobs: [job.get("error") for job in jobs])
    q.add("null-co", node_name="target", size=MIB)
    q.do("blockdev-backup", job_id="b", device="v", target="target", sync="top")
    q.add("raw", node_name="w", file={"driver": "raw", "file": "n", "size": 512}, size=1000)


@against_storage_daemon
def test_options_that_are_looked_at_first(q: Run) -> None:
    disk(q, "disk")
    for name in ("cache-size", "l2-cache-entry-size"):
        q("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": q.file("disk"), name: -1})
    q.add("qcow2", node_name="a", file=q.file("disk"), backing="a")
    access: dict[str, Any] = {"driver": "snapshot-access", "node-name": "access", "file": "disk"}
    q("blockdev-add", access)
    q.do("blockdev-reopen", options=[{**access, "detect-zeroes": "unmap"}])
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "fixed", "1M")
    q.add("raw", node_name="raw", file={"driver": "qcow2", "read-only": True, "file": q.file("fixed")})
    q.do("blockdev-snapshot-internal-sync", device="raw", name="s")
    q.do("x-blockdev-amend", job_id="amend", node_name="disk", options={"driver": "qcow2"})
    q.wait("JOB_STATUS_CHANGE", id="amend", status="concluded")


@against_storage_daemon
def test_log_of_writes_that_nobody_made(q: Run) -> None:
    q.tool("truncate", "-s", "1M", "log")
    options: dict[str, Any] = {"driver": "blklogwrites", "file": {"driver": "null-co"}, "log": q.file("log")}
    q.add(**options, node_name="a", log_super_update_interval=65536)
    q("query-named-block-nodes", {"flat": True}, pick=lambda nodes: [node["file"] for node in nodes])
    q.do("blockdev-del", node_name="a")
    q.add(**options, node_name="a", log_append=True)


@against_storage_daemon
def test_refusals_of_jobs(q: Run) -> None:
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "image", "1M")
    q.add("file", node_name="file", filename=q.path("image"))
    q.add("qcow2", node_name="disk", file=q.file("image"))
    raw = {"driver": "raw", "file": "file"}
    q.do("blockdev-create", job_id="c", options={"driver": "qcow2", "file": raw, "size": 0})
    q.wait("JOB_STATUS_CHANGE", id="c", status="concluded")
    q("query-jobs", pick=lambda jobs: [job.get("error") for job in jobs])
    q.add("copy-on-read", node_name="filter", file={"driver": "null-co", "node-name": "below"})
    q.do("block-stream", job_id="s", device="filter", base_node="below")
    mirror = {"device": "filter", "target": q.path("new"), "node-name": "new", "sync": "none", "replaces": "nope"}
    q("drive-mirror", mirror)


@against_storage_daemon
def test_a_file_is_opened_before_its_options_are_looked_at(q: Run) -> None:
    q.tool("qemu-img", "create", "-q", "flat", "1M")
    q.add("file", node_name="f", filename=q.path("nope"), aio="native")
    q.add("file", node_name="f", filename=q.path(""), aio="native")
    q.add("file", node_name="f", filename=q.path("flat"), aio="native")


@against_storage_daemon
def test_what_shows_a_node_that_is_replaced(q: Run) -> None:
    """It has the length of what takes the node's place."""
    disk(q, "small")
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "large", "3M")
    q.add("raw", node_name="shown", file={"driver": "qcow2", "node-name": "small", "file": q.file("small")})
    overlay = {"snapshot_file": q.path("large"), "snapshot_node_name": "large", "mode": "existing"}
    q.do("blockdev-snapshot-sync", node_name="small", **overlay)
    q("query-named-block-nodes")
    q.tool("qemu-img", "create", "-q", "flat", "2M")
    q.add("file", node_name="flat", filename=q.path("flat"))
    q.add("preallocate", node_name="p", file="shown")
    q.do("blockdev-reopen", options=[{"driver": "preallocate", "node-name": "p", "file": "flat"}])
    q("query-named-block-nodes")


@against_storage_daemon
def test_filters_below_that_do_not_bear_a_new_user(q: Run) -> None:
    """They are asked before the image is read."""
    q.do("object-add", qom_type="throttle-group", id="tg")
    q.do("nbd-server-start", addr={"type": "unix", "data": {"path": q.path("nbd")}})
    q.add("null-co", node_name="n", size=MIB, read_zeroes=True)
    q.do("block-export-add", type="nbd", id="e", node_name="n", writable=True)
    q.add("throttle", node_name="t", throttle_group="tg", file="n")
    q.add("qcow2", node_name="q", file="t")
    q.add("qcow2", node_name="q", file={"driver": "raw", "file": "t"})


@against_storage_daemon
def test_names_over_a_point_in_time(q: Run) -> None:
    disk(q, "image")
    access = {"driver": "snapshot-access", "file": {"driver": "raw", "file": q.file("image")}}
    q.add("raw", node_name="r", file=access)
    q("query-named-block-nodes", {"flat": True})


@against_storage_daemon
def test_options_that_last(q: Run) -> None:
    """Some have to be given again once they were given; a default that was not given before is a change."""

    def again(**options: Any) -> None:
        q.do("blockdev-reopen", options=[{name.replace("_", "-"): value for name, value in options.items()}])

    q.tool("qemu-img", "create", "-q", "flat", "1M")
    file = {"driver": "file", "node_name": "f", "filename": q.path("flat")}
    q.add(**file, aio="threads")
    again(**file, aio="threads")
    again(**file, aio="threads", locking="auto")
    again(**file)
    again(**file, aio="threads", drop_cache=False)
    again(**file, aio="threads")
    again(**file, aio="threads", drop_cache=True, x_check_cache_dropped=True)
    again(**file, aio="threads", drop_cache=True)
    q.add("preallocate", node_name="p", file="f")
    again(driver="preallocate", node_name="p", file="f", prealloc_align=65536)
    again(driver="preallocate", node_name="p", file="f", prealloc_size=65536)
    q.add("blkdebug", node_name="d", image="f")
    again(driver="blkdebug", node_name="d", image="f", inject_error=[{"event": "read_aio"}])
    again(driver="blkdebug", node_name="d", image="f", inject_error=[])
    again(driver="blkdebug", node_name="d", image="f", unshare_child_perms=["write"])


@against_storage_daemon
def test_blkverify_is_resized_below_what_it_is_compared_with(q: Run) -> None:
    disk(q, "image")
    q.tool("qemu-img", "create", "-q", "flat", "1M")
    disk(q, "target")
    q.add("blkverify", node_name="v", test="image", raw=q.file("flat"))
    q.do("block_resize", node_name="v", size=2 * MIB)
    q("query-named-block-nodes", {"flat": True})
    q.do("block_resize", node_name="v", size=MIB)
    q.do("blockdev-mirror", job_id="j", device="v", target="target", sync="full", replaces="image")
    q.wait("BLOCK_JOB_READY")


@against_storage_daemon
def test_bitmaps_of_sizes_that_are_no_sectors(q: Run) -> None:
    q.add("null-co", node_name="a", size=1000)
    q.add("null-co", node_name="b", size=1024)
    q.add("null-co", node_name="c", size=MIB)
    for node in "abc":
        q.do("block-dirty-bitmap-add", node=node, name=node)
    for target in "abc":
        for source in "abc":
            bitmaps = [{"node": source, "name": source}]
            q.do("block-dirty-bitmap-merge", node=target, target=target, bitmaps=bitmaps)
    bitmap = {"node": "c", "name": "c"}
    q.add("copy-before-write", node_name="cbw", file="a", target="b", bitmap=bitmap)
    q.do("blockdev-backup", job_id="j", device="c", target="c", sync="incremental", bitmap="nope")
    q.do("blockdev-backup", job_id="j", device="c", target="c", sync="incremental", bitmap="c")


@against_storage_daemon
def test_an_image_in_a_disk_that_is_too_small_for_it(q: Run) -> None:
    disk(q, "image")
    options = {"driver": "qcow2", "file": "image", "size": 0, "cluster-size": 2 * MIB}
    q.do("blockdev-create", job_id="j", options=options)
    q.wait("JOB_STATUS_CHANGE", status="concluded")
    q("query-jobs")
    q.do("blockdev-create", job_id="k", options={**options, "version": "v2", "extended-l2": True, "backing-fmt": "raw"})
    q.wait("JOB_STATUS_CHANGE", status="concluded", id="k")
    q("query-jobs")
    limits = ({"opt-write-zero": 65536, "max-write-zero": 4096}, {"opt-discard": 4096, "max-discard": 512})
    for limit in (*limits, {"opt-discard": 512, "max-discard": 4096}):
        q("blockdev-add", {"driver": "blkdebug", "node-name": "d", "image": {"driver": "null-co"}, **limit})


@against_storage_daemon
def test_nodes_that_are_not_written_are_not_flushed(q: Run) -> None:
    disk(q, "overlay")
    q.tool("qemu-img", "create", "-q", "flat", "1M")
    q.tool("qemu-img", "create", "-q", "log", "1M")
    log = {"driver": "blklogwrites", "read-only": True, "file": q.file("flat"), "log": q.file("log")}
    q.add("raw", node_name="r", file=log)
    q.do("blockdev-snapshot", node="r", overlay="overlay")


@against_storage_daemon
def test_an_active_commit_that_is_cancelled_leaves_its_base_writable(q: Run) -> None:
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
    base = {"driver": "qcow2", "node-name": "base", "file": q.file("base")}
    q.add("qcow2", node_name="top", file=q.file("top"), backing=base)
    q.do("block-commit", job_id="9x", device="top")
    q("query-named-block-nodes", {"flat": True})
    q.do("block-commit", job_id="j", device="top")
    q.wait("BLOCK_JOB_READY")
    q.do("block-job-cancel", device="j")
    q.wait("BLOCK_JOB_COMPLETED")
    q.finish()
    q("query-named-block-nodes", {"flat": True})


@against_storage_daemon
def test_users_of_what_turns_read_only(q: Run) -> None:
    q.do("object-add", qom_type="throttle-group", id="tg")
    q.add("throttle", node_name="t", throttle_group="tg", file={"driver": "null-co", "size": 65536})
    q.add("null-co", node_name="n", size=65536)
    q.do("blockdev-backup", job_id="j", device="n", target="t", sync="none")
    options = {"driver": "throttle", "node-name": "t", "throttle-group": "tg", "read-only": True, "file": "n"}
    q.do("blockdev-reopen", options=[options])


@against_storage_daemon
def test_one_node_twice_below_a_filter(q: Run) -> None:
    """What conflicts is told before what the image has no use for."""
    disk(q, "image")
    disk(q, "other")
    q.do("blockdev-del", node_name="other")
    twice = {"driver": "copy-before-write", "node-name": "cbw", "file": "image", "target": "image"}
    q.add("qcow2", node_name="q", file=q.file("other"), data_file=twice)


@against_storage_daemon
def test_targets_of_older_commands(q: Run) -> None:
    """Beside a file, an image that is there is a file."""
    disk(q, "image")
    q.tool("qemu-img", "create", "-q", "flat", "1M")
    q.add("file", node_name="f", filename=q.path("flat"))
    q.do("drive-backup", device="f", sync="bitmap", target=q.path("image"), mode="existing")
    q.do("drive-mirror", device="f", sync="full", target=q.path("image"), mode="existing", replaces="x")
    for size in (1, 511, 1000, (1 << 64) - 1):
        options = {"driver": "file", "filename": q.path(f"new{size}"), "size": size}
        q.do("blockdev-create", job_id=f"j{size}", options=options)
        q.wait("JOB_STATUS_CHANGE", status="concluded", id=f"j{size}")
    q("query-jobs")


@against_storage_daemon
def test_blocks_of_a_size_that_is_not_said(q: Run) -> None:
    q.add("null-co", node_name="n", size=MIB)
    address = {"type": "unix", "path": q.path("vhost")}
    for size in (0, 100, 256):
        q.do("block-export-add", type="vhost-user-blk", id="e", node_name="n", addr=address, logical_block_size=size)
    q("query-block-exports")


@against_storage_daemon
def test_exported_bitmap_of_a_backing_file(q: Run) -> None:
    """One that is enabled may be exported read-only where nothing is written to its own node."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
    q.tool("qemu-img", "bitmap", "--add", "base", "b")
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
    q.add("qcow2", node_name="base", file=q.file("base"), read_only=True)
    q.add("qcow2", node_name="top", file=q.file("top"), backing="base")
    q.do("nbd-server-start", addr={"type": "unix", "data": {"path": q.path("nbd")}})
    q.do("block-dirty-bitmap-add", node="top", name="c")
    q.do("block-export-add", type="nbd", id="e", node_name="top", bitmaps=["b", "c"])
    q.do("block-export-add", type="nbd", id="e", node_name="top", bitmaps=["b"])
    q.do("block-export-add", type="nbd", id="f", node_name="base", bitmaps=["b"])
    q("query-named-block-nodes")


@against_storage_daemon
def test_what_is_nowhere_under_a_filter_in_a_chain(q: Run) -> None:
    """It is no more held by the image above than without the filter: a commit does not copy it."""
    disk(q, "base")
    q.do("object-add", qom_type="throttle-group", id="tg")
    q.add("throttle", node_name="f", throttle_group="tg", file="base")
    disk(q, "top", backing="f")
    q.do("block-commit", job_id="j", device="top")
    q.wait("BLOCK_JOB_READY", len=0)
    q.do("job-cancel", id="j")
    q.wait("JOB_STATUS_CHANGE", status="null")
    q.finish()

"""What random scripts found of links: who is in whose way first, and which cannot be changed."""

from __future__ import annotations

from qobra.testing.differential import Run, against_storage_daemon, against_system

MIB = 1 << 20


def disk(q: Run, name: str, **options: object) -> None:
    """A qcow2 node ``name`` on an image of that name."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", name, "1M")
    q.add("qcow2", node_name=name, file=q.file(name), **options)


@against_storage_daemon
def test_first_look(q: Run) -> None:
    """A filter that guards what it shows does so as soon as anybody looks at it, before it has a parent."""
    disk(q, "n")
    q.add("copy-before-write", node_name="cbw", file="n", target="n")
    q.add("qcow2", node_name="top", file="cbw")
    q.add("raw", node_name="raw", file={"driver": "quorum", "vote-threshold": 1, "children": ["cbw"]})
    q.do("blockdev-add", driver="copy-on-read", node_name="over", file="cbw")


@against_storage_daemon
def test_latest_link(q: Run) -> None:
    """Links are as old as the moment in which they were made, whichever node was opened first."""
    disk(q, "n")
    disk(q, "m")
    verify = {"driver": "blkverify", "test": "m", "raw": "n", "node-name": "v"}
    q.add("quorum", node_name="q", vote_threshold=1, children=[verify, "n"])
    q.do("block_resize", node_name="q", size=65536)


@against_system("-blockdev", "null-co,node-name=n,size=1048576", "-device", "virtio-blk-pci,drive=n")
def test_both_at_once(q: Run) -> None:
    """What lies on a node twice lets go of it at once: the later link is the first to be in the way."""
    verify = {"driver": "blkverify", "test": "n", "raw": "n", "node-name": "v"}
    q.add("blkverify", node_name="w", test="n", raw="n")
    q.add("quorum", node_name="q", vote_threshold=1, children=[verify])


@against_storage_daemon
def test_bottom_stays(q: Run) -> None:
    """A copy-on-read filter with a bottom needs the chain down to it as it is."""
    disk(q, "base")
    disk(q, "top", backing="base")
    q.add("copy-on-read", node_name="cor", file="top", bottom="top")
    q.do("blockdev-snapshot-sync", node_name="top", snapshot_file=q.path("new"), snapshot_node_name="new")
    disk(q, "overlay", backing=None)
    q.do("blockdev-snapshot", node="top", overlay="overlay")
    q.do("block-commit", job_id="j", device="top")
    q.do("blockdev-del", node_name="cor")
    q.do("blockdev-snapshot", node="top", overlay="overlay")


@against_storage_daemon
def test_stream_of_one_image(q: Run) -> None:
    """An image that was opened without its backing file keeps the name of that, where a stream has nothing to do."""
    disk(q, "base")
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
    q.add("qcow2", node_name="top", file=q.file("top"), backing=None)
    q.do("block-stream", job_id="j", device="top")
    q.wait("BLOCK_JOB_COMPLETED", device="j")
    q("query-named-block-nodes")


@against_storage_daemon
def test_stream_of_what_cannot_be_told(q: Run) -> None:
    """Where it cannot be told what an image holds, that is an error of reading."""
    disk(q, "n")
    q.add("snapshot-access", node_name="s", file="n")
    disk(q, "top", backing="s")
    q.do("block-stream", job_id="j", device="top")
    q.wait("BLOCK_JOB_COMPLETED", device="j")


@against_storage_daemon
def test_lock_far_below(q: Run) -> None:
    """Locks are taken before an image is looked at, also where its file lies some nodes below."""
    disk(q, "n")
    q.tool("qemu-img", "create", "-q", "-f", "raw", "flat", "1M")
    q.add("raw", node_name="r", file=q.file("flat"))
    q.do("nbd-server-start", addr={"type": "unix", "data": {"path": q.path("nbd")}})
    q.do("block-export-add", type="nbd", id="e", node_name="r", writable=True)
    for name in ("n", "flat"):
        q.add("file", node_name=f"{name}-file", filename=q.path(name))
        q.add("raw", node_name=f"{name}-raw", file=f"{name}-file")
        q.add("blkdebug", node_name=f"{name}-debug", image={"driver": "qcow2", "file": f"{name}-raw"})


@against_storage_daemon
def test_child_twice(q: Run) -> None:
    """What lies on a node twice is in its own way only once it is to be written, and then both links are."""
    disk(q, "n")
    disk(q, "target")
    q.add("quorum", node_name="q", vote_threshold=1, children=["n", "n", "n"])
    q.do("blockdev-backup", job_id="j", device="target", target="q", sync="none")
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "over", "1M")
    q.add("qcow2", node_name="over", file=q.file("over"), backing=None)
    q.do("blockdev-snapshot", node="n", overlay="over")
    q.do("blockdev-backup", job_id="j", device="target", target="q", sync="none")


@against_system("-object", "iothread,id=io")
def test_iothread_of_what_a_job_holds(q: Run) -> None:
    """A job's hold on a node is no device, whose thread would be another's to say."""
    q.add("null-co", node_name="n", size=MIB)
    q.add("null-co", node_name="target", size=MIB)
    q.do("blockdev-backup", job_id="j", device="n", target="target", sync="full", auto_finalize=False)
    q.wait("JOB_STATUS_CHANGE", id="j", status="pending")
    q.do("x-blockdev-set-iothread", node_name="target", iothread="nope")
    q.do("x-blockdev-set-iothread", node_name="n", iothread="nope")


@against_storage_daemon
def test_a_chain_that_is_held_cannot_be_held_twice(q: Run) -> None:
    """By a second filter with a ``bottom``, or by that of a job."""
    disk(q, "base")
    disk(q, "mid", backing="base")
    disk(q, "top", backing="mid")
    q.add("copy-on-read", node_name="filter", file="top", bottom="base")
    q.add("copy-on-read", node_name="second", file="filter", bottom="base")
    q.add("copy-on-read", node_name="third", file="top", bottom="mid")
    q.add("copy-on-read", node_name="fourth", file="top", bottom="top")
    q.do("block-stream", job_id="j", device="filter")


@against_storage_daemon
def test_options_of_a_list_that_gets_shorter(q: Run) -> None:
    """Each member of it is an option of its own."""
    rules = [{"event": "read_aio", "errno": 5}, {"event": "write_aio"}]
    options = {"driver": "blkdebug", "node-name": "n", "image": "image", "discard": "ignore"}
    q.add("null-co", node_name="image", size=MIB)
    q("blockdev-add", {**options, "inject-error": rules})
    for changed in (rules[:1], [{"event": "read_aio"}, *rules[1:]], rules, [*rules[:1], {"event": "none"}]):
        q.do("blockdev-reopen", options=[{**options, "inject-error": changed}])


@against_storage_daemon
def test_commit_of_an_image_that_others_show(q: Run) -> None:
    """The base takes its place under them too; only overlays note down the name of what they build on."""
    disk(q, "base")
    disk(q, "mid", backing="base")
    disk(q, "top", backing="mid")
    q.add("compress", node_name="compress", file="mid")
    q.add("raw", node_name="raw", file="mid")
    q.do("block-commit", job_id="j", device="top", top_node="mid")
    q.wait("BLOCK_JOB_COMPLETED", device="j")
    q("query-named-block-nodes", {"flat": True})
    q("x-debug-query-block-graph")


@against_storage_daemon
def test_reopen_with_what_an_implicit_filter_hides(q: Run) -> None:
    """Whoever names the node below it as the child that it has keeps the filter; no other takes its place."""
    disk(q, "disk")
    disk(q, "other")
    q.add("raw", node_name="raw", file="disk")
    q.do("block-stream", job_id="j", device="disk", auto_finalize=False)
    q.wait("BLOCK_JOB_PENDING", id="j")
    q.do("blockdev-reopen", options=[{"driver": "raw", "node-name": "raw", "file": "disk"}])
    q("x-debug-query-block-graph")
    q.do("blockdev-reopen", options=[{"driver": "raw", "node-name": "raw", "file": "other"}])
    q("x-debug-query-block-graph")


@against_storage_daemon
def test_limits_over_whole_sectors(q: Run) -> None:
    """A filter that logs by sectors is written to by sectors, which is what blkdebug's limits must agree with."""
    disk(q, "disk")
    q.add("blklogwrites", node_name="l", file="disk", log=q.file("disk", locking="off", node_name="f"))
    q.add("null-co", node_name="log", size=MIB)
    for sector in (512, 4096):
        q.add("blklogwrites", node_name=f"l{sector}", file="disk", log="log", log_sector_size=sector)
        for limit in (3, 512, 4096):
            q.add("blkdebug", node_name="d", image=f"l{sector}", max_write_zero=limit)
            q.do("blockdev-del", node_name="d")
        q.do("blockdev-del", node_name=f"l{sector}")


@against_storage_daemon
def test_a_child_of_a_quorum_that_cannot_tell_what_it_holds(q: Run) -> None:
    """Is outvoted by the others."""
    disk(q, "disk")
    q.add("null-co", node_name="target", size=MIB)
    children = [{"driver": "snapshot-access", "file": "disk", "node-name": "s"}, "disk", "disk"]
    q.add("quorum", node_name="quorum", vote_threshold=2, children=children)
    for number, sync in enumerate(("top", "full")):
        q.do("blockdev-backup", job_id=f"j{number}", device="quorum", target="target", sync=sync)
        q.wait("BLOCK_JOB_COMPLETED", device=f"j{number}")
    q.do("blockdev-mirror", job_id="m", device="quorum", target="target", sync="top")
    q.wait("BLOCK_JOB_READY", device="m")

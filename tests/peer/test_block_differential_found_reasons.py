"""Found by random scripts: which of several reasons is told, and what jobs do with nodes that cannot be written."""

from __future__ import annotations

from qobra.testing.differential import Run, against_storage_daemon, against_system

MIB = 1 << 20


def disk(q: Run, name: str, **options: object) -> None:
    """A qcow2 node ``name`` on an image of that name, which holds something."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", name, "1M")
    q.tool("qemu-io", "-f", "qcow2", "-c", "write 0 64k", name)
    q.add("qcow2", node_name=name, file=q.file(name), **options)


@against_storage_daemon
def test_the_last_to_need_a_node_is_named(q: Run) -> None:
    """Be that a job or an image above; both before and after the other."""
    for name in ("a", "b"):
        q.add("null-co", node_name=name, size=MIB)
    q.add("null-co", node_name="target", size=MIB)
    q.add("null-co", node_name="target2", size=MIB)
    q.do("blockdev-mirror", job_id="j", device="a", target="target", sync="none")
    q.wait("BLOCK_JOB_READY")
    disk(q, "top", backing="a")
    q.do("blockdev-del", node_name="a")
    disk(q, "top2", backing="b")
    q.do("blockdev-mirror", job_id="k", device="b", target="target2", sync="none")
    q.do("blockdev-del", node_name="b")
    q.finish()


@against_storage_daemon
def test_of_several_wrong_options_of_an_image(q: Run) -> None:
    """Caches come first, then lazy reference counts, overlap checks, and encryption."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "image", "1M")
    interval, lazy = {"cache_clean_interval": -1}, {"lazy_refcounts": True}
    encrypt = {"encrypt": {"format": "luks"}}
    for options in (interval | encrypt, lazy | encrypt, interval | lazy, interval | lazy | encrypt, encrypt):
        q.add("qcow2", node_name="n", file=q.file("image"), **options)


@against_storage_daemon
def test_of_several_wrong_options_of_any_node(q: Run) -> None:
    """Sharing comes first, then the name of the file, detection of zeroes, and the name of the node."""
    q.add("null-co", node_name="taken")
    unmap, share, taken = {"detect_zeroes": "unmap"}, {"force_share": True}, {"node_name": "taken"}
    for driver in ("file", "host_device", "host_cdrom"):
        q.add(driver, **taken, filename="")
    for options in (taken | share, taken | unmap, taken | unmap | share, unmap | share | {"node_name": "n"}):
        q.add("file", **options, filename="")
        q.add("file", **options, filename=q.path("nope"))


@against_storage_daemon
def test_threshold_of_more_than_63_bits(q: Run) -> None:
    """It is taken as a number without a sign, and shown as one with."""
    q.add("null-co", node_name="n", size=MIB)
    for threshold in ((1 << 64) - 1, 1 << 63, (1 << 63) - 1):
        q.do("block-set-write-threshold", node_name="n", write_threshold=threshold)
        q("query-named-block-nodes")


@against_storage_daemon
def test_jobs_onto_what_cannot_be_written(q: Run) -> None:
    """It is the first write that fails, not what is asked of the target or under it before."""
    q.add("null-co", node_name="zero", size=MIB, read_zeroes=True)
    q.add("snapshot-access", node_name="target", file="zero", discard="unmap")
    disk(q, "image")
    q.do("blockdev-mirror", job_id="j", device="image", target="target", sync="full", buf_size=65536)
    q.wait("JOB_STATUS_CHANGE", status="null", id="j")
    q.do("blockdev-del", node_name="target")
    q.add("snapshot-access", node_name="below", file="zero")
    q.add("copy-on-read", node_name="base", file="below")
    disk(q, "top", backing="base")
    q.do("block-commit", job_id="j", device="top")
    q.wait("JOB_STATUS_CHANGE", status="null", id="j")


@against_storage_daemon
def test_amendment_to_another_kind_of_encryption(q: Run) -> None:
    q.do("object-add", qom_type="secret", id="s", data="key")
    encrypted = ("--object", "secret,id=s,data=key", "-o")
    luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", *encrypted, luks, "luks", "1M")
    q.tool(
        "qemu-img", "create", "-q", "-f", "qcow2", *encrypted, "encrypt.format=aes,encrypt.key-secret=s", "aes", "1M"
    )
    for name in ("luks", "aes"):
        q.add("qcow2", node_name=name, file=q.file(name), encrypt={"format": name, "key-secret": "s"})
        for at, options in enumerate(({"format": "qcow"}, {"format": "luks", "state": "inactive"})):
            amended = {"driver": "qcow2", "encrypt": options}
            q.do("x-blockdev-amend", job_id=f"{name}{at}", node_name=name, options=amended)
            q.wait("JOB_STATUS_CHANGE", status="concluded", id=f"{name}{at}")
    q("query-jobs")


@against_storage_daemon
def test_a_mirror_onto_a_filter_of_the_chain(q: Run) -> None:
    """The job has come to be when that is refused, and what else is in the way is not told."""
    disk(q, "base")
    disk(q, "top", backing="base")
    q.add("copy-before-write", node_name="filter", file="base", target={"driver": "null-co", "size": MIB})
    q.do("blockdev-mirror", job_id="j", device="top", target="filter", sync="full")
    q.finish()


@against_storage_daemon
def test_filter_of_a_commit(q: Run) -> None:
    """Nobody writes through it."""
    disk(q, "base")
    disk(q, "mid", backing="base")
    disk(q, "top", backing="mid")
    q.do("block-commit", job_id="j", device="top", top_node="mid", auto_finalize=False, filter_node_name="filter")
    q.wait("JOB_STATUS_CHANGE", status="pending")
    q(
        "query-named-block-nodes",
        pick=lambda nodes: {node["node-name"]: node["ro"] for node in nodes if node["drv"] != "file"},
    )
    q.do("job-finalize", id="j")
    q.wait("JOB_STATUS_CHANGE", status="null")


@against_system("-drive", "if=none,id=d,driver=null-co,node-name=n,size=1048576", "-device", "virtio-blk-pci,drive=d")
def test_an_overlay_is_named_by_its_node(q: Run) -> None:
    """It had no device yet when it came to lie there."""
    q.do("blockdev-snapshot-sync", device="d", snapshot_file=q.path("over"), snapshot_node_name="over")
    q.do("blockdev-snapshot-sync", node_name="n", snapshot_file=q.path("other"))
    q.do("blockdev-del", node_name="n")


@against_storage_daemon
def test_native_aio_of_what_is_no_device(q: Run) -> None:
    q.tool("qemu-img", "create", "-q", "disk", "1M")
    for driver in ("host_device", "file"):
        q.add(driver, node_name="n", filename=q.path("disk"), aio="native")


@against_storage_daemon
def test_limits_as_high_as_a_request_can_be(q: Run) -> None:
    q.add("null-co", node_name="n", size=1 << 20)
    q.add("blkdebug", node_name="d", image="n", config="")
    for name in ("align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"):
        for value in ((1 << 31) - 1, 1 << 31, 1 << 30):
            q("blockdev-add", {"driver": "blkdebug", "node-name": "d", "image": "n", name: value})
            q.do("blockdev-del", node_name="d")


@against_storage_daemon
def test_steps_of_preallocation(q: Run) -> None:
    q.add("null-co", node_name="n", size=1 << 20)
    for name in ("prealloc-align", "prealloc-size"):
        for value in (-1, 100, 512, (1 << 63) - 1):
            q("blockdev-add", {"driver": "preallocate", "node-name": "p", "file": "n", name: value})
            q.do("blockdev-del", node_name="p")

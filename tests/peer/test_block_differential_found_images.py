"""What random scripts found of images: disks that are files of others, alignment, encryption."""

from __future__ import annotations

from qobra.testing.differential import Run, against_storage_daemon

MIB = 1 << 20


def disk(q: Run, name: str, size: int = MIB, **options: object) -> None:
    """A qcow2 node ``name`` on an image of that name."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", name, str(size))
    q.add("qcow2", node_name=name, file=q.file(name), **options)


def facts(found: list[dict[str, object]]) -> list[object]:
    """What is compared of nodes: which metadata were written of them does not matter."""
    return [(node["node-name"], node["image"]["virtual-size"]) for node in found]  # type: ignore[index]


@against_storage_daemon
def test_disk_grows_under_an_image(q: Run) -> None:
    """The disk of an image is a file to the image that is made in it, and has its old size when it is opened again."""
    disk(q, "outer")
    for mode in ("metadata", "off"):
        options = {"driver": "qcow2", "file": "outer", "size": MIB, "preallocation": mode}
        q.do("blockdev-create", job_id="j", options=options)
        q.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
        q("query-jobs")
        q.do("job-dismiss", id="j")
    q.add("qcow2", node_name="inner", file="outer")
    q.do("blockdev-del", node_name="inner")
    q.do("blockdev-del", node_name="outer")
    q.add("qcow2", node_name="outer", file=q.file("outer"))
    q("query-named-block-nodes", pick=facts)


@against_storage_daemon
def test_overlay_of_a_file(q: Run) -> None:
    """A snapshot of an image's file: what the image allocates from then on makes the overlay longer."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
    q.tool("qemu-io", "-c", "write -P 1 0 1M", "base")
    q.add("qcow2", node_name="base", file=q.file("base"))
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
    q.add("qcow2", node_name="top", file=q.file("top", node_name="file"), backing="base")
    q.do("blockdev-snapshot-sync", node_name="file", snapshot_file=q.path("over"), snapshot_node_name="over")
    q.do("block-stream", job_id="j", device="top")
    q.wait("BLOCK_JOB_COMPLETED", device="j")
    q.do("blockdev-del", node_name="top")
    q.add("qcow2", node_name="over", file=q.file("over"))
    q("query-named-block-nodes", pick=lambda found: facts(found)[:1])


@against_storage_daemon
def test_unaligned_end(q: Run) -> None:
    """Who writes whole blocks and may not resize needs a disk of whole blocks."""
    q.do("nbd-server-start", addr={"type": "unix", "data": {"path": q.path("nbd")}})
    disk(q, "n", 66048)
    q.add("compress", node_name="compress", file="n")
    q.add("blkdebug", node_name="large", image="n", align=4096)
    q.add("blkdebug", node_name="small", image="n", align=512)
    for name in ("compress", "large", "small"):
        q.do("block-export-add", type="nbd", id=name, node_name=name)
        q.do("block-export-add", type="nbd", id=f"{name}-writable", node_name=name, writable=True)


@against_storage_daemon
def test_amendment_of_what_is_read_only(q: Run) -> None:
    for number in range(2):
        q.do("object-add", qom_type="secret", id=f"s{number}", data=f"key{number}")
    key = ("--object", "secret,id=s,data=key0", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", *key, "n", "1M")
    encrypt = {"format": "luks", "key-secret": "s0"}
    q.add("qcow2", node_name="n", file=q.file("n"), encrypt=encrypt, read_only=True)
    added = {"state": "active", "new-secret": "s1", "iter-time": 10}
    for wanted in ({"state": "active"}, added, {**added, "keyslot": 8}, {"state": "inactive", "keyslot": -1}):
        options = {"driver": "qcow2", "encrypt": {"format": "luks", **wanted}}
        q.do("x-blockdev-amend", job_id="j", node_name="n", options=options)
        q.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
        q("query-jobs")
        q.do("job-dismiss", id="j")


@against_storage_daemon
def test_top_of_a_comparison(q: Run) -> None:
    """A filter that compares two images shows which parts its raw one holds."""
    q.tool("qemu-img", "create", "-q", "-f", "qcow2", "n", "1M")
    q.tool("qemu-io", "-c", "write -P 1 64k 128k", "n")
    q.add("qcow2", node_name="n", file=q.file("n"))
    disk(q, "target")
    q.add("blkverify", node_name="v", test="n", raw="n")
    q.do("blockdev-backup", job_id="j", device="v", target="target", sync="top")
    q.wait("BLOCK_JOB_COMPLETED", device="j")


@against_storage_daemon
def test_bitmap_of_nothing(q: Run) -> None:
    """An image without bytes can be opened again, whatever bitmap it had."""
    disk(q, "n")
    q.do("block-dirty-bitmap-add", node="n", name="b", persistent=True)
    q.do("block_resize", node_name="n", size=0)
    q.do("blockdev-del", node_name="n")
    q.add("qcow2", node_name="n", file=q.file("n"))
    q("query-named-block-nodes", pick=lambda found: facts(found)[:1])


@against_storage_daemon
def test_encryption_that_is_not_there(q: Run) -> None:
    disk(q, "n")
    for encrypt in ({"format": "luks", "key-secret": "s"}, {"format": "aes"}):
        options = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": q.path("n")}}
        q.do("blockdev-reopen", options=[{**options, "encrypt": encrypt}])


@against_storage_daemon
def test_old_writes_kept_in_what_takes_no_backing_file(q: Run) -> None:
    """A backup without data shows the rest of the disk through its target, which has to be able to."""
    disk(q, "n")
    q.tool("qemu-img", "create", "-q", "-f", "raw", "flat", "1M")
    target = {"target": q.path("flat"), "mode": "existing", "format": "raw"}
    q.do("drive-backup", job_id="j", device="n", sync="none", **target)

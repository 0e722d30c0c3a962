"""What reads and writes do to data, counters, bitmaps and thresholds, and which events come of failures."""

from __future__ import annotations

from qobra.testing.differential import Run, against_system


def io(q: Run, node: str, command: str) -> None:
    """One line of qemu-io. What it says goes to the output of the program; only a node that is missing is told of."""
    q("human-monitor-command", {"command-line": f'qemu-io {node} "{command}"'})


@against_system("-M", "none")
def test_data(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "qcow2", "a.qcow2", "1M")
    q.tool("qemu-img", "create", "-f", "raw", "base.raw", "1M")
    q.tool("qemu-io", "-f", "raw", "-c", "write -P 7 0 512k", "base.raw")
    q.tool("qemu-img", "create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "o.qcow2")
    q.add("qcow2", node_name="a", file=q.file("a.qcow2", node_name="af"), discard="unmap", detect_zeroes="unmap")
    q.add("qcow2", node_name="o", file=q.file("o.qcow2"))
    q.do("block-set-write-threshold", node_name="a", write_threshold=131072)
    io(q, "a", "write -P 5 0 64k")
    io(q, "a", "write -P 5 64k 64k")
    io(q, "a", "read -P 5 0 64k")
    io(q, "a", "read -P 6 0 64k")
    io(q, "a", "write -P 5 128k 64k")
    io(q, "a", "write -P 5 256k 64k")
    q(
        "query-named-block-nodes",
        pick=lambda r: [(n["node-name"], n["write_threshold"]) for n in r if n["node-name"] in "ao"],
    )
    io(q, "a", "write -P 0 0 64k")
    io(q, "a", "write -z 64k 64k")
    io(q, "a", "discard 128k 64k")
    io(q, "a", "write -P 1 2M 64k")
    io(q, "a", "read 1M 1")
    io(q, "a", "write 100 100")
    io(q, "a", "flush")
    q(
        "query-blockstats",
        {"query-nodes": True},
        pick=lambda r: [(n["node-name"], n["stats"]) for n in r if n["node-name"] in "ao"],
    )
    q.add("copy-on-read", node_name="cor", file="o")
    io(q, "cor", "read -P 7 0 64k")
    io(q, "o", "map")
    io(q, "nope", "map")
    io(q, "o", "zz")
    q("block-dirty-bitmap-add", {"node": "o", "name": "b"})
    io(q, "o", "write -P 3 0 1k")
    io(q, "cor", "read 128k 64k")
    q("query-named-block-nodes", pick=lambda r: [n.get("dirty-bitmaps") for n in r if n["node-name"] == "o"])
    q("x-debug-block-dirty-bitmap-sha256", {"node": "o", "name": "b"})


@against_system("-M", "none")
def test_quorum(q: Run) -> None:
    for n in "xyz":
        q.tool("qemu-img", "create", "-f", "raw", n, "64k")
    q.tool("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "x")
    q.tool("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "y")
    q.tool("qemu-io", "-f", "raw", "-c", "write -P 9 1k 1k", "z")
    q.add(
        "quorum",
        node_name="q",
        children=[{"driver": "raw", "node-name": n, "file": q.file(n)} for n in "xyz"],
        vote_threshold=2,
    )
    io(q, "q", "read -P 7 0 64k")
    io(q, "q", "read -P 7 1k 512")
    io(q, "q", "read -P 7 1k 700")
    io(q, "q", "write -P 7 0 64k")
    io(q, "q", "read -P 7 0 64k")
    q("blockdev-del", {"node-name": "q"})
    q.tool("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "x")
    q.tool("qemu-io", "-f", "raw", "-c", "write -P 8 0 64k", "y")
    q.tool("qemu-io", "-f", "raw", "-c", "write -P 9 0 64k", "z")
    q.add(
        "quorum",
        node_name="q",
        children=[{"driver": "raw", "node-name": n, "file": q.file(n)} for n in "xyz"],
        vote_threshold=2,
    )
    io(q, "q", "read 0 64k")
    q("blockdev-del", {"node-name": "q"})
    q.add(
        "quorum",
        node_name="q",
        children=[{"driver": "raw", "node-name": n, "file": q.file(n)} for n in "xyz"],
        vote_threshold=1,
    )
    io(q, "q", "read 0 64k")
    q("blockdev-del", {"node-name": "q"})
    q.add(
        "quorum",
        node_name="q",
        children=[{"driver": "raw", "node-name": n, "file": q.file(n)} for n in "xyz"],
        vote_threshold=1,
        rewrite_corrupted=True,
    )
    io(q, "q", "read 0 64k")
    io(q, "q", "read 0 64k")
    q("blockdev-del", {"node-name": "q"})
    q.add(
        "quorum",
        node_name="q",
        children=[
            {
                "driver": "blkdebug",
                "node-name": "bx",
                "inject-error": [{"event": "none", "iotype": "read"}],
                "image": {"driver": "null-co", "size": 65536},
            },
            {"driver": "null-co", "node-name": "ny", "size": 65536, "read-zeroes": True},
        ],
        vote_threshold=1,
        read_pattern="fifo",
    )
    io(q, "q", "read 0 4k")
    io(q, "q", "write 0 4k")
    q("blockdev-del", {"node-name": "q"})
    q.add(
        "quorum",
        node_name="q",
        children=[
            {
                "driver": "blkdebug",
                "node-name": "bx",
                "inject-error": [
                    {"event": "none", "iotype": "write", "errno": 28},
                    {"event": "none", "iotype": "flush"},
                ],
                "image": {"driver": "null-co", "size": 65536},
            },
            {"driver": "null-co", "node-name": "ny", "size": 65536, "read-zeroes": True},
        ],
        vote_threshold=2,
    )
    io(q, "q", "read 0 4k")
    io(q, "q", "write 0 4k")
    q("blockdev-del", {"node-name": "q"})


@against_system("-M", "none")
def test_blkdebug(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "qcow2", "a.qcow2", "1M")
    q.add(
        "qcow2",
        node_name="a",
        file={
            "driver": "blkdebug",
            "image": q.file("a.qcow2"),
            "inject-error": [
                {"event": "cluster_alloc", "errno": 28, "once": True},
                {"event": "l2_load", "errno": 5, "once": True, "state": 2},
            ],
            "set-state": [{"event": "write_aio", "new_state": 2}],
        },
    )
    io(q, "a", "write 0 64k")
    io(q, "a", "write 0 64k")
    io(q, "a", "read 0 64k")
    io(q, "a", "read 512k 64k")
    io(q, "a", "flush")
    q("blockdev-del", {"node-name": "a"})
    q.add(
        "blkdebug",
        node_name="b",
        image={"driver": "null-co", "size": 1 << 20},
        inject_error=[
            {"event": "none", "iotype": "read", "sector": 4, "errno": 5},
            {"event": "none", "iotype": "write", "errno": 13, "once": True},
            {"event": "none", "iotype": "flush", "errno": 28},
            {"event": "none", "iotype": "discard"},
            {"event": "none", "iotype": "write-zeroes"},
        ],
        discard="unmap",
    )
    for c in (
        "read 0 512",
        "read 0 4k",
        "read 2k 512",
        "read 2560 512",
        "write 0 4k",
        "write 0 4k",
        "discard 0 4k",
        "write -z 0 4k",
    ):
        io(q, "b", c)
    q.add("raw", node_name="r", file="b", discard="unmap")
    for c in ("read 0 4k", "discard 0 4k", "write -z 0 4k"):
        io(q, "r", c)

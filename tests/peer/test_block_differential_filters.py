"""Filters and what they are called, on QEMU's storage daemon and on ours."""

from __future__ import annotations

from pathlib import Path

from qobra.testing.differential import Run, against_storage_daemon


@against_storage_daemon
def test_names(q: Run) -> None:
    "json and plain names of all filters"
    q.tool("qemu-img", "create", "-f", "raw", "a.raw", "1M")
    q.tool("qemu-img", "create", "-f", "raw", "log.raw", "1M")
    q("object-add", {"qom-type": "throttle-group", "id": "tg0", "limits": {"iops-total": 100}})
    f = q.file("a.raw")
    q.add("throttle", node_name="t0", throttle_group="tg0", file={"driver": "null-co", "size": 1024})
    q.add("blkdebug", node_name="bd0", image=dict(f))
    q.add(
        "blkdebug",
        node_name="bd1",
        image="bd0",
        inject_error=[{"event": "read_aio", "errno": 5, "once": True}],
        set_state=[{"event": "none", "new_state": 2}],
    )
    q.add("blkdebug", node_name="bd2", image={"driver": "null-co"}, align=512)
    q.add("raw", node_name="rbd2", file="bd2")
    q.add("raw", node_name="rbd0", file="bd0")
    q.add("raw", node_name="rt0", file="t0")
    q.add("copy-on-read", node_name="cor", file={"driver": "null-co", "read-zeroes": True})
    q.add("compress", node_name="cmp", file={"driver": "null-co"})
    q.tool("qemu-img", "create", "-f", "qcow2", "c.qcow2", "1M")
    q.add("compress", node_name="cmp", file={"driver": "qcow2", "file": q.file("c.qcow2")})
    q.add(
        "blkverify",
        node_name="bv",
        test={"driver": "null-co", "size": 1048576},
        raw=dict(f, filename=q.path("log.raw")),
    )
    q.add("quorum", node_name="qu", children=[{"driver": "null-co"}, {"driver": "null-co"}], vote_threshold=1)
    q.add(
        "quorum",
        node_name="qu2",
        children=[{"driver": "null-co"}, {"driver": "null-co"}],
        vote_threshold=2,
        blkverify=True,
    )
    q.add(
        "quorum",
        node_name="qu3",
        children=[{"driver": "null-co", "node-name": "nx"}],
        vote_threshold=1,
        read_pattern="fifo",
    )
    q.add("raw", node_name="rqu", file="qu3")
    q.add("blklogwrites", node_name="blw", file={"driver": "null-co"}, log=q.file("log.raw"))
    q.add(
        "copy-before-write",
        node_name="cbw",
        file={"driver": "null-co", "size": 65536},
        target={"driver": "null-co", "size": 65536},
    )
    q.add("preallocate", node_name="pre", file=dict(f))
    q.add("snapshot-access", node_name="sa", file="cbw")
    q.add("raw", node_name="rz", file={"driver": "null-co", "size": 2048}, size=1024)
    q("query-named-block-nodes")
    q("x-debug-query-block-graph")
    q("query-blockstats")
    q("query-blockstats", {"query-nodes": True})


@against_storage_daemon
def test_filter_errors(q: Run) -> None:
    q.add("null-co", node_name="n0")
    q.add("null-co", node_name="n1", size=1024)
    q.add("throttle", node_name="t0", throttle_group="nope", file="n0")
    q.add("throttle", node_name="t0", file="n0")
    q.add("throttle", node_name="t0", throttle_group="", file="n0")
    q.add("blkdebug", node_name="b")
    q.add("blkdebug", node_name="b", image="n0", align=511)
    q.add("blkdebug", node_name="b", image="n0", align=513)
    q.add("blkdebug", node_name="b", image="n0", **{"max-transfer": 1})
    q.add("blkdebug", node_name="b", image="n0", align=512, **{"max-transfer": 513})
    q.add("blkdebug", node_name="b", image="n0", align=512, **{"opt-write-zero": 513})
    q.add("blkdebug", node_name="b", image="n0", **{"max-discard": 1 << 33})
    q.add("blkdebug", node_name="b", image="n0", config="/nope")
    q.add("blkdebug", node_name="b", image="n0", **{"inject-error": [{"event": "zz"}]})
    q.add("blkdebug", node_name="b", image="n0", **{"inject-error": [{}]})
    q.add("blkdebug", node_name="b", image="n0", **{"set-state": [{"event": "read_aio"}]})
    q.add("blkdebug", node_name="b", image="n0", **{"take-child-perms": ["zz"]})
    q.add("blkdebug", node_name="b", image="n0", **{"take-child-perms": ["write"]})
    q.add("blkdebug", node_name="b2", image="n0", **{"unshare-child-perms": ["write"]})
    q.add("blkdebug", node_name="b3", image="n0", **{"unshare-child-perms": ["consistent-read", "resize"]})
    q.add("raw", node_name="b3r", file="n0")
    q.add("quorum", node_name="q", children=[], **{"vote-threshold": 1})
    q.add("quorum", node_name="q", children=["n0"], **{"vote-threshold": 2})
    q.add("quorum", node_name="q", children=["n0"], **{"vote-threshold": 0})
    q.add("quorum", node_name="q", children=["n0"], **{"vote-threshold": -1})
    q.add("quorum", node_name="q", children=["n0", "n0"], **{"vote-threshold": 1, "blkverify": True})
    q.add(
        "quorum",
        node_name="q",
        children=["n0", "n1"],
        **{"vote-threshold": 2, "blkverify": True, "rewrite-corrupted": True},
    )
    q.add("quorum", node_name="q", children=["n0", "n1"], **{"vote-threshold": 1, "blkverify": True})
    q.add("quorum", node_name="q", children=["nope"], **{"vote-threshold": 1})
    q.add("quorum", node_name="q", children=["n0"], **{"vote-threshold": 1, "read-pattern": "zz"})
    q.add("copy-on-read", node_name="c")
    q.add("copy-on-read", node_name="c", file="n0", bottom="nope")
    q.add("copy-on-read", node_name="c", file="n0", bottom="b2")
    q.add("copy-on-read", node_name="c", file="n0", bottom="n0")
    q.add("copy-on-read", node_name="c", file="n0", **{"read-only": True})
    q.add("blklogwrites", node_name="l", file="n0")
    q.add("blklogwrites", node_name="l", file="n0", log="n1", **{"log-sector-size": 3})
    q.add("blklogwrites", node_name="l", file="n0", log="n1", **{"log-append": True})
    q.add("blkverify", node_name="v", test="n0")
    q.add("copy-before-write", node_name="cbw", file="n0", target="n1")
    q.add("copy-before-write", node_name="cbw", file="n0", target="n0")
    q.add(
        "copy-before-write",
        node_name="cbw2",
        file="n0",
        target={"driver": "null-co"},
        bitmap={"node": "n0", "name": "zz"},
    )
    q.add(
        "copy-before-write",
        node_name="cbw3",
        file="n0",
        target={"driver": "null-co"},
        **{"on-cbw-error": "break-snapshot"},
    )
    q.add("snapshot-access", node_name="sa", file="n0")
    q.add("preallocate", node_name="pa", file="n0")
    q.add("preallocate", node_name="pa", file="n0", **{"prealloc-align": 1})
    q.add("compress", node_name="co", file="n0")
    q.add("cow", node_name="d0", file="n1", differs="old-drivers")
    q.add("vxhs", node_name="d0", file="n1")
    q.add("qcow2", node_name="d0", file="n1")
    q.add("nbd", node_name="d0", file="n1")
    q("x-debug-query-block-graph")
    q("query-named-block-nodes")


@against_storage_daemon
def test_json_names(q: Run) -> None:
    q.tool("qemu-img", "create", "-f", "raw", "a.raw", "1M")

    def img(name: str, backing: str, fmt: str | None = None) -> None:
        known = fmt if fmt not in (None, "zzz") else "raw"
        q.tool("qemu-img", "create", "-f", "qcow2", "-u", "-b", backing, "-F", known, name, "1M")
        header = bytearray(Path(q.path(name)).read_bytes())
        if fmt is None:
            place = header.index(bytes.fromhex("E2792ACA"))
            header[place : place + 4] = b"none"
        elif fmt == "zzz":
            place = header.index(b"raw\0")
            header[place : place + 3] = b"zzz"
        Path(q.path(name)).write_bytes(header)

    raw = q.path("a.raw")
    img("1.qcow2", f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{raw}"}}}}', "raw")
    q.add("qcow2", node_name="a1", file=q.file("1.qcow2"))
    img("2.qcow2", f'json:{{"driver":"file","filename":"{raw}"}}', "raw")
    q.add("qcow2", node_name="a2", file=q.file("2.qcow2"))
    img("3.qcow2", f'json:{{"driver":"qcow2","file.driver":"file","file.filename":"{raw}"}}')
    q.add("qcow2", node_name="a3", file=q.file("3.qcow2"))
    img("4.qcow2", "json:{bad")
    q.add("qcow2", node_name="a4", file=q.file("4.qcow2"))
    img("5.qcow2", "json:[1]")
    q.add("qcow2", node_name="a5", file=q.file("5.qcow2"))
    img("6.qcow2", 'json:{"driver":"null-co","size":"1M"}', "raw")
    q.add("qcow2", node_name="a6", file=q.file("6.qcow2"))
    img("7.qcow2", "zz:abc", "raw")
    q.add("qcow2", node_name="a7", file=q.file("7.qcow2"))
    img("8.qcow2", "null-co://", "raw")
    q.add("qcow2", node_name="a8", file=q.file("8.qcow2"))
    img("9.qcow2", "a.raw", "raw")
    q.add("qcow2", node_name="a9", file=q.file("9.qcow2"))
    img("10.qcow2", "a.raw", "raw")
    q.add("qcow2", node_name="a10", file=q.file("10.qcow2"))
    img("12.qcow2", "a.raw", "zzz")
    q.add("qcow2", node_name="a12", file=q.file("12.qcow2"))
    img("13.qcow2", "a.raw", "qcow2")
    q.add("qcow2", node_name="a13", file=q.file("13.qcow2"))
    img("14.qcow2", "a.raw")
    q.add("qcow2", node_name="a14", file=q.file("14.qcow2"))
    img("17.qcow2", "blkdebug::" + q.path("a.raw"), "raw")
    q.add("qcow2", node_name="a17", file=q.file("17.qcow2"))
    img("18.qcow2", "file:" + q.path("a.raw"), "raw")
    q.add("qcow2", node_name="a18", file=q.file("18.qcow2"))
    img("20.qcow2", f'json:{{"file":{{"driver":"file","filename":"{raw}"}}}}', "qcow2")
    q.add("qcow2", node_name="a20", file=q.file("20.qcow2"))
    img("21.qcow2", f'json:{{"driver":"raw","zz":1,"file":{{"driver":"file","filename":"{raw}"}}}}')
    q.add("qcow2", node_name="a21", file=q.file("21.qcow2"))
    img("22.qcow2", f'json:{{"driver":"raw","file":{{"driver":"file","zz":1,"filename":"{raw}"}}}}')
    q.add("qcow2", node_name="a22", file=q.file("22.qcow2"))
    q("query-named-block-nodes")
    q("x-debug-query-block-graph")

"""The same QMP scripts about exports to QEMU's storage daemon and to us: the same replies and events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qobra.nbd import connect
from qobra.testing.differential import Own, Program, Run, differences

MIB = 1 << 20


@pytest.fixture
def compare(tmp_path: Path, peer: Callable[[str], str]) -> Callable[[Callable[[Run], None]], None]:
    def run(script: Callable[[Run], None]) -> None:
        directories = [tmp_path / "qobra", tmp_path / "qemu"]
        for directory in directories:
            directory.mkdir()
        daemon = Program(directories[1], [peer("qemu-storage-daemon")], ["--monitor", "chardev=differential"])
        found = differences(script, [Own(directories[0]), daemon])
        assert not found, "\n".join(found)

    return run


def add_nodes(run: Run) -> None:
    run.tool("qemu-img", "create", "-q", "-f", "qcow2", "n.qcow2", "1M")
    run.tool("qemu-img", "create", "-q", "-f", "qcow2", "ro.qcow2", "1M")
    for name, read_only in (("n", False), ("ro", True)):
        run(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": name,
                "read-only": read_only,
                "file": {"driver": "file", "filename": run.path(f"{name}.qcow2")},
            },
        )


def start(run: Run) -> str:
    path = run.path("nbd.sock")
    run("nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}})
    return path


def export(run: Run, id: str = "e", **more: Any) -> None:
    members = {key.replace("_", "-"): value for key, value in more.items()}
    run("block-export-add", {"type": "nbd", "id": id, "node-name": "n", **members})


def test_refusals(compare: Any) -> None:
    def script(run: Run) -> None:
        add_nodes(run)
        run("nbd-server-stop")
        export(run)
        run("nbd-server-start", {"addr": {"type": "unix", "data": {"path": run.path("nowhere/s")}}})
        run("nbd-server-start", {"addr": {"type": "unix", "data": {"path": run.path("s")}}, "tls-creds": "t"})
        run("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "x"}}})
        start(run)
        start(run)
        export(run, "1e")
        export(run, "")
        export(run, node_name="nn")
        export(run, node_name="ro", writable=True)
        export(run, iothread="io")
        export(run, bitmaps=["b"])
        export(run, bitmaps=[{"node": "zz", "name": "b"}])
        export(run, bitmaps=[{"node": "n", "name": "b"}])
        export(run, bitmaps=[{"node": "n"}])
        export(run, description="x" * 5000)
        run("block-export-add", {"id": "e", "node-name": "n"})
        run("block-export-add", {"type": "zz", "id": "e", "node-name": "n"})
        run("block-export-add", {"type": "vhost-user-blk", "id": "e", "node-name": "n"})
        run("block-dirty-bitmap-add", {"node": "n", "name": "b"})
        export(run, bitmaps=["b"])
        export(run)
        export(run)
        run("block-export-add", {"type": "nbd", "id": "e2", "node-name": "n", "name": "n"})
        run("query-block-exports")
        run("block-export-del", {"id": "zz"})
        run("block-export-del", {"id": "e", "mode": "zz"})
        run("nbd-server-remove", {"name": "zz"})
        run("nbd-server-add", {"device": "zz"})
        run("blockdev-del", {"node-name": "n"})
        run("block_resize", {"node-name": "n", "size": 2 * MIB})
        run("nbd-server-stop")
        run("block_resize", {"node-name": "n", "size": 2 * MIB})

    compare(script)


def test_life(compare: Any) -> None:
    def script(run: Run) -> None:
        add_nodes(run)
        run("block-dirty-bitmap-add", {"node": "n", "name": "b"})
        path = start(run)
        export(run, "a", name="one", writable=True, bitmaps=["b"])
        export(run, "b", name="two", writethrough=True, description="words", allocation_depth=True)
        run("nbd-server-add", {"device": "ro", "writable": True})
        run("nbd-server-add", {"device": "n", "name": "three", "writable": True})
        run("query-block-exports")
        run("block-dirty-bitmap-clear", {"node": "n", "name": "b"})
        client = connect(f"nbd+unix:///one?socket={path}")
        client.pwrite(b"x" * 1000, 0)
        client.flush()
        run("block-export-del", {"id": "a"})
        run("nbd-server-remove", {"name": "a", "mode": "safe"})
        run("query-block-exports")
        run("block-export-del", {"id": "a", "mode": "hard"})
        run.wait("BLOCK_EXPORT_DELETED", id="a")
        client.abort()
        run("block-dirty-bitmap-clear", {"node": "n", "name": "b"})
        run("nbd-server-remove", {"name": "ro"})
        run("nbd-server-remove", {"name": "three", "mode": "hard"})
        run("query-block-exports")
        other = connect(f"nbd+unix:///two?socket={path}")
        run("nbd-server-stop")
        other.abort()
        run("query-block-exports")
        run("blockdev-del", {"node-name": "n"})
        run("blockdev-del", {"node-name": "ro"})
        start(run)
        run("nbd-server-stop")

    compare(script)


def test_vhost_user_blk(compare: Any) -> None:
    def script(run: Run) -> None:
        add_nodes(run)
        base = {"type": "vhost-user-blk", "id": "e", "node-name": "n", "writable": True}
        address = {"type": "unix", "path": run.path("vhost.sock")}
        run("block-export-add", {**base, "addr": {"type": "unix", "path": run.path("nowhere/s")}})
        run("block-export-add", {**base, "addr": address, "num-queues": 0})
        run("block-export-add", {**base, "addr": address, "logical-block-size": 100})
        run("block-export-add", {**base, "addr": address, "logical-block-size": 1000})
        run("block-export-add", {**base, "addr": {"type": "inet", "host": "127.0.0.1", "port": "0"}})
        run("block-export-add", {**base, "addr": address, "logical-block-size": 4096, "num-queues": 2})
        run("query-block-exports")
        run("nbd-server-remove", {"name": "e"})
        run("block-export-del", {"id": "e"})
        run("query-block-exports")
        run("blockdev-del", {"node-name": "n"})

    compare(script)


def test_the_nbd_driver(compare: Any) -> None:
    def script(run: Run) -> None:
        base = {"driver": "nbd", "node-name": "c"}
        run("blockdev-add", base)
        missing = {"type": "unix", "path": run.path("nothing")}
        run("blockdev-add", {**base, "server": missing})
        run("blockdev-add", {**base, "server": missing, "tls-creds": "t"})
        run("blockdev-add", {**base, "server": {"type": "unix"}})
        run("blockdev-add", {**base, "server": {"type": "inet", "host": "127.0.0.1", "port": "1"}})
        run("blockdev-add", {**base, "server": {"type": "inet", "host": "127.0.0.1"}})
        run("blockdev-add", {**base, "server": {"type": "fd", "str": "missing"}}, differs="we pass descriptors")
        run("blockdev-add", {**base, "server": missing, "zz": 1})

    compare(script)


def test_fuse(compare: Any) -> None:
    import os

    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")

    def script(run: Run) -> None:
        add_nodes(run)
        run.tool("touch", "mountpoint", "other")
        base = {"type": "fuse", "id": "e", "node-name": "n", "writable": True}
        run("block-export-add", {**base, "mountpoint": run.path("nothing")})
        run("block-export-add", {**base, "mountpoint": run.path(".")})
        run("block-export-add", {**base, "node-name": "ro", "mountpoint": run.path("mountpoint")})
        run("block-export-add", {**base, "mountpoint": run.path("mountpoint")})
        run("block-export-add", {**base, "id": "e2", "mountpoint": run.path("mountpoint")})
        run("query-block-exports")
        size = os.stat(run.path("mountpoint"))
        assert (size.st_size, size.st_mode & 0o777) == (MIB, 0o600)
        with open(run.path("mountpoint"), "r+b", buffering=0) as file:
            assert file.write(b"x" * 1000) == 1000
            assert os.pread(file.fileno(), 4, 0) == b"xxxx"
        run("block_resize", {"node-name": "n", "size": 2 * MIB})
        run("block-export-del", {"id": "e"})
        run.wait("BLOCK_EXPORT_DELETED", id="e")
        assert os.stat(run.path("mountpoint")).st_size == 0
        run("query-block-exports")
        run("blockdev-del", {"node-name": "n"})

    compare(script)

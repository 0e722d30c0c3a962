"""Other projects' NBD clients against our server: libnbd and its tools, QEMU's tools, fio."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.block.bitmap import DirtyBitmap
from qobra.machine.machine import Machine

KIB = 1 << 10
MIB = 1 << 20
SIZE = 8 * MIB


class Served:
    """A machine that exports ``disk`` (qcow2 over ``base``), ``ro`` and ``raw`` on a unix socket."""

    def __init__(self, directory: Path, peer: Callable[[str], str]) -> None:
        self.socket = str(directory / "nbd.sock")
        self.base = directory / "base.qcow2"
        self.disk = directory / "disk.qcow2"
        self.raw = directory / "raw.img"
        image_tool = peer("qemu-img")
        io_tool = peer("qemu-io")
        subprocess.run([image_tool, "create", "-q", "-f", "qcow2", self.base, str(SIZE)], check=True)
        subprocess.run([io_tool, "-f", "qcow2", "-c", "write -q -P 3 1M 1M", self.base], check=True)
        subprocess.run(
            [image_tool, "create", "-q", "-f", "qcow2", "-b", self.base, "-F", "qcow2", self.disk], check=True
        )
        self.raw.touch()
        os.truncate(self.raw, SIZE)
        self.machine = Machine()
        block = self.machine.block
        with self.machine.control:
            self.node = block.add_node(
                {"driver": "qcow2", "node-name": "disk", "discard": "unmap", "file": file(self.disk)}
            )
            block.add_node({"driver": "raw", "node-name": "raw", "discard": "unmap", "file": file(self.raw)})
            self.bitmap = DirtyBitmap(self.node, "changes", 64 * KIB)
            block.exports.start_nbd_server({"type": "unix", "path": self.socket})
            self.add("disk", writable=True, bitmaps=["changes"], description="the disk", **{"allocation-depth": True})
            self.add("raw", writable=True)
            self.add("disk", id="ro", name="ro", writable=False)

    def add(self, node: str, **options: Any) -> None:
        self.machine.block.exports.add({"type": "nbd", "id": node, "node-name": node, **options})

    def uri(self, export: str = "disk") -> str:
        return f"nbd+unix:///{export}?socket={self.socket}"


def file(path: Path) -> dict[str, Any]:
    return {"driver": "file", "filename": str(path), "discard": "unmap"}


@pytest.fixture
def served(tmp_path: Path, peer: Callable[[str], str]) -> Iterator[Served]:
    made = Served(tmp_path, peer)
    yield made
    made.machine.close()


def output(*command: Any) -> str:
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def libnbd(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Python binding, which only the distribution has."""
    monkeypatch.setattr(sys, "path", [*sys.path, "/usr/lib/python3/dist-packages"])
    return pytest.importorskip("nbd", reason="python3-libnbd is not installed for this Python")


@pytest.mark.peer("nbdinfo")
def test_nbdinfo(served: Served) -> None:
    info = json.loads(output("nbdinfo", "--json", served.uri()))
    assert (info["protocol"], info["TLS"], info["structured"]) == ("newstyle-fixed", False, True)
    (export,) = info["exports"]
    assert export["description"] == "the disk"
    assert export["export-size"] == SIZE
    assert export["contexts"] == ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:changes"]
    for flag in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert export[f"can_{flag}"] is True
    assert (export["is_read_only"], export["is_rotational"]) == (False, False)
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (1, 32 * MIB)


@pytest.mark.peer("nbdinfo")
def test_nbdinfo_list(served: Served) -> None:
    info = json.loads(output("nbdinfo", "--list", "--json", served.uri("")))
    assert [(each["export-name"], each.get("description")) for each in info["exports"]] == [
        ("disk", "the disk"),
        ("raw", None),
        ("ro", None),
    ]


@pytest.mark.peer("nbdinfo")
def test_nbdinfo_map(served: Served) -> None:
    entries = json.loads(output("nbdinfo", "--map", "--json", served.uri()))
    assert [(each["offset"], each["length"], each["type"]) for each in entries] == [
        (0, MIB, 3),
        (MIB, MIB, 0),
        (2 * MIB, SIZE - 2 * MIB, 3),
    ]
    depth = json.loads(output("nbdinfo", "--map=qemu:allocation-depth", "--json", served.uri()))
    assert [(each["length"], each["type"]) for each in depth] == [(MIB, 0), (MIB, 2), (SIZE - 2 * MIB, 0)]


@pytest.mark.peer("nbdcopy")
def test_nbdcopy_both_ways(served: Served, tmp_path: Path) -> None:
    source = tmp_path / "source"
    content = bytearray(SIZE)
    content[100_000:3_000_000] = random.Random(1).randbytes(2_900_000)
    content[7 * MIB :] = b"e" * MIB
    source.write_bytes(content)
    for export in ("disk", "raw"):
        output("nbdcopy", source, served.uri(export))
        for options in ([], ["--synchronous"], ["--no-extents", "--requests=64"]):
            target = tmp_path / "target"
            output("nbdcopy", *options, served.uri(export), target)
            assert target.read_bytes() == content
    output("nbdcopy", served.uri("disk"), served.uri("raw"))


@pytest.mark.peer("qemu-io")
def test_qemu_io(served: Served) -> None:
    commands = [
        "write -P 1 0 64k",
        "write -f -P 2 300k 3000",
        "write -z -u 64k 64k",
        "write -z 200k 64k",
        "discard 0 4k",
        "flush",
        "read -P 2 300k 3000",
        "read -P 3 1M 1M",
        "read -P 0 64k 64k",
        "aio_write -P 5 3M 1M",
        "aio_flush",
        "read -P 5 3M 1M",
        "map",
    ]
    arguments = [part for command in commands for part in ("-c", command)]
    text = output("qemu-io", "-f", "raw", *arguments, served.uri())
    assert "failed" not in text and "error" not in text
    done = subprocess.run(["qemu-io", "-f", "raw", "-r", "-c", "read 0 4k", served.uri("ro")], capture_output=True)
    assert done.returncode == 0
    denied = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "read 0 4k", served.uri("ro")], capture_output=True, text=True
    )
    assert denied.returncode != 0 and "Permission denied" in denied.stderr


@pytest.mark.peer("qemu-img")
def test_qemu_img(served: Served, tmp_path: Path) -> None:
    target = tmp_path / "copy.qcow2"
    output("qemu-img", "convert", "-O", "qcow2", served.uri(), target)
    assert "Images are identical" in output("qemu-img", "compare", served.uri(), target)
    output("qemu-img", "convert", "-n", "-O", "raw", target, served.uri("raw"))
    assert "Images are identical" in output("qemu-img", "compare", served.uri("raw"), target)
    assert json.loads(output("qemu-img", "map", "--output=json", "-f", "raw", served.uri()))[1]["start"] == MIB
    info = json.loads(output("qemu-img", "info", "--output=json", served.uri()))
    assert info["virtual-size"] == SIZE
    served.machine.close()
    assert "No errors were found" in output("qemu-img", "check", served.disk)


@pytest.mark.peer("qemu-img")
def test_the_bitmap_as_qemu_sees_it(served: Served) -> None:
    output("qemu-io", "-f", "raw", "-c", "write -P 9 2M 100k", served.uri())
    where = (
        f"driver=nbd,server.type=unix,server.path={served.socket},export=disk,x-dirty-bitmap=qemu:dirty-bitmap:changes"
    )
    entries = json.loads(output("qemu-img", "map", "--output=json", "--image-opts", where))
    assert [(each["start"], each["length"], each["data"]) for each in entries] == [
        (0, 2 * MIB, True),
        (2 * MIB, 128 * KIB, False),  # dirty, as x-dirty-bitmap has it
        (2 * MIB + 128 * KIB, SIZE - 2 * MIB - 128 * KIB, True),
    ]


@pytest.mark.peer("fio")
@pytest.mark.parametrize("depth", [1, 32])
def test_fio_verifies(served: Served, depth: int) -> None:
    for export in ("disk", "raw"):
        text = output(
            "fio",
            "--name=t",
            "--ioengine=nbd",
            f"--uri={served.uri(export)}",
            "--rw=randwrite",
            "--bsrange=512-128k",
            f"--iodepth={depth}",
            f"--size={SIZE}",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",  # which would lie in the working directory
            "--randseed=3",
        )
        assert "err= 0" in text


def test_libnbd(served: Served, libnbd: Any) -> None:
    handle = libnbd.NBD()
    for context in ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:changes"):
        handle.add_meta_context(context)
    handle.set_full_info(True)
    handle.connect_uri(served.uri())
    assert handle.get_size() == SIZE and handle.can_meta_context("qemu:dirty-bitmap:changes")
    assert handle.get_export_description() == "the disk"
    data = random.Random(2).randbytes(300_000)
    handle.pwrite(data, 5 * MIB + 7, libnbd.CMD_FLAG_FUA)
    assert handle.pread(300_000, 5 * MIB + 7) == data
    handle.zero(64 * KIB, 5 * MIB + 64 * KIB, libnbd.CMD_FLAG_NO_HOLE)
    handle.zero(64 * KIB, 5 * MIB, libnbd.CMD_FLAG_FAST_ZERO)
    handle.trim(MIB, 6 * MIB)
    handle.cache(MIB, 0)
    handle.flush()
    found: dict[str, list[int]] = {}

    def extent(context: str, offset: int, entries: list[int], error: Any) -> None:
        found.setdefault(context, []).extend(entries)

    handle.block_status(SIZE, 0, extent)
    assert found["qemu:dirty-bitmap:changes"] == [5 * MIB, 0, 320 * KIB, 1, 704 * KIB, 0, MIB, 1, MIB, 0]
    assert sum(found["base:allocation"][::2]) == SIZE

    chunks: list[tuple[int, int, int]] = []
    handle.pread_structured(2 * MIB, 0, lambda part, offset, kind, error: chunks.append((offset, len(part), kind)))
    assert sorted(chunks) == [(0, MIB, libnbd.READ_HOLE), (MIB, MIB, libnbd.READ_DATA)]
    handle.shutdown()


def test_libnbd_many_in_flight(served: Served, libnbd: Any) -> None:
    handle = libnbd.NBD()
    handle.connect_uri(served.uri("raw"))
    source = random.Random(4)
    model = bytearray(SIZE)
    for _ in range(5):
        cookies = []
        for offset in source.sample(range(0, SIZE, 64 * KIB), 60):
            data = source.randbytes(source.randrange(1, 64 * KIB))
            model[offset : offset + len(data)] = data
            cookies.append((handle.aio_pwrite(libnbd.Buffer.from_bytearray(bytearray(data)), offset), None, offset))
        while handle.aio_in_flight():
            handle.poll(-1)
        for cookie, _, _ in cookies:
            assert handle.aio_command_completed(cookie)
        reads = []
        for offset in source.sample(range(0, SIZE, 64 * KIB), 60):
            buffer = libnbd.Buffer(64 * KIB)
            reads.append((handle.aio_pread(buffer, offset), buffer, offset))
        while handle.aio_in_flight():
            handle.poll(-1)
        for cookie, buffer, offset in reads:
            assert handle.aio_command_completed(cookie)
            assert buffer.to_bytearray() == model[offset : offset + 64 * KIB]
    handle.shutdown()


def test_libnbd_errors(served: Served, libnbd: Any) -> None:
    handle = libnbd.NBD()
    handle.set_strict_mode(0)
    handle.connect_uri(served.uri("ro"))
    for call, number in (
        (lambda: handle.pwrite(b"x" * 512, 0), "EPERM"),
        (lambda: handle.pread(512, SIZE), "EINVAL"),
        (lambda: handle.trim(512, 0), "EPERM"),
        (lambda: handle.block_status(512, 0, lambda *_: 0), "EINVAL"),
    ):
        with pytest.raises(libnbd.Error) as caught:
            call()
        assert caught.value.errno == number
    assert handle.pread(512, MIB) == b"\3" * 512
    handle.shutdown()


def test_libnbd_opt_mode(served: Served, libnbd: Any) -> None:
    handle = libnbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(served.uri("nope"))
    names: list[tuple[str, str]] = []
    assert handle.opt_list(lambda name, description: names.append((name, description))) == 3
    assert dict(names)["disk"] == "the disk"
    with pytest.raises(libnbd.Error):
        handle.opt_info()
    handle.set_export_name("disk")
    contexts: list[str] = []
    handle.opt_list_meta_context(contexts.append)
    assert "qemu:allocation-depth" in contexts
    handle.opt_info()
    assert handle.get_size() == SIZE
    handle.opt_go()
    assert handle.pread(1, 0) == b"\0"
    handle.shutdown()


def test_libnbd_old_handshakes(served: Served, libnbd: Any) -> None:
    for flags in (0, libnbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE):
        handle = libnbd.NBD()
        handle.set_handshake_flags(flags)
        handle.set_request_structured_replies(False)
        handle.connect_uri(served.uri("raw"))
        handle.pwrite(b"q" * 4096, 4096)
        assert handle.pread(4096, 4096) == b"q" * 4096
        handle.shutdown()


@pytest.mark.peer("nbdsh")
def test_nbdsh(served: Served) -> None:
    # The tool runs the first python3 on the path, which has to be the distribution's.
    text = output("env", "PATH=/usr/bin:/bin", "nbdsh", "-u", served.uri(), "-c", "print(h.pread(4, 1048576))")
    assert "\\x03\\x03\\x03\\x03" in text


def test_pull_mode_backup(served: Served, libnbd: Any) -> None:
    """What virtnbdbackup does: read what the bitmap says is dirty while another client goes on writing elsewhere."""
    writer = libnbd.NBD()
    writer.connect_uri(served.uri())
    model = bytearray(SIZE)
    model[MIB : 2 * MIB] = b"\3" * MIB
    backup = bytearray(model)
    source = random.Random(6)
    for _ in range(40):
        offset = source.randrange(0, SIZE - 5000)
        data = source.randbytes(5000)
        writer.pwrite(data, offset)
        model[offset : offset + 5000] = data
    stop = threading.Event()

    def reads() -> None:
        while not stop.is_set():
            writer.pread(4096, source.randrange(0, SIZE - 4096))

    thread = threading.Thread(target=reads)
    thread.start()
    reader = libnbd.NBD()
    reader.add_meta_context("qemu:dirty-bitmap:changes")
    reader.connect_uri(served.uri())
    offset = 0
    while offset < SIZE:
        entries: list[int] = []
        reader.block_status(SIZE - offset, offset, lambda c, o, e, err, entries=entries: entries.extend(e))
        for length, dirty in zip(entries[::2], entries[1::2], strict=True):
            if dirty:
                backup[offset : offset + length] = reader.pread(length, offset)
            offset += length
    stop.set()
    thread.join(60)
    assert backup == model
    assert len(backup) > served.bitmap.count() > 0
    reader.shutdown()
    writer.shutdown()

"""Our NBD client and the nbd driver against other projects' servers: qemu-nbd, nbdkit, qemu-storage-daemon."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError
from qobra.nbd import connect, list_exports

KIB = 1 << 10
MIB = 1 << 20
SIZE = 8 * MIB

Start = Callable[..., str]


def accepts(path: str) -> bool:
    """Whether somebody listens on the unix socket ``path`` by now."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.fixture
def start(tmp_path: Path, peer: Callable[[str], str]) -> Iterator[Start]:
    """``start(program, *arguments)``: run a server with its socket at the returned path (``SOCKET`` in arguments)."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(program: str, *arguments: Any) -> str:
        path = str(tmp_path / f"server{len(processes)}.sock")
        command = [peer(program), *(str(each).replace("SOCKET", path) for each in arguments)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        processes.append(process)
        deadline = time.monotonic() + 30
        while not accepts(path):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        return path

    yield run
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(30)


@pytest.fixture
def image(tmp_path: Path, peer: Callable[[str], str]) -> Path:
    path = tmp_path / "image.qcow2"
    subprocess.run([peer("qemu-img"), "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    subprocess.run([peer("qemu-io"), "-c", "write -q -P 3 1M 1M", path], check=True)
    return path


def uri(where: str, export: str = "disk") -> str:
    return f"nbd+unix:///{export}?socket={where}"


def test_qemu_nbd(start: Start, image: Path) -> None:
    subprocess.run(["qemu-img", "bitmap", "--add", image, "changes"], check=True)
    where = start(
        "qemu-nbd",
        "-t",
        "-e",
        "8",
        "-k",
        "SOCKET",
        "-x",
        "disk",
        "-D",
        "words",
        "-A",
        "-B",
        "changes",
        "-f",
        "qcow2",
        "--discard=unmap",
        image,
    )
    ((info, contexts),) = list_exports(uri(where, ""))
    assert (info.name, info.description, info.size) == ("disk", "words", SIZE)
    assert contexts == ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:changes"]
    with connect(uri(where), meta_contexts=contexts) as client:
        assert client.meta_contexts == tuple(contexts)
        assert list(client.extents()) == [(0, MIB, 3), (MIB, MIB, 0), (2 * MIB, 6 * MIB, 3)]
        assert client.pread_sparse(3 * MIB, 0) == (
            bytes(MIB) + b"\3" * MIB + bytes(MIB),
            [(0, MIB), (2 * MIB, MIB)],
        )
        data = random.Random(1).randbytes(200_000)
        client.pwrite(data, 4 * MIB, fua=True)
        client.zero(64 * KIB, 4 * MIB, fast=True)
        client.trim(64 * KIB, MIB)
        client.flush()
        assert client.pread(200_000, 4 * MIB) == bytes(64 * KIB) + data[64 * KIB :]
        assert [(o, n) for o, n, dirty in client.extents("qemu:dirty-bitmap:changes") if dirty] == [
            (MIB, 64 * KIB),
            (4 * MIB, 256 * KIB),
        ]
        assert [flags for _o, _n, flags in client.extents("qemu:allocation-depth")] == [0, 1, 0, 1, 0]
        client.cache(MIB, 0)  # which makes QEMU allocate the clusters


def test_qemu_nbd_refuses(start: Start, image: Path) -> None:
    where = start("qemu-nbd", "-t", "-r", "-k", "SOCKET", "-x", "disk", "-f", "qcow2", image)
    with pytest.raises(QobraError) as caught:
        connect(uri(where, "other"))
    assert caught.value.desc == "Requested export not available"
    assert caught.value.hint == "server reported: export 'other' not present"
    with connect(uri(where)) as client:
        assert client.read_only
        client.info.flags = 0xFFF & ~2
        with pytest.raises(QobraError) as caught:
            client.pwrite(b"x", 0)
        assert caught.value.errno in (1, 22)  # EPERM is what the protocol says, EINVAL what QEMU 7.2 does


def test_many_threads_on_qemu_nbd(start: Start, image: Path) -> None:
    where = start("qemu-nbd", "-t", "-k", "SOCKET", "-x", "disk", "-f", "qcow2", image)
    failures: list[BaseException] = []
    with connect(uri(where)) as client:

        def work(number: int) -> None:
            try:
                source = random.Random(number)
                base = number * MIB
                for _ in range(50):
                    data = source.randbytes(source.randrange(1, 50_000))
                    offset = base + source.randrange(0, MIB - len(data))
                    client.pwrite(data, offset)
                    assert client.pread(len(data), offset) == data
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    assert not failures


def test_nbdkit_old_and_new(start: Start) -> None:
    for options in (["-n"], ["-o"], ["--no-sr"], ["--mask-handshake=0"], ["--mask-handshake=1"]):
        where = start("nbdkit", "-f", "-U", "SOCKET", *options, "memory", "size=4M")
        with connect(uri(where, "")) as client:
            assert client.size == 4 * MIB
            client.pwrite(b"x" * 100_000, 5)
            assert client.pread(100_001, 4) == b"\0" + b"x" * 100_000
            if options != ["-o"]:  # where nbdkit 1.32 offers flushes and refuses them
                client.flush()


def test_nbdkit_block_sizes_and_errors(start: Start) -> None:
    where = start(
        "nbdkit", "-f", "-U", "SOCKET", "--filter=error", "--filter=blocksize-policy", "memory", "size=4M",
        "blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=64K", "blocksize-error-policy=error",
        "error-trim=ENOSPC", "error-trim-rate=100%",
    )  # fmt: skip
    with connect(uri(where, "")) as client:
        assert client.block_sizes == (512, 4096, 64 * KIB)
        client.pwrite(b"y" * MIB, 0)  # split by us
        assert client.pread(MIB, 0) == b"y" * MIB
        with pytest.raises(QobraError) as caught:
            client.trim(512, 0)
        assert caught.value.errno == 28
        with pytest.raises(QobraError) as caught:
            client.pread(100, 0)
        assert caught.value.errno == 22


def test_nbdkit_slow_and_out_of_order(start: Start) -> None:
    where = start("nbdkit", "-f", "-U", "SOCKET", "--filter=delay", "pattern", "size=1M", "rdelay=2ms")
    with connect(uri(where, "")) as client:
        requests = [client.aio_pread(512, offset) for offset in range(0, 64 * KIB, 512)]
        for request in client.as_completed(requests):
            assert int.from_bytes(request.result()[:8]) == request.offset


def node(layer: BlockLayer, where: str, **options: Any) -> BlockBackend:
    made = layer.add_node(
        {"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": where}, "export": "disk", **options}
    )
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(made)
    return backend


def test_the_driver_on_qemu_nbd(start: Start, image: Path, peer: Callable[[str], str]) -> None:
    where = start("qemu-nbd", "-t", "-k", "SOCKET", "-x", "disk", "-f", "qcow2", "--discard=unmap", image)
    layer = BlockLayer()
    backend = node(layer, where, discard="unmap")
    source = random.Random(2)
    model = bytearray(SIZE)
    model[MIB : 2 * MIB] = b"\3" * MIB
    for _ in range(60):
        offset = source.randrange(0, SIZE - 100_000)
        length = source.randrange(1, 100_000)
        if source.randrange(3):
            data = source.randbytes(length)
            backend.write(offset, data)
        else:
            data = bytes(length)
            backend.write_zeroes(offset, length, may_unmap=bool(source.randrange(2)))
        model[offset : offset + length] = data
    backend.flush()
    assert backend.read(0, SIZE) == model
    backend.remove()
    layer.close()
    raw = image.with_suffix(".raw")
    raw.write_bytes(model)
    done = subprocess.run([peer("qemu-img"), "compare", "-U", "-f", "raw", "-F", "qcow2", raw, image])
    assert done.returncode == 0


def test_the_driver_reconnects_to_qemu_nbd(start: Start, image: Path, tmp_path: Path) -> None:
    command = ["qemu-nbd", "-t", "-k", str(tmp_path / "s"), "-x", "disk", "-f", "qcow2", str(image)]
    server = subprocess.Popen(command)
    layer = BlockLayer()
    backend = node(layer, str(tmp_path / "s"), **{"open-timeout": 60, "reconnect-delay": 60})
    backend.write(0, b"before")
    backend.flush()
    server.terminate()
    server.wait(30)
    server = subprocess.Popen(command)
    assert backend.read(0, 6) == b"before"
    backend.remove()
    layer.close()
    server.terminate()
    server.wait(30)


def test_a_bitmap_in_the_map(start: Start, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """x-dirty-bitmap: what is dirty is shown as absent, by both tools alike."""
    from qobra.cli.img import main

    subprocess.run(["qemu-img", "bitmap", "--add", image, "changes"], check=True)
    subprocess.run(["qemu-io", "-c", "write -q 2M 100k", image], check=True)
    where = start("qemu-nbd", "-t", "-e", "4", "-k", "SOCKET", "-x", "disk", "-B", "changes", "-f", "qcow2", image)
    options = f"driver=nbd,server.type=unix,server.path={where},export=disk,x-dirty-bitmap=qemu:dirty-bitmap:changes"
    arguments = ["map", "--output=json", "--image-opts", options]
    expected = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=True).stdout
    assert main(arguments) == 0
    assert capsys.readouterr().out == expected

"""The batch loop, in both forms, on images with clusters, files without a page cache, and with bad clients."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
import socket
import sys
import termios
import threading
import time
from typing import Any

import pytest

from qobra.block.bitmap import DirtyBitmap
from qobra.block.creation._image import plan
from qobra.block.export.nbd import connection as connection_module
from qobra.block.export.nbd import requests
from qobra.block.snapshot import create_image
from qobra.block.table import ResolvedTable
from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.testing.waiting import wait_until

KIB = 1 << 10
MIB = 1 << 20
SIZE = 8 * MIB


def needs_direct(path: Any) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("the file system has no O_DIRECT")


def add_image(exporter: Any, name: str, *, direct: bool = False, backing: Any = None) -> Any:
    """A new qcow2 node of SIZE bytes."""
    path = exporter.tmp_path / f"{name}.qcow2"
    if direct:
        needs_direct(path)
    with exporter.layer.control:
        create_image(exporter.layer, str(path), "qcow2", SIZE, None)
    file = {"driver": "file", "filename": str(path)}
    options = {"driver": "qcow2", "node-name": name, "file": file, "cache": {"direct": direct}, "backing": backing}
    return exporter.add(options)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("direct", [False, True])
def test_an_image_that_grows_and_changes_equals_a_model(exporter: Any, direct: bool, structured: bool) -> None:
    """Three connections work on a third each, while the layer is drained and its flat tables are made anew."""
    node = add_image(exporter, "n", direct=direct)
    exporter.export("n")
    model = bytearray(SIZE)
    third = SIZE // 3 & -4096
    failures: list[BaseException] = []
    done = threading.Event()

    def work(number: int) -> None:
        try:
            source = random.Random(number)
            client = exporter.connect("n", structured=structured)
            for _ in range(25):
                requests, checks = [], []
                position = number * third
                end = position + third
                while position < end:
                    length = min(source.choice((512, 4096, 4096, 16 * KIB, 96 * KIB, 300 * KIB)), end - position)
                    if source.randrange(2):
                        read = client.aio_pread(length, position)
                        checks.append((read, bytes(model[position : position + length])))
                    elif source.randrange(8):
                        data = source.randbytes(16) * (length // 16)
                        model[position : position + length] = data
                        requests.append(client.aio_pwrite(data, position))
                    else:
                        model[position : position + length] = bytes(length)
                        requests.append(client.aio_zero(length, position))
                    position += length + 512 * source.randrange(500)
                for request in requests:
                    request.result(60)
                for read, expected in checks:
                    assert read.result(60) == expected
        except BaseException as error:
            failures.append(error)

    def disturb() -> None:
        while not done.wait(0.003):
            with exporter.layer.control:
                exporter.layer.changed()
            with exporter.layer.drained():
                pass
            bitmap = DirtyBitmap(node, "b", 64 * KIB)
            bitmap.remove()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    disturber = threading.Thread(target=disturb)
    for thread in (*threads, disturber):
        thread.start()
    for thread in threads:
        thread.join(100)
    done.set()
    disturber.join(60)
    assert not failures
    assert exporter.connect("n").pread(SIZE, 0) == model


@pytest.mark.parametrize("direct", [False, True])
def test_a_chain_is_read_through_and_overwritten(exporter: Any, direct: bool) -> None:
    below = add_image(exporter, "below", direct=direct)
    below.write(0, b"1" * 256 * KIB)
    add_image(exporter, "n", direct=direct, backing="below")
    exporter.export("n")
    client = exporter.connect("n")
    for _ in range(2):
        reads = [client.aio_pread(4096, offset) for offset in range(0, 512 * KIB, 4096)]
        assert b"".join(read.result(60) for read in reads) == b"1" * 256 * KIB + bytes(256 * KIB)
    client.pwrite(b"2" * 4096, 64 * KIB)
    client.pwrite(b"3" * 4096, 64 * KIB + 8192)  # where there is space now
    expected = b"1" * 64 * KIB + b"2" * 4096 + b"1" * 4096 + b"3" * 4096 + b"1" * 4096
    assert client.pread(len(expected), 0) == expected
    assert below.read(64 * KIB, 4096) == b"1" * 4096


@pytest.mark.parametrize("direct", [False, True])
def test_parts_of_blocks_and_the_end_of_the_image(exporter: Any, direct: bool) -> None:
    add_image(exporter, "n", direct=direct).write(0, bytes(range(256)) * (SIZE // 256))
    exporter.export("n")
    client = exporter.connect("n")
    whole = bytearray(bytes(range(256)) * (SIZE // 256))
    for _ in range(2):
        for offset, length in ((1, 1), (511, 2), (4095, 4098), (65535, 2), (SIZE - 1, 1), (SIZE - 5000, 5000)):
            assert client.pread(length, offset) == whole[offset : offset + length]
            whole[offset : offset + length] = data = os.urandom(length)
            client.pwrite(data, offset)
            assert client.pread(length, offset) == data
    assert client.pread(SIZE, 0) == whole


def test_a_failed_write_past_the_page_cache_is_told(exporter: Any) -> None:
    node = add_image(exporter, "n", direct=True)
    node.write(0, b"1" * MIB)
    exporter.export("n")
    client = exporter.connect("n")
    assert client.pread(4096, 0) == b"1" * 4096
    writable, readable = os.dup(node.file.fd), os.open(node.file.path, os.O_RDONLY | os.O_DIRECT)
    os.dup2(readable, node.file.fd)
    try:
        requests = [client.aio_pwrite(b"2" * 4096, offset) for offset in range(0, 64 * KIB, 4096)]
        assert {getattr(request.exception(60), "errno", None) for request in requests} == {errno.EINVAL}
    finally:
        os.dup2(writable, node.file.fd)
        os.close(writable)
        os.close(readable)
    assert client.pread(64 * KIB, 0) == b"1" * 64 * KIB


@pytest.mark.parametrize("direct", [False, True])
def test_a_client_that_reads_no_replies_holds_nobody_up(exporter: Any, direct: bool) -> None:
    add_image(exporter, "n", direct=direct).write(0, b"1" * MIB)
    exporter.export("n")
    with exporter.connect("n") as other:
        assert other.pread(MIB, 0) == b"1" * MIB
        client = exporter.connect("n")
        sock = client._link.transport.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for cookie in range(100):
            offset = cookie % 16 * 64 * KIB
            sock.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, cookie, offset, 64 * KIB))
        for _ in range(3):
            with exporter.layer.drained():
                pass
            assert other.pread(4096, 0) == b"1" * 4096
        client.abort()


def until_waiting(sock: Any, count: int) -> None:
    """Wait until ``count`` bytes have come and were not read."""
    wait_until(lambda: int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder) == count)


@pytest.mark.parametrize("block", [512, 4096])
def test_a_client_gets_more_replies_while_it_reads_none(exporter: Any, block: int) -> None:
    content = random.Random(block).randbytes(16 * block)
    add_image(exporter, "n").write(0, content)
    exporter.export("n")
    client = exporter.connect("n")
    sock = client._link.transport.socket
    stream = bytearray()
    for cookie in range(16):  # a single one at a time, so each has to be answered before the next is there
        sock.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, cookie, cookie * block, block))
        until_waiting(sock, (cookie + 1) * (p.CHUNK_DATA.size + block))
    sock.sendall(
        b"".join(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 16 + n, n * block, block) for n in range(16))
        + p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_FLUSH, 32, 0, 0)
    )
    expected = b"".join(
        p.CHUNK_DATA.pack(p.STRUCTURED_REPLY_MAGIC, 1, 1, cookie, block + 8, cookie % 16 * block)
        + content[cookie % 16 * block :][:block]
        for cookie in range(32)
    )
    expected += p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, 32)
    while len(stream) < len(expected):
        stream += sock.recv(1 << 20)
    assert stream == expected
    client.abort()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_clients_that_leave_in_the_middle(exporter: Any, direct: bool, seed: int) -> None:
    add_image(exporter, "n", direct=direct).write(0, b"1" * SIZE)
    server = exporter.start()
    exporter.export("n")
    source = random.Random(seed)
    for _ in range(8):
        client = exporter.connect("n")
        sock = client._link.transport.socket
        stream = bytearray()
        for cookie in range(source.randrange(1, 60)):
            length = source.choice((512, 4096, 8192, 200 * KIB))
            offset = source.randrange(0, SIZE - length, 512)
            write = source.randrange(2)
            stream += p.REQUEST.pack(p.REQUEST_MAGIC, 0, write, cookie, offset, length) + b"1" * length * write
        cut = source.randrange(len(stream))
        sock.setblocking(False)
        try:
            sock.sendall(stream[:cut])
        except OSError:
            pass  # nobody reads the replies, so the server stops to read requests
        if source.randrange(2):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.abort()
    wait_until(lambda: server.connections == 0)
    assert not any(slot.busy for slot in exporter.layer.flight._slots)
    assert exporter.connect("n").pread(SIZE, 0) == b"1" * SIZE


def test_questions_of_a_client_that_has_left_are_not_answered(exporter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add_image(exporter, "n")
    server = exporter.start()
    exporter.export("n")
    answered = []

    def slow_status(*_arguments: Any) -> tuple[bytes, ...]:
        answered.append(1)
        time.sleep(0.01)
        return (bytes(4096),)

    monkeypatch.setattr(requests, "block_status", slow_status)
    client = exporter.connect("n", meta_contexts=["base:allocation"])
    flood = p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_BLOCK_STATUS, 1, 0, 4096) * 4000
    client._link.transport.socket.sendall(flood)
    wait_until(lambda: len(answered) > 20)
    client.abort()
    wait_until(lambda: server.connections == 0)
    assert len(answered) < 1000


def test_a_long_write_takes_memory_only_as_it_arrives(exporter: Any) -> None:
    exporter.file("n", bytes(64 * MIB))
    exporter.export("n")
    before = resident_bytes()
    clients = [exporter.connect("n") for _ in range(8)]
    for client in clients:
        sock = client._link.transport.socket
        sock.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 0, 32 * MIB) + b"1" * 100)
    waiting = [connection for export in exporter.exports.of_type("nbd") for connection in export._clients]
    wait_until(lambda: all(_holds_nothing_unread(connection) for connection in waiting))
    time.sleep(0.05)  # for what comes after the payload was asked for
    assert resident_bytes() - before < 64 * MIB


def resident_bytes() -> int:
    """What of this process is in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _holds_nothing_unread(connection: Any) -> bool:
    return int.from_bytes(fcntl.ioctl(connection._socket, termios.FIONREAD, bytes(4)), sys.byteorder) == 0


@pytest.mark.parametrize("said", [b"", b"\0\0\0\3", b"\0\0\0\3" + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, 7) + b"abc"])
def test_who_never_chooses_an_export_is_sent_away(
    exporter: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: bytes
) -> None:
    add_image(exporter, "n")
    server = exporter.start()
    exporter.export("n")
    monkeypatch.setattr(connection_module, "HANDSHAKE_S", 0.2)
    client = exporter.connect("n")
    with exporter.socket() as sock:
        sock.settimeout(20)
        assert len(sock.recv(100)) == p.GREETING.size
        sock.sendall(said)
        assert sock.recv(100) == b""
    wait_until(lambda: server.connections == 1)
    time.sleep(0.2)
    assert client.pread(512, 0) == bytes(512)  # who has chosen stays
    assert capsys.readouterr().err.endswith("option negotiation failed: The NBD peer did not answer in time\n")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "injected"), QobraError("injected", errno=errno.EIO)])
def test_metadata_that_cannot_be_read_are_an_error_of_the_request(
    exporter: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    node = add_image(exporter, "n")
    node.write(0, b"1" * MIB)
    exporter.export("n")
    client = exporter.connect("n")

    def fail(*_arguments: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(node, "map", fail)
        with pytest.raises(QobraError) as read:
            client.pread(4096, 0)
        assert read.value.errno == errno.EIO
    assert client.pread(4096, 0) == b"1" * 4096


@pytest.mark.parametrize("option", [("cluster_size", "512"), ("extended_l2", "on")])
def test_images_in_small_pieces_are_not_resolved_for_each_write(
    exporter: Any, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str]
) -> None:
    """Writes that make the image one of many pieces, none of which fills a unit of the table."""
    path = exporter.tmp_path / "n.qcow2"
    with exporter.layer.control:
        plan(exporter.layer, str(path), "qcow2", [option], size=SIZE).run(exporter.layer)
    exporter.add({"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": str(path)}})
    exporter.export("n")
    resolved = []
    monkeypatch.setattr(ResolvedTable, "look", lambda *_arguments: None)
    monkeypatch.setattr(ResolvedTable, "fill", lambda *arguments: resolved.append(arguments))
    client = exporter.connect("n")
    places = random.Random(3).sample(range(SIZE // 4096), 400)
    for place in places:
        client.pwrite(bytes([place % 255 + 1]) * 4096, place * 4096)
    assert all(client.pread(4096, place * 4096) == bytes([place % 255 + 1]) * 4096 for place in places[:50])
    assert len(resolved) < 100


def test_what_a_failed_request_keeps_of_the_loop_can_be_collected(
    exporter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error whose frames know it is a cycle, and the loop that asked is in it."""
    exporter.add({"driver": "test-told", "node-name": "n"})
    exporter.export("n")
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def fail(_offset: int, _view: memoryview) -> None:
        error = OSError(errno.EIO, "injected")
        raise error

    monkeypatch.setattr(exporter.layer.graph.find("n"), "_read", fail)
    client = exporter.connect("n")
    with pytest.raises(QobraError):
        client.pread(4096, 0)
    client.close()
    wait_until(lambda: not any(thread.name == "nbd-connection" for thread in threading.enumerate()))
    gc.collect()
    assert not unraisable

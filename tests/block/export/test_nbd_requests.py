"""What an NBD client gets from an export: data, errors, status, and in which order."""

from __future__ import annotations

import errno
import random
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.block.bitmap import DirtyBitmap
from qobra.block.export.nbd import serving
from qobra.block.export.nbd.helpers import Pace
from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.testing.waiting import wait_until

KIB = 1 << 10
MIB = 1 << 20


def errno_of(call: Any, *args: Any, **kwargs: Any) -> int | None:
    with pytest.raises(QobraError) as caught:
        call(*args, **kwargs)
    return caught.value.errno


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("kind", ["file", "told"])
def test_reads_and_writes_of_all_lengths(exporter: Any, kind: str, structured: bool) -> None:
    source = random.Random(7)
    content = bytearray(source.randbytes(5 * MIB + 512))
    if kind == "file":
        exporter.file("n", bytes(content))
    else:
        exporter.told("n", len(content)).data[:] = content
    exporter.export("n")
    client = exporter.connect("n", structured=structured)
    for length in (1, 511, 512, 4096, 65535, 65536, 65537, 300 * KIB, MIB, 2 * MIB + 3, 5 * MIB + 512):
        offset = source.randrange(0, len(content) - length + 1)
        assert client.pread(length, offset) == content[offset : offset + length]
        data = source.randbytes(length)
        client.pwrite(data, offset, fua=bool(length & 1))
        content[offset : offset + length] = data
    assert client.pread(len(content), 0) == content


@pytest.mark.parametrize("seed", range(3))
def test_a_random_mix_in_flight_equals_a_model(exporter: Any, seed: int) -> None:
    """Four connections own a quarter each, and keep many requests of all kinds in flight there."""
    quarter = 256 * KIB
    model = bytearray(random.Random(seed).randbytes(4 * quarter))
    exporter.file("n", bytes(model))
    exporter.export("n")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            source = random.Random(seed * 10 + number)
            client = exporter.connect("n")
            base = number * quarter
            for _ in range(60):
                # Within one round, requests do not overlap: their order is open.
                requests, checks = [], []
                position = base
                while position < base + quarter:
                    length = min(source.choice((1, 512, 4096, 10_000, 70_000)), base + quarter - position)
                    match source.randrange(4):
                        case 0:
                            data = source.randbytes(length)
                            model[position : position + length] = data
                            requests.append(client.aio_pwrite(data, position))
                        case 1:
                            model[position : position + length] = bytes(length)
                            requests.append(client.aio_zero(length, position, no_hole=bool(source.randrange(2))))
                        case _:
                            read = client.aio_pread(length, position)
                            checks.append((read, bytes(model[position : position + length])))
                    position += length + source.randrange(20_000)
                requests.append(client.aio_flush())
                for request in requests:
                    request.result(60)
                for read, expected in checks:
                    assert read.result(60) == expected
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not failures
    assert exporter.connect("n").pread(len(model), 0) == model


def test_flags_and_sizes(exporter: Any) -> None:
    exporter.told("n")
    exporter.export("n", description="words")
    exporter.export("n", id="ro", name="ro", writable=False)
    info = exporter.connect("n").info
    assert (info.size, info.description, info.block_sizes) == (MIB, "words", (1, 4096, 32 * MIB))
    assert info.can_flush and info.can_fua and info.can_trim and info.can_zero and info.can_fast_zero
    assert info.can_df and info.can_cache and info.can_multi_conn and not info.read_only and not info.rotational
    assert not exporter.connect("n", structured=False).info.can_df
    info = exporter.connect("ro").info
    assert info.read_only and info.can_multi_conn and not info.can_trim and not info.can_zero


def test_the_nodes_methods_get_what_the_flags_say(exporter: Any) -> None:
    node = exporter.told("n")
    exporter.export("n")
    client = exporter.connect("n")
    for call in (
        lambda: client.pwrite(b"x" * 512, 0, fua=True),
        lambda: client.zero(4096, 0),
        lambda: client.zero(4096, 0, no_hole=True, fast=True, fua=True),
        lambda: client.trim(8192, 4096, fua=True),
        lambda: client.flush(),
    ):
        node.log.append("-")
        call()
    assert node.log == [
        *("-", ("write", 0, 512), ("flush",)),
        *("-", ("zero", 0, 4096, True, False)),
        *("-", ("zero", 0, 4096, False, True), ("flush",)),
        *("-", ("discard", 4096, 8192), ("flush",)),
        *("-", ("flush",)),
    ]


def test_writethrough(exporter: Any) -> None:
    node = exporter.told("n")
    exporter.file("f", bytes(MIB))
    exporter.export("n", writethrough=True)
    exporter.export("f", writethrough=True)
    exporter.connect("n").pwrite(b"x", 0)
    assert node.log == [("write", 0, 1), ("flush",)]
    client = exporter.connect("f")
    client.pwrite(b"abc", 5)
    assert client.pread(3, 5) == b"abc"


def test_errors_come_back_with_their_number(exporter: Any) -> None:
    node = exporter.told("n")
    exporter.export("n")
    client = exporter.connect("n")
    for what, call, number in (
        ("read", lambda: client.pread(10, 0), errno.EIO),
        ("write", lambda: client.pwrite(b"x", 0), errno.ENOSPC),
        ("zero", lambda: client.zero(10, 0), errno.ENOMEM),
        ("discard", lambda: client.trim(10, 0), errno.EPERM),
        ("flush", lambda: client.flush(), errno.EIO),
    ):
        node.failing = {what: number}
        assert errno_of(call) == number
    node.failing = {"read": errno.EACCES}  # which the protocol does not have
    assert errno_of(client.pread, 10, 0) == errno.EINVAL
    node.failing = {}
    assert client.pread(10, 0) == bytes(10)


def test_no_fast_zeroes(exporter: Any) -> None:
    node = exporter.told("n")
    node._write_zeroes = lambda *_: False
    exporter.export("n")
    client = exporter.connect("n")
    assert errno_of(client.zero, 10, 0, fast=True) == errno.ENOTSUP
    client.pwrite(b"x" * 10, 0)
    client.zero(10, 0)
    assert client.pread(10, 0) == bytes(10)


class Raw:
    """Requests that the client library would not send."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.info.flags = 0xFFF & ~p.FLAG_READ_ONLY
        client.info.size = 1 << 50
        client._max_payload = 1 << 31

    def error(self, command: int, offset: int, length: int, flags: int = 0, payload: bytes = b"") -> Any:
        request = self._client._submit(command, length, offset, None, flags=flags, payload=[payload])
        request.view = memoryview(bytearray(length)) if command == p.CMD_READ and length < MIB else None
        error = request.exception(60)
        return error.errno if error is not None else None


@pytest.mark.parametrize("structured", [True, False])
def test_requests_that_make_no_sense(exporter: Any, structured: bool) -> None:
    exporter.file("n", bytes(MIB))
    exporter.export("n")
    exporter.export("n", id="ro", name="ro", writable=False)
    raw = Raw(exporter.connect("n", structured=structured))
    read_only = Raw(exporter.connect("ro", structured=structured))
    for _ in range(2):  # in one batch and apart
        assert raw.error(p.CMD_READ, MIB - 5, 10) == errno.EINVAL
        assert raw.error(p.CMD_READ, 1 << 49, 10) == errno.EINVAL
        assert raw.error(p.CMD_READ, 0, 33 * MIB) == errno.EINVAL
        assert raw.error(p.CMD_READ, 0, 10, flags=p.CMD_FLAG_NO_HOLE) == errno.EINVAL
        assert raw.error(p.CMD_WRITE, MIB - 5, 10, payload=bytes(10)) == errno.ENOSPC
        assert raw.error(p.CMD_WRITE, 0, 10, flags=p.CMD_FLAG_DF, payload=bytes(10)) == errno.EINVAL
        assert raw.error(p.CMD_WRITE_ZEROES, MIB - 5, 10) == errno.ENOSPC
        assert raw.error(p.CMD_TRIM, MIB - 5, 10) == errno.EINVAL
        assert raw.error(p.CMD_CACHE, MIB - 5, 10) == errno.EINVAL
        assert raw.error(p.CMD_BLOCK_STATUS, 0, 10) == errno.EINVAL  # not negotiated
        assert raw.error(77, 0, 10) == errno.EINVAL
        assert read_only.error(p.CMD_WRITE, 0, 10, payload=bytes(10)) == errno.EPERM
        assert read_only.error(p.CMD_WRITE, 0, MIB, payload=bytes(MIB)) == errno.EPERM
        assert read_only.error(p.CMD_WRITE_ZEROES, 0, 10) == errno.EPERM
        assert read_only.error(p.CMD_TRIM, 0, 10) == errno.EPERM
        assert raw.error(p.CMD_FLUSH, 0, 0) is None


@pytest.mark.parametrize("structured", [True, False])
def test_fua_is_valid_with_every_command(exporter: Any, structured: bool) -> None:
    exporter.file("n", bytes(MIB))
    exporter.export("n")
    raw = Raw(exporter.connect("n", structured=structured, meta_contexts=["base:allocation"] * structured))
    commands = [p.CMD_READ, p.CMD_FLUSH, p.CMD_TRIM, p.CMD_CACHE, p.CMD_WRITE_ZEROES]
    for command in commands + [p.CMD_BLOCK_STATUS] * structured:
        length = 0 if command == p.CMD_FLUSH else 4096
        assert raw.error(command, 0, length, flags=p.CMD_FLAG_FUA) is None, command


def test_df_is_unknown_without_structured_replies(exporter: Any) -> None:
    exporter.file("n", bytes(MIB))
    exporter.export("n")
    assert Raw(exporter.connect("n", structured=False)).error(p.CMD_READ, 0, 10, flags=p.CMD_FLAG_DF) == errno.EINVAL


def test_a_slow_request_does_not_hold_up_the_others(exporter: Any) -> None:
    node = exporter.told("slow")
    exporter.export("slow")
    client = exporter.connect("slow")
    node.hold = threading.Event()
    (connection,) = exporter.exports.of_type("nbd")[0]._clients
    connection._pace(p.CMD_READ).note(10**9)  # as if reads had taken long
    held = [client.aio_pread(10, 0) for _ in range(3)]
    for _ in held:
        assert node.entered.acquire(timeout=30)  # all three are inside the node at once
    client.pwrite(b"x", 100)
    client.flush()
    assert not any(each.done for each in held)
    node.hold.set()
    for each in held:
        each.result(30)


def test_pace() -> None:
    pace = Pace()
    for _ in range(100):
        pace.note(900_000)
    assert not pace.slow
    for _ in range(20):
        pace.note(3_000_000)
    assert pace.slow
    for _ in range(100):
        pace.note(8_000_000, 16)  # slow, though many at a time: they wait for something outside
    assert pace.slow
    for _ in range(100):
        pace.note(1_600_000, 16)  # they wait for one another
    assert not pace.slow


def test_draining_waits_for_requests_and_holds_new_ones(exporter: Any) -> None:
    node = exporter.told("n")
    exporter.export("n")
    client = exporter.connect("n")
    node.hold = threading.Event()
    request = client.aio_pread(10, 0)
    assert node.entered.acquire(timeout=30)
    drained = threading.Event()
    reopen = threading.Event()

    def drain() -> None:
        with exporter.layer.drained():
            node.log.append("drained")
            drained.set()
            reopen.wait(30)
            node.log.append("open")

    thread = threading.Thread(target=drain)
    thread.start()
    assert not drained.wait(0.01)
    node.hold.set()
    assert drained.wait(30)
    request.result(30)
    late = client.aio_pwrite(b"x", 0)
    assert not late.done and not client.poll(0.01)
    reopen.set()
    late.result(30)
    thread.join(30)
    assert node.log == [("read", 0, 10), "drained", "open", ("write", 0, 1)]


def test_a_client_that_does_not_read_does_not_stop_draining(exporter: Any) -> None:
    exporter.file("n", bytes(4 * MIB))
    exporter.export("n")
    client = exporter.connect("n")
    for _ in range(8):
        client._link.submit(client_request(client), 0)
    with exporter.layer.drained():
        pass


def test_questions_for_block_status_are_answered_one_by_one(exporter: Any, monkeypatch: Any) -> None:
    """They hold the interpreter: hundreds at once would keep it from every other client."""
    node = exporter.told("n")
    exporter.export("n")
    answering = 0
    most = 0
    answer = node.map

    def slow(*arguments: Any) -> Any:
        nonlocal answering, most
        answering += 1
        most = max(most, answering)
        time.sleep(0.003)
        answering -= 1
        return answer(*arguments)

    monkeypatch.setattr(node, "map", slow)
    clients = [exporter.connect("n", meta_contexts=["base:allocation"]) for _ in range(3)]
    for request in [client.aio_block_status(4096, 0) for client in clients for _ in range(12)]:
        assert request.result()
    assert most == 1


def client_request(client: Any) -> Any:
    from qobra.nbd.request import Request

    request: Any = Request(client._link, p.CMD_READ, 0, 2 * MIB, None)
    request.view = memoryview(bytearray(2 * MIB))
    return request


def test_base_allocation(exporter: Any) -> None:
    node = exporter.file("n", b"")
    node.file.truncate(4 * MIB)
    node.child_resized("file")
    exporter.export("n")
    client = exporter.connect("n", meta_contexts=["base:allocation"])
    client.pwrite(b"x" * 64 * KIB, MIB)
    block = 4 * KIB  # a new file has its first block
    assert list(client.extents()) == [
        (0, block, 0),
        (block, MIB - block, 3),
        (MIB, 64 * KIB, 0),
        (MIB + 64 * KIB, 3 * MIB - 64 * KIB, 3),
    ]
    assert client.block_status(4 * MIB, 0, one=True) == {"base:allocation": [(block, 0)]}
    assert client.block_status(10, MIB - 5) == {"base:allocation": [(5, 3), (5, 0)]}


def test_holes_in_reads_and_depth(exporter: Any, tmp_path: Any) -> None:
    base = tmp_path / "base.qcow2"
    top = tmp_path / "top.qcow2"
    create(base, 4 * MIB)
    create(top, 4 * MIB)
    options = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": str(top)}}
    below = {"driver": "qcow2", "node-name": "b", "file": {"driver": "file", "filename": str(base)}}
    exporter.add({**below})
    exporter.export("b", id="b")
    client = exporter.connect("b")
    client.pwrite(b"b" * MIB, MIB)
    client.close()
    wait_until(lambda: not exporter.exports.of_type("nbd")[0].in_use)
    exporter.exports.remove("b")
    exporter.add({**options, "backing": "b"})
    exporter.export("n", **{"allocation-depth": True})
    client = exporter.connect("n", meta_contexts=["base:allocation", "qemu:allocation-depth"])
    client.pwrite(b"t" * 64 * KIB, 0)
    assert list(client.extents("qemu:allocation-depth")) == [
        (0, 64 * KIB, 1),
        (64 * KIB, MIB - 64 * KIB, 0),
        (MIB, MIB, 2),
        (2 * MIB, 2 * MIB, 0),
    ]
    data, holes = client.pread_sparse(4 * MIB, 0)
    assert data == b"t" * 64 * KIB + bytes(MIB - 64 * KIB) + b"b" * MIB + bytes(2 * MIB)
    assert holes == [(64 * KIB, MIB - 64 * KIB), (2 * MIB, 2 * MIB)]
    for offset, length in ((100 * KIB, 512), (2 * MIB + 1, 1), (64 * KIB, 256 * KIB)):  # only zeroes: one hole
        for _ in range(2):
            assert client.pread_sparse(length, offset) == (bytes(length), [(offset, length)])
    for _ in range(2):  # both, at any size
        assert client.pread_sparse(1024, 64 * KIB - 512)[1] == [(64 * KIB, 512)]
    assert client.pread(4 * MIB, 0, df=True) == data
    for length in (100, 64 * KIB, 128 * KIB, 192 * KIB):  # through the table, once and again
        for _ in range(2):
            assert client.pread(length, 32 * KIB) == data[32 * KIB : 32 * KIB + length]


def create(path: Any, size: int) -> None:
    import subprocess

    if subprocess.run(["sh", "-c", "command -v qemu-img"], capture_output=True).returncode:
        pytest.skip("qemu-img is not installed")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)


def test_dirty_bitmaps(exporter: Any) -> None:
    node = exporter.told("n", MIB)
    bitmap = DirtyBitmap(node, "b", 64 * KIB)
    exporter.start()
    with pytest.raises(QobraError, match="Enabled bitmap 'b' incompatible with readonly export"):
        exporter.export("n", bitmaps=["b"], writable=False)
    exporter.export("n", bitmaps=["b"])
    assert bitmap.busy
    DirtyBitmap(node, "named", 64 * KIB)
    exporter.export("n", id="n1", name="n1", bitmaps=[{"node": "n", "name": "named"}], writable=False)
    client = exporter.connect("n", meta_contexts=["qemu:dirty-bitmap:b", "base:allocation"])
    client.pwrite(b"x", 100)
    client.pwrite(b"x" * KIB, 3 * 64 * KIB - 1)
    status = client.block_status(MIB - 10, 10)
    assert status["qemu:dirty-bitmap:b"] == [
        (64 * KIB - 10, 1),
        (64 * KIB, 0),
        (128 * KIB, 1),
        (MIB - 256 * KIB, 0),
    ]
    assert list(client.extents("qemu:dirty-bitmap:b")) == [
        (0, 64 * KIB, 1),
        (64 * KIB, 64 * KIB, 0),
        (128 * KIB, 128 * KIB, 1),
        (256 * KIB, MIB - 256 * KIB, 0),
    ]
    with pytest.raises(QobraError, match="currently in use"):
        exporter.export("n", id="n2", name="n2", bitmaps=["b"])
    exporter.exports.remove("n", "hard")
    wait_until(lambda: exporter.events)
    assert not bitmap.busy


def test_a_bitmap_from_down_the_chain(exporter: Any) -> None:
    below = exporter.told("below")
    DirtyBitmap(below, "b", 64 * KIB, enabled=False)
    exporter.add({"driver": "raw", "node-name": "top", "file": "below"})
    exporter.start()
    export = exporter.export("top", bitmaps=[{"node": "below", "name": "b"}], writable=False)
    assert export.contexts() == {"base:allocation": 0, "qemu:dirty-bitmap:b": 2}


def test_a_write_is_seen_by_trackers(exporter: Any) -> None:
    node = exporter.file("n", bytes(MIB))
    exporter.export("n")
    client = exporter.connect("n")
    client.pwrite(b"x" * 10, 0)  # past the node's methods
    bitmap = DirtyBitmap(node, "b", 512)
    client.pwrite(b"x" * 10, 1024)
    client.pwrite(b"x" * 100 * KIB, 4096)
    assert list(bitmap.dirty_ranges()) == [(1024, 512), (4096, 100 * KIB)]


def test_the_highest_write_is_noted(exporter: Any) -> None:
    node = exporter.file("n", bytes(4 * MIB), offset=512)
    exporter.export("n")
    client = exporter.connect("n")
    client.pwrite(b"x" * 512, 1024)
    assert (node.highest_write(), node.file.highest_write()) == (1536, 2048)
    client.pwrite(b"x" * MIB, MIB)
    client.pwrite(b"x", 0)
    assert (node.highest_write(), node.file.highest_write()) == (2 * MIB, 2 * MIB + 512)


def test_a_changed_graph_is_noticed(exporter: Any) -> None:
    from qobra.block import permissions

    first = exporter.file("first", b"1" * MIB)
    second = exporter.file("second", b"2" * MIB)
    export = exporter.export("first", id="e", name="e")
    client = exporter.connect("e")
    assert client.pread(4, 0) == b"1111"
    with exporter.layer.control, exporter.layer.graph.change() as change:
        change.set_root(export.backend, second)
    assert client.pread(4, 0) == b"2222"
    client.pwrite(b"xx", 0)
    assert second.read(0, 4) == b"xx22" and first.read(0, 4) == b"1111"
    assert second.perm & permissions.WRITE


def test_cache_reads_what_a_node_computes(exporter: Any) -> None:
    node = exporter.told("n")
    exporter.file("f", bytes(MIB))
    exporter.export("n")
    exporter.export("f")
    exporter.connect("n").cache(3 * 512 * KIB // 2, 0)
    assert node.log == [("read", 0, 3 * 512 * KIB // 2)]
    exporter.connect("f").cache(MIB, 0)


def test_minimum_block_size(exporter: Any) -> None:
    node = exporter.told("n", 10_000)
    node.request_alignment = 4096
    exporter.export("n")
    client = exporter.connect("n")
    assert (client.size, client.block_sizes) == (8192, (4096, 4096, 32 * MIB))


@pytest.mark.parametrize(("structured", "alignment"), [(True, 1), (True, 512), (False, 1)])
def test_a_length_that_is_no_whole_sector(exporter: Any, structured: bool, alignment: int) -> None:
    node = exporter.file("n", b"x" * 1000)
    node.request_alignment = alignment
    exporter.export("n")
    client = exporter.connect("n", structured=structured, meta_contexts=["base:allocation"] if structured else [])
    assert client.size == 1024
    assert client.pread(1024, 0) == b"x" * 1000 + bytes(24)
    assert client.pread(10, 1010) == bytes(10)
    client.pwrite(b"y" * 488 + bytes(24), 512)
    client.zero(512, 512)
    client.trim(512, 512)
    assert errno_of(client.pwrite, b"y" * 512, 512) == errno.ENOSPC
    assert node.length == 1000
    if structured:
        assert client.block_status(1024, 0) == {
            "base:allocation": [(1000, 0), (24, 3)] if alignment == 1 else [(1024, 0)]
        }


GARBAGE = st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda f, c, o, n: p.REQUEST.pack(p.REQUEST_MAGIC, f, c, 1, o, n),
        st.integers(0, 31),
        st.integers(0, 9),
        st.sampled_from([0, 1, 512, MIB - 1, MIB, 1 << 40, (1 << 64) - 1]),
        st.sampled_from([0, 1, 512, 4096, 70_000, MIB, 33 << 20, (1 << 32) - 1]),
    ),
)


@given(messages=st.lists(GARBAGE, max_size=6), structured=st.booleans())
def test_garbage_ends_the_connection_and_nothing_else(
    shared_exporter: Any, messages: list[bytes], structured: bool
) -> None:
    import socket

    exporter = shared_exporter
    client = exporter.connect("n", structured=structured)
    sock = client._link.transport.socket
    threads = [threading.Thread(target=swallow, args=(sock,))]
    threads[0].start()
    try:
        for message in messages:
            sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # dropped already
    threads[0].join(60)
    assert not threads[0].is_alive()
    client.abort()
    with exporter.connect("n") as other:
        assert other.pread(512, 1024) == bytes(512)


def swallow(sock: Any) -> None:
    try:
        while sock.recv(1 << 20):
            pass
    except OSError:
        pass


@pytest.fixture(scope="module")
def shared_exporter(tmp_path_factory: Any, make_exporter: Any, form: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "use_compiled", form == "compiled")
        yield from share(tmp_path_factory, make_exporter)


def share(tmp_path_factory: Any, make_exporter: Any) -> Any:
    made = make_exporter(tmp_path_factory.mktemp("shared"))
    made.file("n", bytes(MIB))
    made.export("n", writable=False)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "Failed to read flags: Unexpected end-of-file before all data were read"),
        (p.CLIENT_FLAGS.pack(0xF0), "Unknown client flags 0xf0 received"),
        (p.CLIENT_FLAGS.pack(3), "Failed to read opts magic: Unexpected end-of-file before all data were read"),
        (p.CLIENT_FLAGS.pack(3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, 1) + b"x", "export not found"),
        (p.CLIENT_FLAGS.pack(3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_ABORT, 0), None),
    ],
)
def test_why_a_client_did_not_get_in_is_said(exporter: Any, capsys: Any, sent: bytes, reason: str | None) -> None:
    exporter.file("n", bytes(MIB))
    exporter.export("n")
    with exporter.socket() as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    said = capsys.readouterr().err
    assert said.endswith(f": option negotiation failed: {reason}\n") if reason else not said


def test_a_client_that_does_not_wait_for_its_answer(exporter: Any, capsys: Any) -> None:
    """Only the system knows why the answer cannot be sent: it is said what was done with the socket."""
    exporter.file("n", bytes(MIB))
    exporter.export("n")
    for _ in range(8):
        with exporter.socket() as sock:
            sock.sendall(p.CLIENT_FLAGS.pack(3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_LIST, 0) * 1000)
    exporter.close()
    said = capsys.readouterr().err
    assert "option negotiation failed: Unable to write to socket: Broken pipe" in said
    assert "NBD connection failed" not in said

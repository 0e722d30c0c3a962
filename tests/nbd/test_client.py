"""The client's transmission phase, against a scripted server."""

from __future__ import annotations

import errno
import gc
import random
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.nbd import client as client_module
from qobra.nbd import connect
from qobra.nbd import protocol as p
from qobra.nbd.client import Client

Serve = Callable[[Callable[[Any], Any]], socket.socket]

BASE = {1: "base:allocation"}


def disk(s: Any, data: bytearray, *, structured: bool = True) -> None:
    """A server over ``data`` that answers what is there out of order, two at a time."""
    held: list[tuple[int, int, int, int, bytes]] = []
    while True:
        command, _flags, cookie, offset, length = s.request()
        payload = s.recv(length) if command == p.CMD_WRITE else b""
        held.append((command, cookie, offset, length, payload))
        if len(held) > 1 or command in (p.CMD_DISC, p.CMD_FLUSH):
            for command, cookie, offset, length, payload in reversed(held):
                if command == p.CMD_DISC:
                    return
                if command == p.CMD_WRITE:
                    data[offset : offset + length] = payload
                if command == p.CMD_READ and structured:
                    s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(offset) + data[offset : offset + length])
                else:
                    s.simple(cookie, 0, bytes(data[offset : offset + length]) if command == p.CMD_READ else b"")
            held.clear()


def test_simple_replies(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake(structured=False)
        request = s.request()
        assert request[:2] == (p.CMD_READ, 0)
        s.simple(request[2], 0, b"abcd")
        request = s.request()
        assert request[:2] == (p.CMD_WRITE, p.CMD_FLAG_FUA)
        assert s.recv(3) == b"xyz"
        s.simple(request[2], errno.ENOSPC)

    client = connect(serve(script))
    assert client.pread(4, 100) == b"abcd"
    with pytest.raises(QobraError, match="write at 5 failed: No space left") as caught:
        client.pwrite(b"xyz", 5, fua=True)
    assert caught.value.errno == errno.ENOSPC
    client.close()


def test_every_command_and_flag_on_the_wire(serve: Serve) -> None:
    seen = []

    def script(s: Any) -> None:
        s.shake(contexts=BASE)
        while (request := s.request())[0] != p.CMD_DISC:
            seen.append((*request[:2], *request[3:]))
            if request[0] == p.CMD_READ:
                s.chunk(request[2], p.CHUNK_OFFSET_HOLE, p.HOLE_BODY.pack(request[3], request[4]))
            elif request[0] == p.CMD_BLOCK_STATUS:
                s.chunk(request[2], p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + p.EXTENT.pack(request[4], 3))
            else:
                s.simple(request[2])

    with connect(serve(script), meta_contexts=BASE.values()) as client:
        assert client.pread(512, 512, df=True) == bytes(512)
        client.zero(1024, 0, fua=True, no_hole=True, fast=True)
        client.zero(1024, 0)
        client.trim(2048, 4096, fua=True)
        client.cache(100, 1)
        client.flush()
        assert client.block_status(4096, 0, one=True) == {"base:allocation": [(4096, 3)]}
    assert seen == [
        (p.CMD_READ, p.CMD_FLAG_DF, 512, 512),
        (p.CMD_WRITE_ZEROES, p.CMD_FLAG_FUA | p.CMD_FLAG_NO_HOLE | p.CMD_FLAG_FAST_ZERO, 0, 1024),
        (p.CMD_WRITE_ZEROES, 0, 0, 1024),
        (p.CMD_TRIM, p.CMD_FLAG_FUA, 4096, 2048),
        (p.CMD_CACHE, 0, 1, 100),
        (p.CMD_FLUSH, 0, 0, 0),
        (p.CMD_BLOCK_STATUS, p.CMD_FLAG_REQ_ONE, 0, 4096),
    ]


def test_chunks_in_any_order_with_holes(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake()
        _, _, cookie, offset, length = s.request()
        assert (offset, length) == (1000, 300)
        s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(1200) + b"c" * 100, done=False)
        s.chunk(cookie, p.CHUNK_OFFSET_HOLE, p.HOLE_BODY.pack(1100, 100), done=False)
        s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(1000) + b"a" * 100, done=False)
        s.chunk(cookie, p.CHUNK_NONE)

    client = connect(serve(script))
    assert client.pread_sparse(300, 1000) == (b"a" * 100 + bytes(100) + b"c" * 100, [(1100, 100)])
    client.abort()


def test_error_chunks(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake()
        cookie = s.request()[2]
        s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(0) + b"a", done=False)
        s.chunk(cookie, p.CHUNK_ERROR_OFFSET, p.ERROR_BODY.pack(errno.EIO, 3) + b"bad" + p.U64.pack(1), done=False)
        s.chunk(cookie, p.CHUNK_NONE)
        cookie = s.request()[2]
        s.chunk(cookie, p.CHUNK_ERROR, p.ERROR_BODY.pack(9999, 0))

    client = connect(serve(script))
    with pytest.raises(QobraError, match="read at 0 failed: Input/output error: bad"):
        client.pread(2, 0)
    with pytest.raises(QobraError) as caught:  # an unknown number counts as EINVAL
        client.pread(2, 0)
    assert caught.value.errno == errno.EINVAL
    assert client.broken is None
    client.abort()


def test_block_status_is_cut_to_what_was_asked(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake(contexts={1: "base:allocation", 9: "qemu:dirty-bitmap:b"})
        cookie = s.request()[2]
        s.chunk(
            cookie, p.CHUNK_BLOCK_STATUS, p.U32.pack(9) + p.EXTENT.pack(100, 1) + p.EXTENT.pack(9999, 0), done=False
        )
        s.chunk(cookie, p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + p.EXTENT.pack(50, 0))

    client = connect(serve(script), meta_contexts=["base:allocation", "qemu:dirty-bitmap:b"])
    assert client.block_status(1000, 0) == {"qemu:dirty-bitmap:b": [(100, 1), (900, 0)], "base:allocation": [(50, 0)]}
    client.abort()


def test_extents_ask_on_and_merge(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake(size=1000, contexts=BASE)
        for offset, extents in ((0, [(100, 0), (100, 3)]), (200, [(300, 3)]), (500, [(500, 0)])):
            request = s.request()
            assert request[3] == offset
            s.chunk(request[2], p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + b"".join(p.EXTENT.pack(*e) for e in extents))

    client = connect(serve(script), meta_contexts=["base:allocation"])
    assert list(client.extents()) == [(0, 100, 0), (100, 400, 3), (500, 500, 0)]
    client.abort()


def test_what_the_export_cannot_do_is_not_sent(serve: Serve) -> None:
    client = connect(serve(lambda s: s.shake(size=4096, flags=p.FLAG_HAS_FLAGS | p.FLAG_READ_ONLY)))
    for call, number in (
        (lambda: client.pwrite(b"x", 0), errno.EPERM),
        (lambda: client.trim(1, 0), errno.EPERM),
        (lambda: client.flush(), errno.ENOTSUP),
        (lambda: client.cache(1, 0), errno.ENOTSUP),
        (lambda: client.pread(1, 0, df=True), errno.ENOTSUP),
        (lambda: client.block_status(1, 0), errno.ENOTSUP),
        (lambda: client.pread(2, 4095), errno.EINVAL),
        (lambda: client.pread(-1, 0), errno.EINVAL),
        (lambda: client.pread(1, -1), errno.EINVAL),
    ):
        with pytest.raises(QobraError) as caught:
            call()
        assert caught.value.errno == number
    assert client.pread(0, 4096) == b""
    client.abort()


def test_long_calls_are_split_by_the_servers_limits(serve: Serve) -> None:
    lengths = []
    content = random.Random(1).randbytes(100_000)

    def script(s: Any) -> None:
        s.shake(size=100_000, block_sizes=(1, 1, 40_000))
        while (request := s.request())[0] != p.CMD_DISC:
            _, _, cookie, offset, length = request
            lengths.append(length)
            s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(offset) + content[offset : offset + length])

    with connect(serve(script)) as client:
        assert client.pread(100_000, 0) == content
        with pytest.raises(QobraError, match="limit is 40000"):
            client.aio_pread(40_001, 0)
    assert lengths == [40_000, 40_000, 20_000]


def test_many_in_flight_answered_out_of_order(serve: Serve) -> None:
    content = bytearray(random.Random(2).randbytes(1 << 20))

    def script(s: Any) -> None:
        s.shake()
        disk(s, content)

    with connect(serve(script)) as client:
        offsets = [random.Random(3).randrange(0, (1 << 20) - 4096) for _ in range(200)]
        requests = [client.aio_pread(4096, offset) for offset in offsets]
        assert client.in_flight > 0
        by_request = dict(zip(map(id, requests), offsets, strict=True))
        for request in client.as_completed(requests):
            offset = by_request.pop(id(request))
            assert request.result() == content[offset : offset + 4096]
        assert not by_request


def test_many_threads(serve: Serve) -> None:
    content = bytearray(1 << 20)

    def script(s: Any) -> None:
        s.shake()
        while (request := s.request())[0] != p.CMD_DISC:
            command, _, cookie, offset, length = request
            if command == p.CMD_WRITE:
                content[offset : offset + length] = s.recv(length)
                s.simple(cookie)
            else:
                s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(offset) + content[offset : offset + length])

    failures = []
    with connect(serve(script)) as client:

        def work(number: int) -> None:
            try:
                for turn in range(40):
                    data = bytes([number, turn]) * 1000
                    client.pwrite(data, number * 2000)
                    assert client.pread(2000, number * 2000) == data
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures


def test_two_threads_wait_for_one_request(serve: Serve) -> None:
    release = threading.Event()

    def script(s: Any) -> None:
        s.shake()
        cookie = s.request()[2]
        release.wait(20)
        s.simple(cookie)

    client = connect(serve(script))
    request = client.aio_flush()
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(request.result())) for _ in range(3)]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join(20)
    assert results == [None] * 3
    client.abort()


def test_a_server_that_reads_nothing_before_its_replies_are_read(serve: Serve) -> None:
    """Far more than the sockets hold, in both directions, from one thread that only submits."""

    def script(s: Any) -> None:
        s.shake(size=64 << 20)
        for _ in range(64):
            _, _, cookie, offset, length = s.request()
            s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(offset) + bytes(length))
        for _ in range(16):
            _, _, cookie, offset, length = s.request()
            s.recv(length)
            s.simple(cookie)

    client = connect(serve(script))
    requests: list[Any] = [client.aio_pread(1 << 18, number << 18) for number in range(64)]
    requests += [client.aio_pwrite(bytes(1 << 20), number << 20) for number in range(16)]
    for request in requests:
        request.result(20)
    client.abort()


def test_a_result_can_be_waited_for_again(serve: Serve) -> None:
    release = threading.Event()

    def script(s: Any) -> None:
        s.shake()
        cookie = s.request()[2]
        release.wait(20)
        s.simple(cookie)

    client = connect(serve(script))
    request = client.aio_flush()
    assert not client.poll()
    with pytest.raises(QobraError) as caught:
        request.result(0.01)
    assert caught.value.errno == errno.ETIMEDOUT and not request.done
    release.set()
    assert request.result(20) is None and request.done
    client.abort()


def test_a_stalled_server_breaks_the_connection(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake()
        s.request()
        s.send(b"\x66")  # the beginning of a reply, and no more
        s.recv(1000)

    client = connect(serve(script), timeout=0.05)
    with pytest.raises(QobraError, match="did not answer in time"):
        client.pread(10, 0)
    assert client.broken is not None
    client.close()


def test_a_lost_connection_fails_everything_in_flight(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake()
        for _ in range(3):
            s.request()

    client = connect(serve(script))
    requests = [client.aio_flush() for _ in range(3)]
    for request in requests:
        assert request.exception(20) is not None
    with pytest.raises(QobraError):
        client.flush()
    client.close()
    client.close()


def test_abort_from_another_thread(serve: Serve) -> None:
    waiting = threading.Event()

    def script(s: Any) -> None:
        s.shake()
        s.request()
        waiting.set()
        s.recv(1)

    client = connect(serve(script))
    failed: list[Exception | None] = []
    thread = threading.Thread(target=lambda: failed.append(client.aio_flush().exception()))
    thread.start()
    assert waiting.wait(20)
    client.abort()
    thread.join(20)
    assert isinstance(failed[0], QobraError) and failed[0].errno == errno.ESHUTDOWN


def test_close_waits_for_what_is_in_flight(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake()
        cookie = s.request()[2]
        assert s.request()[0] == p.CMD_DISC
        s.simple(cookie)

    client = connect(serve(script))
    request = client.aio_flush()
    client.close()
    assert request.result() is None


def test_close_leaves_a_server_that_owes_an_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LEAVE_SECONDS", 0.05)

    def script(s: Any) -> None:
        s.shake()
        s.request()
        s.recv(p.REQUEST.size + 1)

    disk = connect(serve(script))
    request = disk.aio_pread(1, 0)
    with pytest.raises(QobraError, match="in time"):
        request.result(0.01)
    disk.close()
    assert isinstance(request.exception(), QobraError)


def test_a_broken_connection_keeps_nothing_of_those_who_met_it(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake()
        s.request()

    class Mine:
        pass

    def meet(disk: Client) -> weakref.ref[Mine]:
        mine = Mine()
        with pytest.raises(QobraError):
            disk.pread(1, 0)
        return weakref.ref(mine)

    disk = connect(serve(script))
    met = [meet(disk) for _ in range(3)]
    gc.collect()
    assert disk.broken is not None
    assert [each() for each in met] == [None] * 3

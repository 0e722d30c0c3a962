"""The asyncio face, against a scripted server."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.nbd import aio, connect
from qobra.nbd import protocol as p

Serve = Callable[[Callable[[Any], Any]], socket.socket]

BASE = {1: "base:allocation"}


def memory(s: Any, data: bytearray) -> None:
    """A server over ``data`` that answers in order, in pieces, and a byte at a time at the beginning of each reply."""
    while (request := s.request())[0] != p.CMD_DISC:
        command, _, cookie, offset, length = request
        if command == p.CMD_WRITE:
            data[offset : offset + length] = s.recv(length)
        if command != p.CMD_READ:
            s.simple(cookie)
            continue
        body = p.U64.pack(offset) + data[offset : offset + length]
        head = p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, 1, p.CHUNK_OFFSET_DATA, cookie, len(body))
        for byte in head:
            s.send(bytes([byte]))
        s.send(body[:9])
        s.send(body[9:])


def test_reads_and_writes_side_by_side(serve: Serve) -> None:
    data = bytearray(random.Random(1).randbytes(1 << 20))
    expected = bytearray(data)

    def script(s: Any) -> None:
        s.shake()
        memory(s, data)

    async def main() -> None:
        async with await aio.connect(serve(script)) as disk:
            assert disk.size == 1 << 20
            await asyncio.gather(*(disk.pwrite(bytes([n]) * 5000, n * 20000) for n in range(20)))
            for n in range(20):
                expected[n * 20000 : n * 20000 + 5000] = bytes([n]) * 5000
            parts = await asyncio.gather(*(disk.pread(1 << 14, offset) for offset in range(0, 1 << 20, 1 << 14)))
            assert b"".join(parts) == expected
            await disk.flush()
            assert not disk.in_flight
        with pytest.raises(QobraError, match="was closed"):
            await disk.pread(1, 0)

    asyncio.run(main())
    assert data == expected


def test_more_than_the_socket_takes(serve: Serve) -> None:
    """The loop goes on while a server takes neither all of a write nor anything at all."""
    release = threading.Event()
    data = bytearray(16 << 20)

    def script(s: Any) -> None:
        s.shake(size=len(data))
        release.wait(20)
        memory(s, data)

    async def main() -> None:
        disk = await aio.connect(serve(script))
        content = random.Random(2).randbytes(16 << 20)
        write = asyncio.ensure_future(disk.pwrite(content, 0))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not write.done() and disk.in_flight
        release.set()
        await write
        assert await disk.pread(len(data), 0) == content
        await disk.close()
        await disk.close()

    asyncio.run(main())


def test_the_other_commands_and_runs(serve: Serve) -> None:
    seen = []

    def script(s: Any) -> None:
        s.shake(size=4000, contexts=BASE)
        while (request := s.request())[0] != p.CMD_DISC:
            seen.append(request[0])
            if request[0] == p.CMD_BLOCK_STATUS:
                s.chunk(request[2], p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + p.EXTENT.pack(1000, request[3] // 2000))
            else:
                s.simple(request[2])

    async def main() -> None:
        async with await aio.connect(serve(script), meta_contexts=BASE.values()) as disk:
            await disk.zero(1000, 0)
            await disk.trim(1000, 0)
            await disk.cache(1000, 0)
            assert await disk.block_status(500, 0) == {"base:allocation": [(500, 0)]}
            assert [run async for run in disk.extents()] == [(0, 2000, 0), (2000, 2000, 1)]
            with pytest.raises(QobraError, match="did not grant"):
                await anext(disk.extents("qemu:none"))

    asyncio.run(main())
    assert seen[:3] == [p.CMD_WRITE_ZEROES, p.CMD_TRIM, p.CMD_CACHE]


def test_errors(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake(size=100_000, block_sizes=(1, 1, 40_000))
        for _ in range(3):
            _, _, cookie, offset, length = s.request()
            if offset == 40_000:
                s.simple(cookie, errno.EIO)
            else:
                s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(offset) + bytes(length))
        s.request()

    async def main() -> None:
        disk = await aio.connect(serve(script))
        with pytest.raises(QobraError, match="simple reply to a read|at 40000 failed"):
            await disk.pread(100_000, 0)
        with pytest.raises(QobraError, match="outside the NBD export"):
            await disk.pread(1, 100_000)
        disk.abort()
        with pytest.raises(QobraError):
            await disk.flush()
        await disk.close()

    asyncio.run(main())


def test_a_connection_that_ends_fails_what_is_in_flight(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.shake()
        for _ in range(3):
            s.request()

    async def main() -> None:
        disk = await aio.connect(serve(script))
        answers = await asyncio.gather(*(disk.flush() for _ in range(3)), return_exceptions=True)
        assert all(isinstance(answer, QobraError) for answer in answers)
        assert disk.broken is not None
        await disk.close()

    asyncio.run(main())


def test_a_call_can_be_cancelled_and_its_answer_comes_later(serve: Serve) -> None:
    release = threading.Event()

    def script(s: Any) -> None:
        s.shake()
        cookies = [s.request()[2] for _ in range(2)]
        release.wait(20)
        for cookie in cookies:
            s.simple(cookie)
        s.request()

    async def main() -> None:
        disk = await aio.connect(serve(script))
        first, second = asyncio.ensure_future(disk.flush()), disk.aio_flush()
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert disk.in_flight == 2
        with pytest.raises(QobraError, match="await it"):  # the loop's thread must not wait
            second.result()
        release.set()
        await second
        second.result()
        await disk.close()

    asyncio.run(main())


def test_tls(serve: Serve, server_context: ssl.SSLContext, certificates: Any) -> None:
    data = bytearray(random.Random(3).randbytes(1 << 20))
    copy = bytes(data)

    def script(s: Any) -> None:
        s.greet()
        option, _ = s.option()
        assert option == p.OPT_STARTTLS
        s.reply(option, p.REP_ACK)
        s.sock = server_context.wrap_socket(s.sock, server_side=True)
        # The handshake goes on inside.
        while True:
            option, _body = s.option()
            if option == p.OPT_GO:
                s.reply(option, p.REP_INFO, p.INFO_EXPORT_BODY.pack(p.INFO_EXPORT, len(data), 0xFFF & ~2))
            s.reply(option, p.REP_ACK)
            if option == p.OPT_GO:
                break
        memory(s, data)

    async def main() -> None:
        context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
        context.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
        async with await aio.connect(serve(script), tls=context, tls_hostname="localhost") as disk:
            assert disk.tls
            assert await disk.pread(1 << 20, 0) == copy
            await disk.pwrite(copy[::-1], 0)
            assert data == copy[::-1]

    asyncio.run(main())


def test_requests_of_the_blocking_client_in_a_loop_of_ones_own(serve: Serve) -> None:
    """`fileno`, `poll` and `add_done_callback`, or `await`, are what an event loop needs."""
    data = bytearray(random.Random(4).randbytes(1 << 16))

    def script(s: Any) -> None:
        s.shake(size=len(data))
        memory(s, data)

    async def main() -> None:
        with connect(serve(script)) as disk:
            loop = asyncio.get_running_loop()
            loop.add_reader(disk.fileno(), disk.poll)
            called = []
            request = disk.aio_pread(100, 0)
            request.add_done_callback(called.append)
            assert await request == data[:100]
            assert called == [request]
            request.add_done_callback(called.append)
            assert called == [request] * 2
            # Answered by another thread, which does not disturb the loop's.
            later = disk.aio_pread(100, 100)
            loop.remove_reader(disk.fileno())
            waiting = asyncio.ensure_future(asyncio.wait_for(_await(later), 20))
            await asyncio.sleep(0)
            await asyncio.to_thread(later.result)
            assert await waiting == data[100:200]

    asyncio.run(main())


async def _await(request: Any) -> Any:
    return await request


def test_poll_does_not_wait_for_the_rest_of_a_reply(serve: Serve) -> None:
    steps = [threading.Event() for _ in range(3)]

    def script(s: Any) -> None:
        s.shake()
        _, _, cookie, offset, length = s.request()
        whole = p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, 1, p.CHUNK_OFFSET_DATA, cookie, length + 8)
        whole += p.U64.pack(offset) + b"x" * length
        for step, part in zip(steps, (whole[:10], whole[10:40], whole[40:]), strict=True):
            s.send(part)
            step.wait(20)

    with connect(serve(script)) as disk:
        request = disk.aio_pread(1000, 0)
        for step in steps[:2]:
            assert not disk.poll(0.001)
            with pytest.raises(QobraError) as caught:
                request.result(0)
            assert caught.value.errno == errno.ETIMEDOUT and not request.done
            step.set()
        assert disk.poll(20)
        assert request.result() == b"x" * 1000
        steps[2].set()
        disk.abort()


def test_a_server_that_says_nothing_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """``timeout`` breaks a connection on which an answer is due; to leave one without a time-out has a limit, too."""
    monkeypatch.setattr(aio, "LEAVE_SECONDS", 0.05)

    def script(s: Any) -> None:
        s.shake()
        cookie = s.request()[2]
        time.sleep(0.05)
        s.chunk(cookie, p.CHUNK_OFFSET_DATA, p.U64.pack(0) + b"a")
        s.request()
        s.recv(1)

    async def main() -> None:
        async with await aio.connect(serve(script), timeout=0.2) as disk:
            assert await disk.pread(1, 0) == b"a"
            await asyncio.sleep(0.3)  # nothing is due
            with pytest.raises(QobraError, match="did not answer in time") as caught:
                await disk.pread(1, 0)
            assert caught.value.errno == errno.ETIMEDOUT
        async with await aio.connect(serve(script)) as disk:
            await disk.pread(1, 0)
            disk.aio_pread(1, 0)

    asyncio.run(asyncio.wait_for(main(), 20))

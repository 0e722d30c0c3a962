"""The asyncio client against servers good and bad."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from qobra.client import Client, ClientError, CommandError, CommandNotFound, ConnectError, ConnectionLost

Scripted = Callable[..., Any]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


def test_connect_negotiates_oob(scripted: Scripted) -> None:
    server = scripted()

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            assert client.version == (5, 2, 0)
            assert client.greeting["capabilities"] == ["oob"]
        assert server.requests[0]["arguments"] == {"enable": ["oob"]}

    run(test())


def test_answers_find_their_commands(scripted: Scripted) -> None:
    server = scripted()
    held: list[dict[str, Any]] = []

    def hold(request: dict[str, Any]) -> None:
        # Answered in reverse order once all are there.
        held.append(request)
        if len(held) == 3:
            for each in reversed(held):
                server.send({"return": each["arguments"], "id": each["id"]})

    server.answers["x"] = hold

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            results = await asyncio.gather(*(client.execute("x", {"n": n}) for n in range(3)))
            assert results == [{"n": 0}, {"n": 1}, {"n": 2}]

    run(test())


def test_errors_keep_what_was_sent(scripted: Scripted) -> None:
    server = scripted()
    server.answers["x"] = ValueError("no such disk")

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            with pytest.raises(CommandError, match="x: no such disk") as caught:
                await client.execute("x", {"a": 1})
            assert (caught.value.command, caught.value.arguments) == ("x", {"a": 1})
            assert caught.value.response["error"]["desc"] == "no such disk"
            with pytest.raises(CommandNotFound):
                await client.execute("y")

    run(test())


def test_supports(scripted: Scripted) -> None:
    server = scripted()
    server.answers["query-commands"] = [{"name": "stop"}]

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            assert await client.supports("stop")
            assert not await client.supports("cont")
        assert sum(request["execute"] == "query-commands" for request in server.requests) == 1

    run(test())


def test_timeout_and_cancellation_leave_the_client_usable(scripted: Scripted) -> None:
    server = scripted()
    late: list[dict[str, Any]] = []
    server.answers["slow"] = late.append
    server.answers["x"] = 7

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            with pytest.raises(TimeoutError):
                await client.execute("slow", timeout=0.01)
            server.send({"return": "too late", "id": late[0]["id"]})
            assert await client.execute("x") == 7

    run(test())


def test_lost_connection_tells_everybody(scripted: Scripted) -> None:
    server = scripted()
    server.answers["x"] = lambda request: server.socket.shutdown(socket.SHUT_RDWR)

    async def test() -> None:
        client = await Client.connect(server.client_end)
        stream = client.events()
        with pytest.raises(ConnectionLost) as caught:
            await client.execute("x", {"a": 1})
        assert (caught.value.command, caught.value.arguments) == ("x", {"a": 1})
        assert [event async for event in stream] == []
        with pytest.raises(ConnectionLost):
            await client.execute("y")
        assert not client.connected
        await client.disconnect()

    run(test())


def test_events_are_filtered_in_order_and_bounded(scripted: Scripted) -> None:
    server = scripted()

    def burst(request: dict[str, Any]) -> Any:
        for n in range(6):
            server.event("A", n=n)
            server.event("B", n=n)
        return {}

    server.answers["x"] = burst

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            with client.events("A", where=lambda e: e.data["n"] % 2 == 0) as even, client.events(limit=4) as last:
                await client.execute("x")
                assert [(await even.next()).data["n"] for _ in range(3)] == [0, 2, 4]
                assert (await last.next()).time == 5.25
                assert (len(last), last.lost) == (3, 8)
                with pytest.raises(TimeoutError):
                    await even.next(timeout=0.01)

    run(test())


def test_fds_are_passed(scripted: Scripted) -> None:
    server = scripted()
    server.answers["getfd"] = {}
    read_end, write_end = os.pipe()

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            await client.execute("getfd", {"fdname": "x"}, fds=[write_end])

    run(test())
    os.write(server.fds[0], b"through")
    assert os.read(read_end, 10) == b"through"
    for fd in (read_end, write_end, *server.fds):
        os.close(fd)


def test_giving_up_in_the_middle_of_a_message_spoils_nothing(scripted: Scripted) -> None:
    """A server that does not read yet: of two commands that are too long for the socket the first is given up."""
    server = scripted()
    reading = threading.Event()
    server.answers["hold"] = lambda request: {} if reading.wait(30) else None
    server.answers["x"] = lambda request: len(request["arguments"]["long"])
    server.answers["getfd"] = {}

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            held = asyncio.create_task(client.execute("hold"))
            await asyncio.sleep(0)
            first = asyncio.create_task(client.execute("x", {"long": "a" * (1 << 22)}))
            await asyncio.sleep(0.01)
            second = asyncio.create_task(client.execute("x", {"long": "b" * 1000}))
            with open(os.devnull) as file:
                third = asyncio.create_task(client.execute("getfd", {"fdname": "x"}, fds=[file.fileno()]))
                await asyncio.sleep(0.01)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            reading.set()
            await held
            assert await second == 1000
            assert await third == {}

    run(test())
    assert len(server.fds) == 1
    os.close(server.fds[0])


def test_oob(scripted: Scripted) -> None:
    server = scripted()
    server.answers["yank"] = {}

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            await client.execute("yank", oob=True)
        assert "exec-oob" in server.requests[-1]

    run(test())
    plain = scripted()

    async def without() -> None:
        async with await Client.connect(plain.client_end, oob=False) as client:
            with pytest.raises(ClientError, match="out of band"):
                await client.execute("yank", oob=True)

    run(without())


@pytest.mark.parametrize("greeting", [b"SSH-2.0-x\r\n", b"{}}\n"])
def test_what_is_no_qmp_server(scripted: Scripted, greeting: bytes) -> None:
    async def test() -> None:
        with pytest.raises(ClientError, match="JSON"):
            await Client.connect(scripted(greeting).client_end)

    run(test())


def test_no_greeting(scripted: Scripted) -> None:
    async def test() -> None:
        with pytest.raises(ConnectError, match=r"did not greet within 0\.01 seconds"):
            await Client.connect(scripted(None).client_end, timeout=0.01)

    run(test())


def test_nobody_there(tmp_path: Any) -> None:
    async def test() -> None:
        with pytest.raises(ConnectError, match="No such file or directory"):
            await Client.connect(tmp_path / "none")

    run(test())


def test_rubbish_later_ends_the_connection_with_the_reason(scripted: Scripted) -> None:
    server = scripted()
    server.answers["x"] = lambda request: server.send(b"rubbish\n")

    async def test() -> None:
        client = await Client.connect(server.client_end)
        with pytest.raises(ConnectionLost, match="rubbish"):
            await client.execute("x")
        await client.disconnect()

    run(test())

"""The blocking client."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from qobra.client import ClientError, CommandError, ConnectError, ConnectionLost
from qobra.client.sync import Client

Scripted = Callable[..., Any]


def test_commands_events_and_errors(scripted: Scripted) -> None:
    server = scripted()

    def answer(request: dict[str, Any]) -> Any:
        server.event("A", n=1)
        return 5

    server.answers["x"] = answer
    server.answers["y"] = ValueError("no")
    with Client.connect(server.client_end) as client:
        with client.events("A") as stream:
            assert client.execute("x") == 5
            assert next(stream).data == {"n": 1}
            with pytest.raises(TimeoutError):
                stream.next(timeout=0.01)
        with pytest.raises(CommandError, match="y: no"):
            client.execute("y")


def test_timeout_leaves_the_client_usable(scripted: Scripted) -> None:
    server = scripted()
    late: list[dict[str, Any]] = []
    server.answers["slow"] = late.append
    server.answers["x"] = 7
    with Client.connect(server.client_end) as client:
        with pytest.raises(TimeoutError):
            client.execute("slow", timeout=0.02)
        if late:
            server.send({"return": "too late", "id": late[0]["id"]})
        assert client.execute("x") == 7


def test_lost_connection(scripted: Scripted) -> None:
    server = scripted()
    server.answers["x"] = lambda request: server.socket.shutdown(socket.SHUT_RDWR)
    client = Client.connect(server.client_end)
    stream = client.events()
    with pytest.raises(ConnectionLost) as caught:
        client.execute("x", {"a": 1})
    assert caught.value.arguments == {"a": 1}
    assert list(stream) == []
    client.disconnect()
    client.disconnect()


def test_fds_and_oob_views(scripted: Scripted) -> None:
    server = scripted()
    server.answers["getfd"] = {}
    with open(os.devnull) as file, Client.connect(server.client_end) as client:
        client.execute("getfd", {"fdname": "x"}, fds=[file.fileno()], oob=True)
    assert len(server.fds) == 1
    assert "exec-oob" in server.requests[-1]
    os.close(server.fds[0])


def test_no_greeting(scripted: Scripted) -> None:
    with pytest.raises(ConnectError, match="did not greet"):
        Client.connect(scripted(None).client_end, timeout=0.01)
    with pytest.raises(ClientError, match="not JSON"):
        Client.connect(scripted(b"HTTP/1.1 400\r\n").client_end)


def test_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _address = listener.accept()
            with connection:
                connection.sendall(b'{"QMP": {"version": {"qemu": {"major": 9}}, "capabilities": []}}\r\n')
                connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        with Client.connect(f"127.0.0.1:{port}", negotiate=False) as client:
            assert client.version == (9, 0, 0)
        thread.join()

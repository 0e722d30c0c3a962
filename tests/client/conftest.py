"""A server that does as it is told, right or wrong, at the other end of a socket pair."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

GREETING = {"QMP": {"version": {"qemu": {"major": 5, "minor": 2, "micro": 0}, "package": ""}, "capabilities": ["oob"]}}


class ScriptedServer:
    """Greets, then answers each request with what ``answers`` has for its command: a value to return, an exception's
    text as an error, or a function of the request that sends what it likes."""

    def __init__(self, greeting: Any = GREETING) -> None:
        self.client_end, self.socket = socket.socketpair()
        self.answers: dict[str, Any] = {"qmp_capabilities": {}}
        self.requests: list[dict[str, Any]] = []
        self.fds: list[int] = []
        self._thread = threading.Thread(target=self._serve, args=(greeting,), daemon=True)
        self._thread.start()

    def send(self, message: Any) -> None:
        self.socket.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.send({"event": name, "timestamp": {"seconds": 5, "microseconds": 250000}, "data": data})

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.socket.close()

    def _serve(self, greeting: Any) -> None:
        if greeting is not None:
            self.send(greeting)
        buffer = b""
        try:
            while True:
                data, fds, _flags, _address = socket.recv_fds(self.socket, 65536, 16)
                self.fds += fds
                buffer += data
                if not data:
                    return
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    self._answer(json.loads(line))
        except OSError:
            return

    def _answer(self, request: dict[str, Any]) -> None:
        self.requests.append(request)
        command = request.get("execute") or request["exec-oob"]
        answer = self.answers.get(command)
        if callable(answer):
            answer = answer(request)
            if answer is None:
                return
        if command not in self.answers:
            answer = {"class": "CommandNotFound", "desc": f"The command {command} has not been found"}
            self.send({"error": answer, "id": request["id"]})
        elif isinstance(answer, Exception):
            self.send({"error": {"class": "GenericError", "desc": str(answer)}, "id": request["id"]})
        else:
            self.send({"return": answer, "id": request["id"]})


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Makes scripted servers, and ends them with the test."""
    servers: list[ScriptedServer] = []

    def make(*args: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*args))
        return servers[-1]

    yield make
    for server in servers:
        try:
            server.close()
        except OSError:
            pass
        server.client_end.close()

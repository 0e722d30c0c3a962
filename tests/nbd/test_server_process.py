"""Servers as child processes: a small one of the test's own, in both ways of handing it its socket."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from qobra.errors import QobraError
from qobra.nbd import ServerProcess, connect, connect_command, connect_systemd_socket_activation, list_exports
from qobra.nbd import protocol as p

SERVER = f"""
import os, socket, struct, sys
def serve(sock):
    stream = sock.makefile("rwb")
    def send(*parts):
        stream.write(b"".join(parts)); stream.flush()
    send(struct.pack(">QQH", {p.INIT_MAGIC}, {p.OPTION_MAGIC}, 3)); stream.read(4)
    while True:
        head = stream.read(16)
        if len(head) < 16: return
        magic, option, length = struct.unpack(">QII", head)
        stream.read(length)
        def reply(kind, body=b""):
            send(struct.pack(">QIII", {p.OPTION_REPLY_MAGIC}, option, kind, len(body)), body)
        if option in (6, 7): reply(3, struct.pack(">HQH", 0, 4096, 1)); reply(1)
        elif option == 3: reply(2, struct.pack(">I", 4) + b"disk"); reply(1)
        else: reply({p.REP_ERR_UNSUP})
        if option == 7: break
    while True:
        head = stream.read(28)
        if len(head) < 28: return
        magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", head)
        if command == 2: return
        data = (str(os.getpid()) + " " + os.environ.get("WORD", "")).encode()
        send(struct.pack(">IIQ", {p.SIMPLE_REPLY_MAGIC}, 0, cookie), data.ljust(length))
if "LISTEN_FDS" in os.environ:
    assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1"
    listener = socket.socket(fileno=3)
    import threading
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
else:
    serve(socket.socket(fileno=0))
"""


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return [sys.executable, "-S", str(script)]


def pid_of(disk: object) -> int:
    return int(disk.pread(100, 0).split()[0])  # type: ignore[attr-defined]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_standard_input_and_output(argv: list[str]) -> None:
    with connect_command(argv) as disk:
        assert disk.size == 4096
        pid = pid_of(disk)
        assert not gone(pid)
    assert gone(pid)


def test_socket_activation(argv: list[str]) -> None:
    with connect_systemd_socket_activation(argv, "disk") as disk:
        pid = pid_of(disk)
    assert gone(pid)


def test_one_server_for_many_connections(argv: list[str]) -> None:
    server = ServerProcess(argv, activation=True, environment={**os.environ, "WORD": "hello"})
    with server, connect(server) as first, connect(server) as second:
        assert bytes(first.pread(100, 0)).split()[1] == b"hello"
        assert pid_of(first) == pid_of(second) == server.pid
        path = server.path
    assert server.pid is None and not os.path.exists(os.path.dirname(path))
    with connect(server) as again:  # it can be started once more
        assert pid_of(again) == server.pid
    with pytest.raises(QobraError, match="does not run"):
        _ = server.path


@pytest.mark.parametrize("activation", [False, True])
def test_listing(argv: list[str], activation: bool) -> None:
    ((info, contexts),) = list_exports(ServerProcess(argv, activation=activation))
    assert (info.name, info.size, contexts) == ("disk", 4096, [])


def test_one_client_on_standard_input(argv: list[str]) -> None:
    server = ServerProcess(argv)
    with connect(server), pytest.raises(QobraError, match="has one client"):
        connect(server)
    with connect(server):
        pass


@pytest.mark.parametrize("activation", [False, True])
def test_what_cannot_be_started_or_is_no_server(activation: bool) -> None:
    with pytest.raises(QobraError, match="^Failed to start 'no-such-program': No such file or directory$"):
        connect(ServerProcess(["no-such-program"], activation=activation))
    server = ServerProcess(["false"], activation=activation)
    with pytest.raises(QobraError):
        connect(server)
    assert server.pid is None


def test_a_server_that_dies_and_one_that_does_not_listen_to_reason(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qobra.nbd.server_process._LEAVE_SECONDS", 0.02)
    server = ServerProcess(argv)
    disk = connect(server)
    server.kill(signal.SIGKILL)
    with pytest.raises(QobraError):
        disk.pread(1, 0)
    disk.close()
    server = ServerProcess([sys.executable, "-S", "-c", "import time, signal; " + _DEAF])
    with pytest.raises(QobraError, match="did not answer in time"):
        connect(server, handshake_timeout=0.5)
    assert server.pid is None


_DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"

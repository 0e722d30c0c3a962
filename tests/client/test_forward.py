"""Sockets behind ssh, with a program in ssh's place that forwards on this host."""

from __future__ import annotations

import socket
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from qobra.client import ConnectError
from qobra.client.sync import Client

SSH = f"""\
#!{sys.executable}
import socket, sys, threading
arguments = sys.argv[1:]
assert "ExitOnForwardFailure=yes" in arguments
local, _, remote = arguments[arguments.index("-L") + 1].partition(":")
if arguments[-1] == "refused":
    sys.exit("Permission denied (publickey).")
listener = socket.socket(socket.AF_UNIX)
listener.bind(local)
listener.listen()

def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

while True:
    near, _ = listener.accept()
    if remote.startswith("/"):
        far = socket.socket(socket.AF_UNIX)
        far.connect(remote)
    else:
        far = socket.create_connection(remote.split(":"))
    threading.Thread(target=pump, args=(near, far), daemon=True).start()
    threading.Thread(target=pump, args=(far, near), daemon=True).start()
"""


@pytest.fixture(autouse=True)
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(textwrap.dedent(SSH))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def greet(listener: socket.socket) -> None:
    connection, _address = listener.accept()
    with connection:
        connection.sendall(b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}\r\n')
        connection.recv(1)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_forwarded(kind: str, tmp_path: Path) -> None:
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "far"))
        listener.listen()
        address = f"ssh://root@host{tmp_path}/far"
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        address = f"ssh://host:22/127.0.0.1:{listener.getsockname()[1]}"
    with listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        with Client.connect(address, negotiate=False) as client:
            assert client.version == (7, 0, 0)
            forward = client._link._forward
            assert forward is not None and Path(forward.path).exists()
        thread.join()
        assert not Path(forward.path).exists()


def test_refused() -> None:
    with pytest.raises(ConnectError, match=r"ssh://refused/x: Permission denied \(publickey\)"):
        Client.connect("ssh://refused/x")


def test_no_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConnectError, match="ssh: No such file"):
        Client.connect("ssh://host/x")

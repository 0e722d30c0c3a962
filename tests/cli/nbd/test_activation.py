"""A socket that is passed to qobra-nbd when it starts (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import qobra.nbd
from qobra.cli import img
from qobra.cli._nbd.activation import FIRST_FD, passed_address
from qobra.cli._tool.report import Program, ToolError

SCRIPT = f"""
import os, sys
os.dup2(int(sys.argv.pop(1)), {FIRST_FD})
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
from qobra.cli.nbd import main
sys.exit(main())
"""


def test_served_on_the_socket_that_was_passed(tmp_path: Path) -> None:
    disk = str(tmp_path / "a.q")
    img.main(["create", "-q", "-f", "qcow2", disk, "1M"])
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        server = subprocess.Popen([sys.executable, "-c", SCRIPT, str(fd), "-f", "qcow2", disk], pass_fds=(fd,))
        with qobra.nbd.connect(f"nbd+unix:///?socket={path}") as client:
            assert client.size == 1 << 20
    assert server.wait(60) == 0


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")


def test_nothing_is_passed_to_another_process(passed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    assert passed_address(Program("x"), ()) is None
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    for text in ("", "0", "one", "-1"):
        monkeypatch.setenv("LISTEN_FDS", text)
        assert passed_address(Program("x"), ()) is None


def test_refused(passed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from qobra.cli._nbd import activation

    reader, writer = os.pipe()
    monkeypatch.setattr(activation, "FIRST_FD", reader)
    with pytest.raises(ToolError, match="TCP port number can't be set"):
        passed_address(Program("x"), {"p": "1"})
    with pytest.raises(ToolError, match="Unable to query remote socket address: Socket operation on non-socket"):
        passed_address(Program("x"), {})
    os.close(writer)
    os.close(reader)
    with pytest.raises(ToolError, match=f"invalid file descriptor fd = {reader}: Bad file descriptor"):
        passed_address(Program("x"), {})

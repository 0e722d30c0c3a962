"""qobra-nbd as a process, with Qobra's own NBD client; peers are in tests/peer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qobra.nbd
from qobra.cli import img

SCRIPT = "import sys; from qobra.cli.nbd import main; sys.argv[0] = 'qobra-nbd'; sys.exit(main())"


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "--fork", *arguments], capture_output=True, text=True, timeout=60
    )


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("the server has not ended")


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = str(tmp_path / "a.q")
    img.main(["create", "-q", "-f", "qcow2", path, "1M"])
    return path


def test_serves_until_the_last_client_has_left(disk: str, tmp_path: Path) -> None:
    sock, pid_file = str(tmp_path / "s"), tmp_path / "pid"
    done = start("--pid-file", str(pid_file), "-k", sock, "-f", "qcow2", "-x", "x", disk)
    assert (done.returncode, done.stderr) == (0, "")
    pid = int(pid_file.read_text())
    with qobra.nbd.connect(f"nbd+unix:///x?socket={sock}") as client:
        assert client.size == 1 << 20
        client.pwrite(b"hello", 100)
    wait_gone(pid)
    assert not os.path.exists(sock)
    with qobra.open(disk) as image:
        assert image.pread(5, 100) == b"hello"


def test_persistent_until_a_signal(disk: str, tmp_path: Path) -> None:
    sock, pid_file = str(tmp_path / "s"), tmp_path / "pid"
    assert start("-t", "-r", "-e", "2", "--pid-file", str(pid_file), "-k", sock, "-f", "qcow2", disk).returncode == 0
    pid = int(pid_file.read_text())
    for _ in range(2):
        with qobra.nbd.connect(f"nbd+unix:///?socket={sock}") as client:
            assert client.read_only
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)


def test_a_failure_is_told_by_the_parent(tmp_path: Path) -> None:
    done = start("-k", str(tmp_path / "s"), str(tmp_path / "missing"))
    assert done.returncode == 1
    assert done.stderr.startswith("qobra-nbd: Failed to blk_new_open ")
    assert done.stderr.count("\n") == 1

"""QEMU's Python client and its shell against the storage daemon as a program."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

qemu_qmp = pytest.importorskip("qemu.qmp")


def _listens(path: Path) -> bool:
    """Whether someone listens there: a socket has its name a moment before."""
    with open("/proc/net/unix") as table:
        return any(line.split()[3] == "00010000" and line.rstrip().endswith(f" {path}") for line in table)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The socket of a running daemon."""
    socket = tmp_path / "qmp"
    command = [sys.executable, "-m", "qobra.cli.storage_daemon", "--monitor", "chardev=c"]
    command[3:3] = ["--chardev", f"socket,id=c,path={socket},server=on,wait=off"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not _listens(socket):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    yield str(socket)
    process.kill()
    process.wait()


def test_library(path: str) -> None:
    async def test() -> None:
        for _ in range(3):  # one client after the other
            client = qemu_qmp.QMPClient("test")
            await client.connect(path)
            with client.listener(("STOP", "RESUME")) as listener:
                await client.execute("stop")
                assert (await client.execute("query-status"))["status"] == "paused"
                await client.execute("cont")
                assert [(await listener.get())["event"] for _ in range(2)] == ["STOP", "RESUME"]
            with pytest.raises(qemu_qmp.ExecuteError, match="The command nope has not been found"):
                await client.execute("nope")
            await client.disconnect()

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("human", [False, True])
def test_shell(path: str, tmp_path: Path, human: bool) -> None:
    typed = "info version\n" if human else "object-add qom-type=secret id=s data=x\nquery-version\nnope\n"
    code = "from qemu.qmp.qmp_shell import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *(["-H"] if human else []), path],
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    output = result.stdout + result.stderr
    if human:
        assert "5.2.0qobra-" in output
    else:
        assert "'return': {}" in output or '"return": {}' in output
        assert "qobra-" in output
        assert "CommandNotFound" in output

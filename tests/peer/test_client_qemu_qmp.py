"""QEMU's own Python client, from PyPI, against our server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qobra.testing import QobraServer

qemu_qmp = pytest.importorskip("qemu.qmp")


def test_connect_negotiate_commands_errors_events(qobra_server: QobraServer) -> None:
    async def test() -> None:
        client = qemu_qmp.QMPClient("test")
        await client.connect(qobra_server.path)
        assert client.greeting.QMP.capabilities == ["oob"]
        assert (await client.execute("query-version"))["qemu"]["major"] == 5
        await client.execute("blockdev-add", {"driver": "null-co", "node-name": "a", "size": 65536})
        with pytest.raises(qemu_qmp.ExecuteError, match="Duplicate nodes"):
            await client.execute("blockdev-add", {"driver": "null-co", "node-name": "a", "size": 65536})
        with client.listener("BLOCK_IO_ERROR") as listener:
            qobra_server.emit("BLOCK_IO_ERROR", device="a")
            event = await listener.get()
            assert event["data"] == {"device": "a"}
        await client.execute("quit")
        await client.disconnect()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert qobra_server.wait_for_quit(timeout=30)


def test_many_commands_at_once(qobra_server: QobraServer) -> None:
    async def test() -> None:
        client = qemu_qmp.QMPClient("test")
        await client.connect(qobra_server.path)
        results = await asyncio.gather(*(client.execute("query-name") for _ in range(100)))
        assert results == [{}] * 100
        await client.disconnect()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_qmp_shell(qobra_server: QobraServer, tmp_path: Path) -> None:
    lines = "blockdev-add driver=null-co node-name=typed size=65536\nquery-named-block-nodes flat=true\n"
    code = "from qemu.qmp.qmp_shell import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "-p", qobra_server.path],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert '"node-name": "typed"' in result.stdout, result.stdout + result.stderr
    assert [node["node-name"] for node in qobra_server.execute("query-named-block-nodes")] == ["typed"]

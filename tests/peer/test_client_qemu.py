"""The client against real QEMU."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.client import Client, CommandError, CommandNotFound, ConnectError, JobCancelled, JobFailed
from qobra.client.sync import Client as SyncClient


def _listens(path: Path) -> bool:
    """Whether someone listens there: a socket has its name a moment before."""
    with open("/proc/net/unix") as table:
        return any(line.split()[3] == "00010000" and line.rstrip().endswith(f" {path}") for line in table)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not _listens(path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[str]:
    """The address of a qemu-storage-daemon."""
    path = tmp_path / "qmp"
    chardev = f"socket,id=qmp,path={path},server=on,wait=off"
    command = ["qemu-storage-daemon", "--chardev", chardev, "--monitor", "chardev=qmp"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(path, process)
    yield f"unix:{path}"
    process.kill()
    process.wait()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Path]:
    """The address of a qemu-system-x86_64 whose monitor prints prettily."""
    path = tmp_path / "qmp"
    command = ["qemu-system-x86_64", "-M", "none", "-display", "none", "-nodefaults", "-S"]
    command += ["-chardev", f"socket,id=qmp,path={path},server=on,wait=off", "-mon", "qmp,mode=control,pretty=on"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(path, process)
    yield path
    process.kill()
    process.wait()


@pytest.mark.peer("qemu-storage-daemon")
def test_commands_jobs_and_errors(daemon: str) -> None:
    async def test() -> None:
        async with await Client.connect(daemon) as client:
            assert client.version >= (5, 0, 0)
            await client.blockdev_add({"driver": "null-co", "node-name": "a", "size": 1 << 26})
            await client.blockdev_add(driver="null-co", node_name="b", size=1 << 26)
            nodes = await client.query_named_block_nodes(flat=True)
            assert {node["node-name"] for node in nodes} == {"a", "b"}

            await client.blockdev_backup(job_id="j", device="a", target="b", sync="full")
            state = await client.jobs["j"].wait(timeout=60)
            assert state.progress == (1 << 26, 1 << 26)

            await client.blockdev_backup(job_id="k", device="a", target="b", sync="full", speed=65536)
            await client.jobs["k"].cancel()
            with pytest.raises(JobCancelled):
                await client.jobs["k"].wait(timeout=60)

            with pytest.raises(CommandError, match="Duplicate nodes with node-name='a'") as caught:
                await client.blockdev_add(driver="null-co", node_name="a")
            assert caught.value.arguments == {"driver": "null-co", "node-name": "a"}

    asyncio.run(asyncio.wait_for(test(), 100))


@pytest.mark.peer("qemu-storage-daemon")
def test_failed_create_job_tells_why(daemon: str, tmp_path: Path) -> None:
    with SyncClient.connect(daemon) as client:
        client.blockdev_create(job_id="c", options={"driver": "file", "filename": "/nonexistent/x", "size": 1})
        with pytest.raises(JobFailed, match="No such file or directory"):
            client.jobs["c"].wait(timeout=60)
        assert [info["id"] for info in client.query_jobs()] == ["c"]
        client.jobs["c"].dismiss()
        assert client.query_jobs() == []


@pytest.mark.peer("qemu-storage-daemon")
def test_mirror_is_ready_then_completes(daemon: str) -> None:
    with SyncClient.connect(daemon) as client:
        for name in ("a", "b"):
            client.blockdev_add(driver="null-co", node_name=name, size=1 << 20, read_zeroes=True)
        client.blockdev_mirror(job_id="m", device="a", target="b", sync="full")
        job = client.jobs["m"]
        assert job.ready(timeout=60).status == "ready"
        job.complete()
        job.wait(timeout=60)


@pytest.mark.peer("qemu-storage-daemon")
def test_a_server_that_lacks_commands(daemon: str) -> None:
    with SyncClient.connect(daemon) as client:
        assert client.supports("blockdev-add")
        assert not client.supports("query-kvm")
        with pytest.raises(CommandNotFound):
            client.query_kvm()


@pytest.mark.peer("qemu-system-x86_64")
def test_fds_events_oob_and_pretty_messages(system: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with await Client.connect(system) as client:
            assert "oob" in client.greeting["capabilities"]
            with open(tmp_path / "disk", "wb") as disk:
                added = await client.passing(disk.fileno()).add_fd(fdset_id=3, opaque="the disk")
            assert added["fdset-id"] == 3
            assert [fdset["fdset-id"] for fdset in await client.query_fdsets()] == [3]
            read_end, write_end = os.pipe()
            await client.passing(read_end).getfd(fdname="pipe")
            await client.closefd(fdname="pipe")
            os.close(read_end)
            os.close(write_end)
            with pytest.raises(CommandError):
                await client.oob.migrate_pause()
            assert len(await client.query_qmp_schema()) > 500
            with client.events("SHUTDOWN") as events:
                await client.quit()
                assert (await events.next(timeout=60)).data["reason"] == "host-qmp-quit"

    asyncio.run(asyncio.wait_for(test(), 100))


@pytest.mark.peer("qemu-system-x86_64")
def test_a_second_connection_waits_for_its_greeting(system: Path) -> None:
    """QEMU serves one client a socket; the second is not greeted before the first has gone."""
    first = SyncClient.connect(system)
    with pytest.raises(ConnectError, match="did not greet"):
        SyncClient.connect(system, timeout=0.2)
    first.disconnect()
    with SyncClient.connect(system, timeout=60) as client:
        status: dict[str, Any] = client.execute("query-status")
        assert status["status"] == "prelaunch"

"""A disk that fills up and empties again under a daemon with guests and jobs: errors are told, and nothing is lost.

What the guest was told to be written is there at the end, whatever failed beside it, and images are sound by qemu-img.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from qobra.errors import QobraError
from qobra.nbd import Client, connect
from qobra.testing.storage_daemon import OURS, StorageDaemon

pytestmark = [pytest.mark.soak, pytest.mark.peer("qemu-img")]

BLOCK = 4096
SIZE = 16 << 20
BLOCKS = SIZE // BLOCK
SEED = int(os.environ.get("QOBRA_STRESS_SEED", "0"))
SECONDS = 2.0
"""Of a round."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system with room for 12 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.timeout(3600)
def test_a_disk_that_fills_up(small_disk: Path, soak_scale: int) -> None:
    for seed in range(SEED, SEED + max(1, soak_scale // 2)):
        print(f"seed {seed}")
        for path in small_disk.iterdir():
            path.unlink()
        Round(small_disk, seed).play()


class Round:
    """A daemon that serves a qcow2 image, a guest that writes to it, and somebody else who fills the disk."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.directory = directory
        self.ballast = directory / "ballast"
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.allowed = [{0} for _ in range(BLOCKS)]
        """What each block may hold: what was written last, and what failed since."""
        options = self.rng.choice(("cluster_size=4k", "cluster_size=64k", "lazy_refcounts=on", "extended_l2=on"))
        self.tool("create", "-q", "-f", "qcow2", "-o", options, "disk", str(SIZE))
        self.daemon = StorageDaemon(OURS, directory)

    def tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["qemu-img", *arguments], cwd=self.directory, capture_output=True, text=True, check=False)

    def play(self) -> None:
        do = self.daemon.execute
        do("blockdev-add", {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": "disk"}})
        do("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd"}}})
        do("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "writable": True})
        disk = connect(f"nbd+unix:///disk?socket={self.directory}/nbd")
        threads = [threading.Thread(target=self._guest, args=(disk,)), threading.Thread(target=self._fill)]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + SECONDS
            number = 0
            while time.monotonic() < end:
                number += 1
                self._command(f"j{number}", f"n{number}")
        finally:
            self.over.set()
            for thread in threads:
                thread.join(60)
            self.ballast.unlink(missing_ok=True)
        disk.close()
        self.daemon.quit()
        assert not self.wrong, self.wrong[:5]
        self._check()

    def _command(self, job: str, name: str) -> None:
        ask = self.daemon.ask
        match self.rng.randrange(4):
            case 0:
                ask("block-dirty-bitmap-add", {"node": "disk", "name": name, "persistent": True})
            case 1:
                actions = [{"type": "blockdev-snapshot-internal-sync", "data": {"device": "disk", "name": name}}]
                if "return" in ask("transaction", {"actions": actions}) and self.rng.random() < 0.7:
                    ask("blockdev-snapshot-delete-internal-sync", {"device": "disk", "name": name})
            case _:
                path = self.directory / name
                if self.tool("create", "-q", "-f", "qcow2", name, str(SIZE)).returncode == 0:
                    node = {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": name}}
                    if "return" in ask("blockdev-add", node):
                        self._job(job, name)
                        self.daemon.execute("blockdev-del", {"node-name": name})
                path.unlink(missing_ok=True)

    def _job(self, job: str, target: str) -> None:
        kind = self.rng.choice(("blockdev-backup", "blockdev-mirror"))
        reply = self.daemon.ask(kind, {"job-id": job, "device": "disk", "target": target, "sync": "full"})
        if "return" not in reply:
            return
        if kind == "blockdev-mirror":
            while not {"ready", "null"} & {
                event["status"]
                for event in self.daemon.events
                if event["event"] == "JOB_STATUS_CHANGE" and event["id"] == job
            }:
                self.daemon.ask("query-status")
                time.sleep(0.005)
            self.daemon.ask("block-job-cancel", {"device": job})
        self.daemon.wait_job(job)

    def _fill(self) -> None:
        """Take all the room there is, and give it back, by turns."""
        rng = random.Random(self.rng.random())
        while not self.over.wait(rng.uniform(0.01, 0.3)):
            if self.ballast.exists():
                self.ballast.unlink()
                continue
            with open(self.ballast, "wb", buffering=0) as file:
                try:
                    while not self.over.is_set():
                        file.write(bytes(65536))
                except OSError:
                    pass

    def _guest(self, disk: Client) -> None:
        rng = random.Random(self.rng.random())
        version = 0
        while not self.over.is_set():
            first = rng.randrange(BLOCKS // 2)
            count = min(rng.choice((1, 1, 2, 16)), BLOCKS - first)
            blocks = range(first, first + count)
            try:
                if rng.random() < 0.3:
                    self._look(disk.pread(count * BLOCK, first * BLOCK), first)
                    continue
                version += 1
                for block in blocks:
                    self.allowed[block].add(version)
                disk.pwrite(version.to_bytes(4, "big") * (count * BLOCK // 4), first * BLOCK)
                for block in blocks:
                    self.allowed[block] = {version}
            except QobraError as error:
                if disk.broken is not None:
                    self.wrong.append(f"the connection broke: {error}")
                    return
                time.sleep(0.001)

    def _look(self, data: bytes | bytearray, first: int) -> None:
        for index in range(len(data) // BLOCK):
            words = set(array("I", data[index * BLOCK : (index + 1) * BLOCK]))
            versions = {int.from_bytes(word.to_bytes(4, "little"), "big") for word in words}
            if not versions <= self.allowed[first + index]:
                self.wrong.append(f"block {first + index}: {versions}, not {self.allowed[first + index]}")

    def _check(self) -> None:
        done = self.tool("check", "disk")
        # Clusters that were given up when there was no room may leak; nothing else may be wrong.
        assert done.returncode in (0, 3), done.stdout + done.stderr
        done = self.tool("convert", "-O", "raw", "disk", str(self.directory.parent / "out"))
        assert done.returncode == 0, done.stderr
        self._look((self.directory.parent / "out").read_bytes(), 0)
        assert not self.wrong, self.wrong[:5]

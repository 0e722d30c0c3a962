"""kill -9 while a mirror or an active commit follows a guest that writes all over its disk: nothing flushed is lost.

What the guest flushed is in the disk that it had, until the job is told to complete, and in the one that it has got
once the job has said that it is done. In the moment between it is in one of the two.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from array import array
from pathlib import Path

import pytest

from qobra.testing.fast_guest import BLOCK, FastGuest, content, wrong_blocks
from qobra.testing.storage_daemon import OURS, StorageDaemon

pytestmark = [pytest.mark.soak, pytest.mark.peer("qemu-img")]

SIZE = 64 << 20
BLOCKS = SIZE // BLOCK
SEED = int(os.environ.get("QOBRA_STRESS_SEED", "0"))
ENDS = ("killed before it is ready", "killed while it completes", "completed", "cancelled")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "end"), [*(("mirror", end) for end in ENDS), *(("commit", end) for end in ENDS if end != "cancelled")]
)
def test_what_was_flushed_is_there(kind: str, end: str, tmp_path: Path, soak_scale: int) -> None:
    for seed in range(SEED, SEED + max(1, soak_scale // 5)):
        print(f"{kind} {end}, seed {seed}")
        directory = tmp_path / str(seed)
        directory.mkdir()
        Round(directory, kind, seed).play(end)
        subprocess.run(["rm", "-r", directory], check=True)


class Round:
    """A daemon with a chain ``base``, ``top``, which it serves, and ``target``; ``seed`` decides all but the timing."""

    def __init__(self, directory: Path, kind: str, seed: int) -> None:
        self.rng = random.Random(f"{kind} {seed}")
        self.seed = seed
        self.directory = directory
        self.versions = array("I", bytes(4 * BLOCKS))
        self._make_images()
        self.goal = "target" if kind == "mirror" else "base"
        self.daemon = StorageDaemon(OURS, directory)
        do = self.daemon.execute
        for name in ("base", "top", "target"):
            node = {"driver": self.formats[name], "node-name": name, "file": {"driver": "file", "filename": name}}
            do("blockdev-add", node | ({"backing": "base"} if name == "top" else {}))
        do("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd"}}})
        do("block-export-add", {"type": "nbd", "id": "e", "node-name": "top", "writable": True})
        self.start = {
            "mirror": ("blockdev-mirror", {"device": "top", "target": "target", "sync": "full"}),
            "commit": ("block-commit", {"device": "top"}),
        }[kind]

    def _make_images(self) -> None:
        chosen = set(self.rng.sample(range(BLOCKS), BLOCKS // 2))
        with open(self.directory / "base.raw", "wb") as file:
            for block in range(BLOCKS):
                self.versions[block] = block in chosen
                file.write(content(block, self.versions[block]))
        cluster = self.rng.choice(["64k", "64k", "4k"])
        self.formats = {"base": "qcow2", "top": "qcow2", "target": self.rng.choice(["raw", "qcow2"])}
        options = f"cluster_size={cluster}"
        self._tool("convert", "-O", "qcow2", "-o", options, "base.raw", "base")
        self._tool("create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "qcow2", "top")
        self._tool("create", "-q", "-f", self.formats["target"], "target", str(SIZE))

    def _tool(self, *arguments: str) -> None:
        done = subprocess.run(["qemu-img", *arguments], cwd=self.directory, capture_output=True, text=True, check=False)
        assert done.returncode in ((0, 3) if arguments[0] == "check" else (0,)), (arguments, done.stdout + done.stderr)

    def play(self, end: str) -> None:
        """Run the job beside a guest, end it so, and look at the disks."""
        guest = FastGuest(self.directory / "nbd", "top", self.versions, self.seed)
        try:
            found = self._play(guest, end)
        finally:
            guest.is_killed = True
            self.daemon.kill()
        guest.stop()
        oldest, newest = (guest.flushed, guest.sent)
        if end == "completed":
            oldest = newest = guest.answered
        elif end == "cancelled":
            oldest, newest = self.at_cancel, self.after_cancel
        results = {name: wrong_blocks(self._contents(name), oldest, newest) for name in found}
        assert not all(results.values()), {name: (len(wrong), wrong[:5]) for name, wrong in results.items()}
        if end == "cancelled":
            assert not wrong_blocks(self._contents("top"), guest.flushed, guest.sent)

    def _play(self, guest: FastGuest, end: str) -> list[str]:
        """The disks of which one has to be right."""
        guest.wait_requests(self.rng.randrange(100, 20000))
        name, arguments = self.start
        self.daemon.execute(name, {"job-id": "j", **arguments})
        if end == "killed before it is ready":
            guest.wait_requests(self.rng.randrange(1, 30000))
            return ["top"]
        self.daemon.wait_job("j", "ready")
        guest.wait_requests(self.rng.randrange(1, 10000))
        if end == "cancelled":
            self.at_cancel = array("I", guest.answered)
            self.daemon.execute("block-job-cancel", {"device": "j"})
            self.daemon.wait_job("j")
            self.after_cancel = array("I", guest.sent)
            return ["target"]
        self.daemon.execute("job-complete", {"id": "j"})
        if end == "killed while it completes":
            time.sleep(self.rng.choice([0.0, 0.002, 0.01, 0.05]) * self.rng.random())
            return ["top", self.goal]
        self.daemon.wait_job("j")
        guest.wait_requests(self.rng.randrange(1, 10000))
        guest.stop()
        self.daemon.quit()
        return [self.goal]

    def _contents(self, name: str) -> bytes:
        if self.formats[name] == "qcow2":
            self._tool("check", "-q", name)
        self._tool("convert", "-f", self.formats[name], "-O", "raw", name, "out")
        return (self.directory / "out").read_bytes()

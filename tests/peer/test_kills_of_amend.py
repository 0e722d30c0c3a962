"""kill -9 while an image is amended: QEMU finds it whole, with all that was flushed, and a key that was not taken away.

``qobra-img amend`` changes the width of reference counts, the version, the size and the keys of an image that nobody
uses; ``x-blockdev-amend`` the keys of one that a guest writes to.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from array import array
from pathlib import Path

import pytest

from qobra.cli.img import main
from qobra.testing.fast_guest import BLOCK, FastGuest, wrong_blocks
from qobra.testing.storage_daemon import OURS, StorageDaemon

pytestmark = [pytest.mark.soak, pytest.mark.peer("qemu-img", "qemu-io"), pytest.mark.timeout(3600)]

SIZE = 8 << 20
"""Bytes that are written to; the disks are twice as long."""
BLOCKS = SIZE // BLOCK
SEED = int(os.environ.get("QOBRA_STRESS_SEED", "0"))
ENCRYPTED = "encrypt.format=luks,encrypt.key-secret=one,encrypt.iter-time=10"
SECRETS = [word for key in ("one", "two") for word in ("--object", f"secret,id={key},data=pass-{key}")]
FORMATS = ("cluster_size=64k", "cluster_size=4k", "cluster_size=512", "extended_l2=on", "compat=0.10", ENCRYPTED)
CHANGES = {
    "plain": (
        "refcount_bits=8",
        "refcount_bits=64",
        "refcount_bits=1",
        "lazy_refcounts=on",
        "compat=0.10",
        "compat=1.1",
        "size=64M",
        "compat=1.1,refcount_bits=32,lazy_refcounts=on,size=1G",
    ),
    "encrypted": (
        "encrypt.state=active,encrypt.new-secret=two,encrypt.iter-time=10",
        "encrypt.state=active,encrypt.new-secret=two,encrypt.iter-time=10,encrypt.keyslot=7",
    ),
}
ADD_KEY = {"format": "luks", "state": "active", "new-secret": "two", "iter-time": 10}
ERASE_KEY = {"format": "luks", "state": "inactive", "old-secret": "one"}


class Disk:
    """A qcow2 image, which QEMU opens with the key ``key`` where it is encrypted."""

    def __init__(self, path: Path, options: str) -> None:
        self.path = path
        self.options = options
        self.is_encrypted = options == ENCRYPTED
        # QEMU's tool fails where it cannot tell how fast a busy machine derives keys.
        assert main(["create", "-q", *SECRETS, "-f", "qcow2", "-o", options, str(path), str(2 * SIZE)]) == 0

    def fill(self, rng: random.Random) -> None:
        """Write here and there."""
        writes = []
        for _ in range(rng.randrange(5, 60)):
            start = rng.randrange(BLOCKS) * BLOCK
            writes += ["-c", f"write -q -P {rng.randrange(1, 256)} {start} {rng.randrange(1, 40) * BLOCK}"]
        subprocess.run(["qemu-io", *SECRETS, "--image-opts", *writes, self.opened()], check=True, capture_output=True)

    def tool(self, *arguments: str, status: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode in status, (self.options, arguments, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def opened(self, key: str = "one", path: Path | None = None) -> str:
        """How QEMU's programs open it."""
        secret = f",encrypt.key-secret={key}" if self.is_encrypted else ""
        return f"driver=qcow2,file.filename={path or self.path}{secret}"

    def check(self, key: str = "one") -> None:
        """See that it has at most leaks, as it is or once its counts were made anew."""
        mended = self.path
        if json.loads(self.tool("info", "--output=json", str(self.path))).get("dirty-flag"):
            mended = self.path.with_suffix(".mended")
            shutil.copy(self.path, mended)
            opened = self.opened(key, mended)
            self.tool("check", *SECRETS, "-q", "-r", "all", "--image-opts", opened, status=(0, 2, 3))
        self.tool("check", *SECRETS, "-q", "--image-opts", self.opened(key, mended), status=(0, 3))

    def contents(self, key: str = "one") -> bytes:
        """What it holds, as QEMU reads it with that key."""
        out = self.path.with_suffix(".raw")
        self.tool("convert", *SECRETS, "--image-opts", self.opened(key), "-O", "raw", str(out))
        return out.read_bytes()[:SIZE]


@pytest.mark.parametrize("kind", CHANGES)
def test_amend_of_an_image_that_nobody_uses(kind: str, tmp_path: Path, soak_scale: int) -> None:
    for seed in range(SEED, SEED + soak_scale):
        print(f"{kind}, seed {seed}")
        rng = random.Random(f"{kind} {seed}")
        formats = [each for each in FORMATS if (each == ENCRYPTED) == (kind == "encrypted")]
        disk = Disk(tmp_path / "disk", rng.choice(formats))
        disk.fill(rng)
        before = disk.contents()
        command = ["amend", *SECRETS, "--image-opts", "-o", rng.choice(CHANGES[kind])]
        shutil.copy(disk.path, tmp_path / "whole")
        seconds = amended([*command, disk.opened(path=tmp_path / "whole")])
        for _ in range(3):
            amended([*command, disk.opened()], rng.uniform(0, 1.1 * seconds))
            disk.check()
            assert disk.contents() == before, (disk.options, command)


def amended(arguments: list[str], limit: float | None = None) -> float:
    """Let a process of its own do it, which is killed after ``limit`` seconds; returns how many it ran."""
    began = time.monotonic()
    child = os.fork()
    if not child:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
                main(arguments)
        finally:
            os._exit(0)
    if limit is not None:
        time.sleep(limit)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.monotonic() - began


@pytest.mark.parametrize("kind", ["add", "erase"])
def test_keys_that_change_beside_a_guest(kind: str, tmp_path: Path, soak_scale: int) -> None:
    for seed in range(SEED, SEED + soak_scale):
        print(f"{kind}, seed {seed}")
        directory = tmp_path / str(seed)
        directory.mkdir()
        rng = random.Random(f"{kind} {seed}")
        disk = Disk(directory / "disk", ENCRYPTED)
        daemon = StorageDaemon(OURS + SECRETS, directory)
        guest = None
        try:
            guest = serve(daemon, directory, seed)
            guest.wait_requests(rng.randrange(50, 500))
            if kind == "erase":
                amend(daemon, ADD_KEY)
                daemon.wait_job("j", "concluded")
                daemon.execute("job-dismiss", {"id": "j"})
            amend(daemon, ADD_KEY if kind == "add" else ERASE_KEY)
            time.sleep(rng.uniform(0, 0.1))
        finally:
            if guest is not None:
                guest.is_killed = True
            daemon.kill()
        guest.stop()
        key = "one" if kind == "add" else "two"
        disk.check(key)
        wrong = wrong_blocks(disk.contents(key), guest.flushed, guest.sent)
        assert not wrong, (len(wrong), wrong[:5])
        subprocess.run(["rm", "-r", directory], check=True)


def serve(daemon: StorageDaemon, directory: Path, seed: int) -> FastGuest:
    """A guest that writes to the encrypted disk."""
    encrypt = {"format": "luks", "key-secret": "one"}
    file = {"driver": "file", "filename": "disk"}
    daemon.execute("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": file, "encrypt": encrypt})
    daemon.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd"}}})
    daemon.execute("block-export-add", {"type": "nbd", "id": "a", "node-name": "a", "writable": True})
    return FastGuest(directory / "nbd", "a", array("I", bytes(4 * BLOCKS)), seed)


def amend(daemon: StorageDaemon, encrypt: dict[str, object]) -> None:
    options = {"driver": "qcow2", "encrypt": encrypt}
    daemon.execute("x-blockdev-amend", {"job-id": "j", "node-name": "a", "options": options})

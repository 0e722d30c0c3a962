"""kill -9 while a command changes an image, beside a guest: QEMU finds it whole, with all that was flushed.

Resizing, internal snapshots that come and go in two disks at once, jobs, and bitmaps that are stored at the end. A
bitmap is either marked as in use or knows every write. What the guest has is found through the backing files that the
images name, whether a stream or a commit has come to change those or not.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.nbd import connect
from qobra.testing.fast_guest import BLOCK, FastGuest, wrong_blocks
from qobra.testing.storage_daemon import OURS, StorageDaemon
from qobra.testing.waiting import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.peer("qemu-img", "qemu-nbd")]

SIZE = 8 << 20
"""Bytes that the guest writes to; the disks are twice as long."""
BLOCKS = SIZE // BLOCK
SEED = int(os.environ.get("QOBRA_STRESS_SEED", "0"))
FORMATS = (
    "cluster_size=64k",
    "cluster_size=4k",
    "cluster_size=512",
    "extended_l2=on",
    "refcount_bits=8",
    "compat=0.10",
)

DELAYS = (0.01, 0.05, 0.2)
"""Seconds within which a job is killed: before it moves anything, while it does, or after it."""

Versions = tuple["array[int]", "array[int]"]
"""The oldest and the newest version that each block may have."""


class Round:
    """A daemon with the disks ``a`` and ``b``, a guest on ``a``; ``rng`` decides all but the timing."""

    def __init__(self, directory: Path, seed: int, kind: str) -> None:
        self.rng = random.Random(f"{kind} {seed}")
        self.directory = directory
        self.format = self.rng.choice(FORMATS if kind != "bitmaps" else FORMATS[:-1])
        self.daemon = StorageDaemon(OURS, directory)
        do = self.daemon.execute
        do("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd"}}})
        self.disk = "a"
        """What the guest writes to."""
        for name in ("a", "b"):
            self.add(name)
        do("block-export-add", {"type": "nbd", "id": "a", "node-name": "a", "writable": True})
        self.guest = FastGuest(directory / "nbd", "a", array("I", bytes(4 * BLOCKS)), seed)
        self.guest.wait_requests(self.rng.randrange(100, 1500))

    def add(self, name: str, *backing: str) -> None:
        """Make an image, and a node that does not open its backing file."""
        self.tool("create", "-q", "-f", "qcow2", "-o", self.format, *backing, name, str(2 * SIZE))
        file = {"driver": "file", "filename": name}
        node = {"driver": "qcow2", "node-name": name, "discard": "unmap", "backing": None, "file": file}
        self.daemon.execute("blockdev-add", node)

    def put_overlay(self, name: str) -> None:
        """Let the guest write to a new image over the one that it has, and wait until it has done so."""
        self.add(name, "-u", "-b", self.disk, "-F", "qcow2")
        self.daemon.execute("blockdev-snapshot", {"node": self.disk, "overlay": name})
        self.disk = name
        self.guest.wait_requests(self.rng.randrange(50, 500))

    def tool(self, *arguments: str, status: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(["qemu-img", *arguments], cwd=self.directory, capture_output=True, text=True, check=False)
        assert done.returncode in status, (self.format, arguments, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def kill_while(self, command: str, arguments: dict[str, Any], longest: float) -> None:
        """Send a command, and kill the daemon within ``longest`` seconds."""
        self.daemon.send(command, arguments)
        time.sleep(self.rng.uniform(0, longest))
        self.kill()

    def kill(self) -> None:
        self.guest.is_killed = True
        self.daemon.kill()
        self.guest.stop()

    def look(self, name: str) -> dict[str, Any]:
        """What QEMU says of a disk, which has to be whole."""
        info: dict[str, Any] = json.loads(self.tool("info", "--output=json", name))
        if not info.get("dirty-flag"):
            self.tool("check", "-q", name, status=(0, 3))
            return info
        # Counts and flags are made anew by whoever opens it for writing; what it holds stays.
        shutil.copy(self.directory / name, self.directory / "mended")
        self.tool("check", "-q", "-r", "all", "mended", status=(0, 2, 3))
        self.tool("check", "-q", "mended")
        self.tool("compare", name, "mended")
        return info

    def holds(self, name: str, versions: Versions, *snapshot: str) -> None:
        """See that a disk, or a snapshot of it, has what it may have."""
        self.tool("convert", "-f", "qcow2", "-O", "raw", *snapshot, name, "out")
        wrong = wrong_blocks((self.directory / "out").read_bytes(), *versions)
        assert not wrong, (self.format, snapshot, len(wrong), wrong[:5])


KINDS = ("resize", "snapshot", "delete", "bitmaps", "backup", "mirror", "stream", "commit")


@pytest.fixture(params=KINDS)
def rounds(request: pytest.FixtureRequest, tmp_path: Path, soak_scale: int) -> Iterator[tuple[str, Iterator[Round]]]:
    """What is done, and daemons to do it; in all, what was flushed is there in the end."""

    def make() -> Iterator[Round]:
        for seed in range(SEED, SEED + soak_scale):
            print(f"{request.param}, seed {seed}")
            directory = tmp_path / str(seed)
            directory.mkdir()
            one = Round(directory, seed, request.param)
            try:
                yield one
            finally:
                one.guest.is_killed = True
                one.daemon.kill()
            one.holds(one.disk, (one.guest.flushed, one.guest.sent))
            subprocess.run(["rm", "-r", directory], check=True)

    return request.param, make()  # type: ignore[return-value]


@pytest.mark.timeout(3600)
def test_what_was_flushed_is_there(rounds: tuple[str, Iterator[Round]]) -> None:
    kind, each = rounds
    play = {"resize": resize, "snapshot": snapshot, "delete": snapshot, "bitmaps": bitmaps}.get(kind, job)
    for one in each:
        play(one, kind)


def resize(one: Round, _kind: str) -> None:
    end_export(one)
    sizes = [2 * SIZE, one.rng.choice([SIZE, SIZE + 512 * one.rng.randrange(1, 9999), 1 << 30, 1 << 36])]
    one.kill_while("block_resize", {"node-name": "a", "size": sizes[1]}, 0.02)
    size = one.look("a")["virtual-size"]
    assert size in sizes
    if size > 2 * SIZE:
        one.tool("resize", "-q", "--shrink", "a", str(2 * SIZE))


def snapshot(one: Round, kind: str) -> None:
    taken: dict[str, Versions] = {}
    for name in ("first", "second", "third"):
        oldest = array("I", one.guest.answered)
        actions = [{"type": "blockdev-snapshot-internal-sync", "data": {"device": disk, "name": name}} for disk in "ab"]
        if kind == "snapshot" and name == "third":
            one.kill_while("transaction", {"actions": actions}, 0.04)
        else:
            one.daemon.execute("transaction", {"actions": actions})
        taken[name] = oldest, array("I", one.guest.sent)
    if kind == "delete":
        one.kill_while("blockdev-snapshot-delete-internal-sync", {"device": "a", "name": "second"}, 0.02)
    in_doubt = "second" if kind == "delete" else "third"
    for disk in "ab":
        names = {each["name"] for each in one.look(disk).get("snapshots", ())}
        assert set(taken) - {in_doubt} <= names
        for name in names if disk == "a" else ():
            one.holds("a", taken[name], "-l", f"snapshot.name={name}")


def job(one: Round, kind: str) -> None:
    images = ["a", "b"] if kind in ("backup", "mirror") else ["a", "c", "d"]
    if "d" in images:
        one.put_overlay("c")
        one.put_overlay("d")
    command, arguments = {
        "backup": ("blockdev-backup", {"target": "b", "sync": "full"}),
        "mirror": ("blockdev-mirror", {"target": "b", "sync": "full"}),
        "stream": ("block-stream", one.rng.choice([{}, {"base-node": "a"}])),
        "commit": ("block-commit", {"top-node": "c", "base-node": "a"}),
    }[kind]
    speed = one.rng.choice([0, 0, 4 << 20, 64 << 20])
    one.kill_while(command, {"job-id": "j", "device": one.disk, "speed": speed, **arguments}, one.rng.choice(DELAYS))
    for name in images:
        one.look(name)


def bitmaps(one: Round, _kind: str) -> None:
    guest, do = one.guest, one.daemon.execute
    begun: dict[str, Versions] = {}
    for name in ("one", "two"):
        oldest = array("I", guest.answered)
        do("block-dirty-bitmap-add", {"node": "a", "name": name, "persistent": True, "granularity": BLOCK})
        begun[name] = oldest, array("I", guest.sent)
        guest.wait_requests(one.rng.randrange(1, 500))
    in_order = one.rng.random() < 0.8
    if in_order:
        end_export(one)
        one.kill_while(*one.rng.choice([("quit", {}), ("blockdev-del", {"node-name": "a"})]), 0.03)
    else:
        one.kill()
    for found in one.look("a")["format-specific"]["data"].get("bitmaps", ()):
        if "in-use" in found["flags"]:
            continue
        assert in_order, found
        dirty = dirty_blocks(one.directory, found["name"])
        before, after = begun[found["name"]]
        assert {n for n in range(BLOCKS) if guest.answered[n] > after[n]} <= dirty, found
        assert dirty <= {n for n in range(BLOCKS) if guest.sent[n] > before[n]}, found


def end_export(one: Round) -> None:
    """Let the guest end, and nobody use its disk."""
    one.guest.stop()
    one.daemon.execute("block-export-del", {"id": "a", "mode": "hard"})
    wait_until(lambda: all(each["id"] != "a" for each in one.daemon.execute("query-block-exports")))


def dirty_blocks(directory: Path, bitmap: str) -> set[int]:
    """The blocks of ``a`` that are set in a bitmap, as qemu-nbd tells."""
    path = directory / "peer"
    command = ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-B", bitmap, "-k", str(path), "a"]
    server = subprocess.Popen(command, cwd=directory)
    try:
        wait_until(lambda: path.exists() or server.poll() is not None)
        context = f"qemu:dirty-bitmap:{bitmap}"
        with connect_soon(path, context) as client:
            return {
                block
                for offset, length, flags in client.extents(context)
                if flags
                for block in range(offset // BLOCK, (offset + length) // BLOCK)
            }
    finally:
        server.kill()
        server.wait()
        path.unlink(missing_ok=True)


def connect_soon(path: Path, context: str) -> Any:
    """A client of a server that has made its socket, but may not listen yet."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return connect(f"nbd+unix:///?socket={path}", meta_contexts=[context])
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)

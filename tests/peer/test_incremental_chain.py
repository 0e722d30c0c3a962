"""Incremental backups by bitmap, pushed by jobs: each point restores bit for bit, read by QEMU's tools.

And what a crash leaves: a bitmap that was not stored is told as inconsistent, never taken for clean.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.storage_daemon import OURS, QEMUS, StorageDaemon

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

SIZE = 8 << 20


def image(path: Path, backing: str | None = None) -> None:
    options = ["-b", backing, "-F", "qcow2"] if backing else []
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *options, path.name, str(SIZE)], cwd=path.parent, check=True
    )


def write(directory: Path, rng: random.Random, count: int = 5) -> None:
    """Write through the daemon's export."""
    commands = []
    for _ in range(count):
        offset = rng.randrange(SIZE // 4096) * 4096
        length = min(SIZE - offset, rng.randrange(1, 50) * 4096)
        commands += ["-c", f"write -q -P {rng.randrange(1, 256)} {offset} {length}"]
    uri = f"nbd+unix:///disk?socket={directory}/nbd"
    subprocess.run(["qemu-io", "-f", "raw", *commands, uri], check=True, stdout=subprocess.DEVNULL)


def identical(one: Path, two: Path) -> bool:
    found = subprocess.run(["qemu-img", "compare", "-U", one, two], stdout=subprocess.DEVNULL)
    return found.returncode == 0


def start(command: list[str], directory: Path) -> StorageDaemon:
    daemon = StorageDaemon(command, directory)
    add(daemon, "disk")
    daemon.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd"}}})
    daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "writable": True})
    return daemon


def add(daemon: StorageDaemon, name: str, **options: Any) -> None:
    file = {"driver": "file", "filename": name}
    daemon.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, **options})


def bitmaps(daemon: StorageDaemon) -> dict[str, dict[str, Any]]:
    for node in daemon.execute("query-named-block-nodes", {"flat": True}):
        if node["node-name"] == "disk":
            return {each["name"]: each for each in node.get("dirty-bitmaps", [])}
    raise AssertionError("no disk")


def test_a_chain_of_incremental_backups_restores_each_point(tmp_path: Path) -> None:
    rng = random.Random(5)
    image(tmp_path / "disk")
    daemon = start(OURS, tmp_path)
    try:
        write(tmp_path, rng, 20)
        image(tmp_path / "backup0")
        add(daemon, "backup0")
        full = {"job-id": "j", "device": "disk", "target": "backup0", "sync": "full"}
        bitmap = {"node": "disk", "name": "b", "persistent": True}
        actions = [
            {"type": "block-dirty-bitmap-add", "data": bitmap},
            {"type": "blockdev-backup", "data": full},
        ]
        daemon.execute("transaction", {"actions": actions})
        daemon.wait_job("j")
        daemon.execute("blockdev-del", {"node-name": "backup0"})
        points = []
        for number in range(1, 4):
            shutil.copy(tmp_path / "disk", tmp_path / f"point{number - 1}")
            points.append((tmp_path / f"point{number - 1}", tmp_path / f"backup{number - 1}"))
            write(tmp_path, rng)
            image(tmp_path / f"backup{number}", f"backup{number - 1}")
            add(daemon, f"backup{number}")
            arguments = {
                "job-id": "j", "device": "disk", "target": f"backup{number}", "sync": "incremental", "bitmap": "b",
            }  # fmt: skip
            daemon.take_events()
            daemon.execute("blockdev-backup", arguments)
            daemon.wait_job("j")
            daemon.execute("blockdev-del", {"node-name": f"backup{number}"})
        daemon.quit()
        points.append((tmp_path / "disk", tmp_path / "backup3"))
        for point, backup in points:
            assert identical(point, backup), point.name
            subprocess.run(["qemu-img", "check", "-q", backup], check=True)
    finally:
        daemon.kill()


@pytest.mark.peer("qemu-storage-daemon")
@pytest.mark.parametrize(("first", "second"), [(OURS, QEMUS), (QEMUS, OURS), (OURS, OURS)])
def test_a_stored_bitmap_goes_on_elsewhere(tmp_path: Path, first: list[str], second: list[str]) -> None:
    rng = random.Random(6)
    image(tmp_path / "disk")
    daemon = start(first, tmp_path)
    daemon.execute("block-dirty-bitmap-add", {"node": "disk", "name": "b", "persistent": True, "granularity": 4096})
    write(tmp_path, rng)
    before = bitmaps(daemon)["b"]
    hashed = daemon.execute("x-debug-block-dirty-bitmap-sha256", {"node": "disk", "name": "b"})
    daemon.quit()
    daemon = start(second, tmp_path)
    try:
        after = bitmaps(daemon)["b"]
        assert after["count"] == before["count"] and after["recording"] and after["persistent"]
        assert daemon.execute("x-debug-block-dirty-bitmap-sha256", {"node": "disk", "name": "b"}) == hashed
    finally:
        daemon.kill()


@pytest.mark.parametrize("second", [OURS, QEMUS])
def test_a_bitmap_that_a_crash_lost_is_inconsistent(tmp_path: Path, peer: Any, second: list[str]) -> None:
    if second is QEMUS:
        peer("qemu-storage-daemon")
    image(tmp_path / "disk")
    daemon = start(OURS, tmp_path)
    daemon.execute("block-dirty-bitmap-add", {"node": "disk", "name": "b", "persistent": True})
    daemon.quit()
    daemon = start(OURS, tmp_path)
    write(tmp_path, random.Random(7))
    daemon.kill()
    daemon = start(second, tmp_path)
    try:
        assert bitmaps(daemon)["b"]["inconsistent"] is True
        reply = daemon.ask("block-dirty-bitmap-clear", {"node": "disk", "name": "b"})
        assert reply["error"]["desc"] == "Bitmap 'b' is inconsistent and cannot be used"
        daemon.execute("block-dirty-bitmap-remove", {"node": "disk", "name": "b"})
    finally:
        daemon.kill()

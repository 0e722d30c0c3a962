"""Backups pulled through libnbd as virtnbdbackup does it: a full one, then what dirty bitmaps say has changed.

At each point in time: a bitmap for the next backup is begun, and the one before is frozen, in one transaction with the
copy-before-write job whose target is exported; the client reads ``base:allocation`` or ``qemu:dirty-bitmap:...`` and
copies what they tell. Each restored chain equals the disk as it was.
"""

from __future__ import annotations

import importlib.util
import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SIZE = 4 << 20
UNIT = 65536
OURS = [sys.executable, "-c", "import sys; from qobra.cli.system import main_x86_64; sys.exit(main_x86_64())"]

_DEBIAN = Path("/usr/lib/python3/dist-packages")


def _libnbd() -> ModuleType | None:
    """The Python module of libnbd, which Debian installs for its own Python only."""
    found = importlib.util.find_spec("nbd")
    if found is None and (_DEBIAN / "nbd.py").exists():
        sys.path.append(str(_DEBIAN))
        found = importlib.util.find_spec("nbd")
        sys.path.remove(str(_DEBIAN))
    if found is None or found.loader is None:
        return None
    module = importlib.util.module_from_spec(found)
    sys.path.append(str(_DEBIAN))
    try:
        found.loader.exec_module(module)
    except ImportError:
        return None
    finally:
        sys.path.remove(str(_DEBIAN))
    return module


nbd: Any = _libnbd()
pytestmark = [
    pytest.mark.skipif(nbd is None, reason="python3-libnbd is not installed"),
    pytest.mark.peer("qemu-img", "qemu-io"),
]


class Machine:
    """A machine with one disk, ``disk``, shown by virtio-blk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket(socket.AF_UNIX) as listening:
            path = directory / "mon"
            path.unlink(missing_ok=True)
            listening.bind(str(path))
            listening.listen()
            listening.settimeout(60)
            self.process = subprocess.Popen(
                [*OURS, "-accel", "qtest", "-nodefaults", "-display", "none"]
                + ["-chardev", f"socket,id=mon,path={path}", "-mon", "chardev=mon,mode=control"]
                + ["-blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk"]
                + ["-device", "virtio-blk,drive=disk,id=virtio-disk0"],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            self._socket, _ = listening.accept()
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.events: list[dict[str, Any]] = []
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: Any) -> Any:
        names = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": names}).encode())
        while True:
            message = json.loads(self._lines.readline())
            if "event" not in message:
                assert "return" in message, message
                return message["return"]
            self.events.append(message)

    def write(self, rng: random.Random) -> None:
        """What the guest writes between two backups."""
        lines = []
        for _ in range(4):
            offset, length = rng.randrange(SIZE // 4096 - 40) * 4096, rng.randrange(1, 40) * 4096
            lines.append(f"write -P {rng.randrange(1, 256)} {offset} {length}")
        for line in [*lines, "flush"]:
            said = self.qmp("human-monitor-command", command_line=f'qemu-io -d virtio-disk0 "{line}"')
            assert said == ""

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "disk", str(SIZE)], cwd=tmp_path, check=True)
    found = Machine(tmp_path)
    yield found
    found.close()


def begin(machine: Machine, number: int) -> str:
    """Freeze a point in time and export it; the NBD address."""
    scratch = {"driver": "qcow2", "node-name": "scratch", "file": {"driver": "file", "filename": "scratch"}}
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "scratch", str(SIZE)], cwd=machine.directory, check=True)
    machine.qmp("blockdev-add", **scratch, backing="disk")
    actions = [
        {"type": "blockdev-backup", "data": {"device": "disk", "target": "scratch", "sync": "none", "job-id": "b"}},
        {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": f"c{number}", "persistent": True}},
    ]
    if number:
        before = f"c{number - 1}"
        actions += [
            {"type": "block-dirty-bitmap-disable", "data": {"node": "disk", "name": before}},
            {"type": "block-dirty-bitmap-add", "data": {"node": "scratch", "name": "changed", "disabled": True}},
            {
                "type": "block-dirty-bitmap-merge",
                "data": {"node": "scratch", "target": "changed", "bitmaps": [{"node": "disk", "name": before}]},
            },
        ]
    machine.qmp("transaction", actions=actions)
    path = machine.directory / "nbd"
    machine.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
    bitmaps = {"bitmaps": ["changed"]} if number else {}
    machine.qmp("block-export-add", type="nbd", id="e", node_name="scratch", name="sda", **bitmaps)
    return f"nbd+unix:///sda?socket={path}"


def end(machine: Machine) -> None:
    machine.qmp("nbd-server-stop")
    machine.qmp("block-job-cancel", device="b")
    while machine.qmp("query-jobs"):
        pass
    machine.qmp("blockdev-del", node_name="scratch")


def pull(uri: str, context: str, target: bytearray) -> int:
    """Copy what ``context`` says into ``target``; how many bytes."""
    client = nbd.NBD()
    client.add_meta_context(context)
    client.connect_uri(uri)
    assert client.can_meta_context(context) and client.get_size() == SIZE
    extents: list[tuple[int, bool]] = []

    def told(metacontext: str, _offset: int, entries: list[int], _error: int) -> None:
        assert metacontext == context
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            extents.append((length, bool(flags & 1) != context.startswith("base:")))

    while sum(length for length, _ in extents) < SIZE:
        start = sum(length for length, _ in extents)
        client.block_status(SIZE - start, start, told)
    position = copied = 0
    for length, wanted in extents:
        length = min(length, SIZE - position)
        if wanted:
            target[position : position + length] = client.pread(length, position)
            copied += length
        position += length
    client.shutdown()
    return copied


def test_a_chain_of_pulled_backups_restores_each_point(machine: Machine, tmp_path: Path) -> None:
    rng = random.Random(5)
    restored = bytearray(SIZE)
    for number in range(4):
        machine.write(rng)
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", "disk", "then"], cwd=tmp_path, check=True)
        uri = begin(machine, number)
        machine.write(rng)  # the guest goes on, and the backup does not see it
        context = "qemu:dirty-bitmap:changed" if number else "base:allocation"
        copied = pull(uri, context, restored)
        end(machine)
        assert restored == (tmp_path / "then").read_bytes()
        assert 0 < copied < SIZE


def test_a_bitmap_that_was_not_stored_is_told_as_inconsistent(machine: Machine, tmp_path: Path) -> None:
    machine.qmp("block-dirty-bitmap-add", node="disk", name="c0", persistent=True)
    machine.qmp("quit")
    machine.process.wait(60)
    again = Machine(tmp_path)
    try:
        again.write(random.Random(6))
        (bitmap,) = _bitmaps(again)
        assert bitmap["recording"] and bitmap["count"] > 0 and "inconsistent" not in bitmap
        again.process.send_signal(signal.SIGKILL)
        again.process.wait()
    finally:
        again.close()
    last = Machine(tmp_path)
    try:
        (bitmap,) = _bitmaps(last)
        assert bitmap["inconsistent"] and not bitmap["recording"]
    finally:
        last.close()


def _bitmaps(machine: Machine) -> list[dict[str, Any]]:
    (node,) = [each for each in machine.qmp("query-named-block-nodes") if each["node-name"] == "disk"]
    found: list[dict[str, Any]] = node["dirty-bitmaps"]
    return found

"""Play a script on a server, and say where two servers played it differently."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qobra.testing.differential import Program, Run, comparable, describe_difference, without_drains
from qobra.testing.fuzz.forked import Forked
from qobra.testing.fuzz.script import Step
from qobra.testing.fuzz.world import ENCRYPTED

PATIENCE = 2.0
"""Seconds that a job may run before the script goes on without it."""
LONGEST = 15.0
"""Seconds that ours may take where the peer was done."""
ENDLESS = 5.0
"""Seconds that qemu-img may look at one of the images, which are small."""
STABLE = ("ready", "standby", "pending", "concluded", "paused")
RESTED = 0.15
"""Seconds without progress after which a job waits for its speed limit, or a mirror that is ready has nothing to do."""
NO_MATTER = frozenset(
    {
        "wr_highest_offset",
        "amount-exceeded",  # of a file: what a format writes where is its own affair
        "busy",
        "iters",  # as many as take the time that was asked for
        "master-key-iters",
        "discard-nb-ok",
        "discard-bytes-ok",  # of a file: when a format gives space back is its own affair
        "dirty-flag",  # with lazy reference counts, ours writes those late that clusters lose, too
    }
)


class Gone(Exception):
    """The server ended, or no longer answers."""


class Player:
    """A server with a connection to it, and what it told."""

    def __init__(self, program: Program | Forked) -> None:
        self.directory = program.directory
        self._program = program
        self._run = Run(program)
        self._told = 0
        self._slow: set[str] = set()
        self._rested: set[str] = set()

    def close(self) -> None:
        """End the server, first politely."""
        try:
            self.ask("quit", None)
            self._program.wait(5)
        except (Gone, subprocess.TimeoutExpired):
            pass
        self._program.close()

    def ask(self, command: str, arguments: dict[str, Any] | None) -> Any:
        """The reply to a command. Raise :class:`Gone`."""
        try:
            return self._run.request(command, arguments)
        except (OSError, AssertionError, ValueError) as error:
            raise Gone(f"{type(error).__name__}: {error}") from None

    def query(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What a command returns, None for an error."""
        return self.ask(command, arguments).get("return")

    def play(self, step: Step) -> Any:
        """Carry a step out: what was answered."""
        kind, *rest = json.loads(json.dumps(step).replace("DIR/", f"{self.directory}/"))
        return self.ask(*rest) if kind == "qmp" else self._io(*rest)

    def settle(self, slow: set[str] | None) -> list[str]:
        """Wait for jobs to be at rest, but for ``slow`` ones, and return those that are not; None: find out which."""
        deadline = time.monotonic() + (PATIENCE if slow is None else LONGEST)
        before: Any = None
        while True:
            jobs = {job["id"]: job["status"] for job in self.query("query-jobs") or []}
            moving = [
                job for job, status in jobs.items() if status not in STABLE and job not in self._slow | (slow or set())
            ]
            if not moving and (not jobs or before == jobs):
                break
            if time.monotonic() > deadline:
                self._slow |= set(moving)
                break
            before = jobs
            if jobs:
                time.sleep(0.004)
        self._rested &= jobs.keys()
        if not (slow or set()) <= self._rested:
            self._let_rest()
            self._rested |= slow or set()
        return sorted(self._slow & jobs.keys())

    def let_ready_rest(self) -> None:
        """After a write: wait until mirrors that are ready have taken it over."""
        if any(job["status"] == "ready" for job in self.query("query-jobs") or []):
            self._let_rest()

    def _let_rest(self) -> None:
        """Wait until jobs have moved what they may at once."""
        before: Any = None
        since = time.monotonic()
        while time.monotonic() - since < RESTED:
            jobs = {job["id"]: job["current-progress"] for job in self.query("query-jobs") or []}
            if jobs != before:
                before, since = jobs, time.monotonic()
            time.sleep(0.01)

    def wait_moved(self, job: str, seconds: float) -> None:
        """Wait a moment for a job that was told to end to begin with it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            jobs = {each["id"]: each["status"] for each in self.query("query-jobs") or []}
            if jobs.get(job) not in ("ready", "standby"):
                return
            time.sleep(0.005)

    def wait_deleted(self, seconds: float) -> None:
        """Wait a moment for a device to be gone: QEMU does away with it some time after it left."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.query("query-version")
            if any(event["event"] == "DEVICE_DELETED" for event in self._run.events[self._told :]):
                return
            time.sleep(0.005)

    def events(self) -> list[Any]:
        """The events since the last time."""
        new = self._run.events[self._told :]
        self._told = len(self._run.events)
        return new

    def _io(self, node: str, command: str) -> Any:
        raise NotImplementedError


class StoragePlayer(Player):
    """A storage daemon, written to over NBD."""

    def _io(self, node: str, command: str) -> Any:
        name = {"type": "nbd", "id": "io", "node-name": node, "name": "io"}
        added = self.ask("block-export-add", {**name, "writable": not command.startswith("read")})
        if "error" in added:
            return added
        uri = f"nbd+unix:///io?socket={self.directory}/nbd"
        try:
            done = subprocess.run(
                ["qemu-io", "-f", "raw", "-c", command, uri], capture_output=True, text=True, timeout=LONGEST
            )
            told = re.sub(r"[\d.:]+ sec.*|, \d+ ops.*", "", done.stdout + done.stderr)
        except subprocess.TimeoutExpired:
            told = "no answer"
        deleted = self.ask("block-export-del", {"id": "io", "mode": "hard"})
        deadline = time.monotonic() + LONGEST
        while any(each["id"] == "io" for each in self.query("query-block-exports")) and time.monotonic() < deadline:
            time.sleep(0.002)
        return [told, deleted]


class SystemPlayer(Player):
    """A system emulator, written to with its own qemu-io."""

    def _io(self, node: str, command: str) -> Any:
        answer = self.ask("human-monitor-command", {"command-line": f'qemu-io {node} "{command}"'})
        if isinstance(text := answer.get("return"), str):
            answer["return"] = re.sub(r"[\d.:]+ sec.*|, \d+ ops.*", "", text)
        return answer


NOT_COMPARED = {"stderr", "nbd", "nbd2", "log.raw", "vu0", "vu1"}
"""Files that are no images, or hold times."""
COMMON = ["-nodefaults", "-display", "none", "-S"]


def storage(directory: Path, ours: bool) -> Player:
    """A storage daemon."""
    from qobra.cli import storage_daemon

    monitor, errors = ["--monitor", "chardev=differential"], directory / "stderr"
    if ours:
        return StoragePlayer(Forked(directory, storage_daemon.main, [], monitor, errors))
    return StoragePlayer(Program(directory, ["qemu-storage-daemon"], monitor, errors))


def system(directory: Path, ours: bool, options: Sequence[str]) -> Player:
    """A system emulator with these options, in which ``DIR/`` is the directory."""
    from qobra.cli.system import main_x86_64

    monitor, errors = ["-mon", "chardev=differential,mode=control"], directory / "stderr"
    options = [option.replace("DIR/", f"{directory}/") for option in options]
    if ours:
        return SystemPlayer(Forked(directory, main_x86_64, [*COMMON, *options], monitor, errors))
    return SystemPlayer(Program(directory, ["qemu-system-x86_64", *COMMON, *options], monitor, errors))


def make_images(directory: Path) -> None:
    """The images that scripts use, in a new directory."""
    directory.mkdir(parents=True)

    def run(*command: str) -> None:
        for _ in range(4):  # one LUKS image in 60 fails with "Unable to get accurate CPU usage"
            if not subprocess.run(command, cwd=directory, capture_output=True).returncode:
                return
        subprocess.run(command, cwd=directory, check=True, capture_output=True)

    run("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "1M")
    run("qemu-io", "-c", "write -P 1 0 512k", "base.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "mid.qcow2")
    run("qemu-io", "-c", "write -P 2 256k 512k", "mid.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2")
    run("qemu-io", "-c", "write -P 3 64k 128k", "top.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "empty.qcow2", "1M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k,lazy_refcounts=on", "big.qcow2", "3M")
    run("qemu-io", "-c", "write -P 4 1M 1M", "big.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "full.qcow2", "1M")
    run("qemu-io", "-c", "write -P 5 0 256k", "full.qcow2")
    run("qemu-img", "snapshot", "-c", "s0", "full.qcow2")
    run("qemu-img", "bitmap", "--add", "full.qcow2", "b0")
    key = ("--object", "secret,id=s,data=key0", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    run("qemu-img", "create", "-q", "-f", "qcow2", *key, ENCRYPTED, "1M")
    (directory / "a.raw").write_bytes(b"\1" * (1 << 19) + bytes(1 << 19))
    (directory / "b.raw").write_bytes(bytes(1 << 20))
    (directory / "log.raw").write_bytes(bytes(1 << 20))
    (directory / "blkdebug.conf").write_text('[inject-error]\nevent = "write_aio"\nerrno = "28"\nonce = "on"\n')
    (directory / "odd.raw").write_bytes(b"\2" * 100_000)


def copy_images(source: Path, directory: Path) -> None:
    """Images for one server."""
    shutil.copytree(source, directory)


def told(answer: Any, events: list[Any], names: dict[str, str], directory: Path, command: str) -> list[Any]:
    """Answer and events in comparable form."""
    place = str(directory)
    if command == "x-debug-query-block-graph":
        answer = json.loads(re.sub(r"#block\d+", "#auto", json.dumps(answer)))
    if command == "query-block":
        # In the manual, as it is in "inserted"; 7.2 has dropped it.
        for each in answer.get("return", []):
            each.pop("dirty-bitmaps", None)
    if "error" in answer:
        if answer["error"]["class"] == "DeviceNotFound":
            answer["error"]["class"] = "GenericError"  # as in 7.2, where the manual has it
        # Names of internal types differ, and which of several unexpected members is told.
        text = re.sub(r"expected: [A-Z]\w+$", "expected: TYPE", answer["error"]["desc"])
        answer["error"]["desc"] = re.sub(r"[\w-]+' is unexpected$", "X' is unexpected", text)
    return [
        without(comparable(answer, names, place, command)),
        _once([without(comparable(event, names, place)) for event in without_drains(events)]),
    ]


def _once(events: list[Any]) -> list[Any]:
    """``events`` in which an error of a job is told once, not for each request that was in flight."""
    return [
        event
        for number, event in enumerate(events)
        if event["event"] != "BLOCK_JOB_ERROR" or number == 0 or event != events[number - 1]
    ]


def without(value: Any) -> Any:
    """``value`` without what is not compared."""
    if isinstance(value, dict):
        if value.get("status") == "running":
            value = {key: each for key, each in value.items() if key not in ("offset", "current-progress")}
        if value.get("status") == "pending":
            value = {key: each for key, each in value.items() if key != "paused"}  # QEMU's may hold its nodes drained
        if value.get("format") == "file" or (value.get("format") != "qcow2" and _is_image(value.get("filename"))):
            value = {key: each for key, each in value.items() if key != "virtual-size"}  # says what was allocated
        if value.get("drv") != "qcow2" and _is_image(value.get("file")):
            bitmaps = [{**each, "count": None} for each in value.get("dirty-bitmaps", [])]
            value = {**value, "dirty-bitmaps": bitmaps}  # say which metadata was written
        return {key: without(each) for key, each in value.items() if key not in NO_MATTER}
    if isinstance(value, list):
        if all(isinstance(each, dict) and "recording" in each for each in value):
            value = sorted(value, key=lambda bitmap: str(bitmap.get("name")))  # a job moves its bitmap to the front
        return [without(each) for each in value]
    if isinstance(value, str) and value.startswith("json:{") and value.endswith("}"):
        return "json:" + json.dumps(json.loads(value[5:]), sort_keys=True)  # QEMU's order is that of a hash table
    return value


def _is_image(name: Any) -> bool:
    """Whether the file of this name holds an image, mostly, whose metadata are its driver's affair."""
    return bool(re.search(r"\.qcow2|/new\d", str(name)))


def difference(ours: list[Any], theirs: list[Any]) -> str:
    """What differs between two things told, "" for nothing."""
    found = []
    if ours[0] != theirs[0]:
        found.append(describe_difference(ours[0], theirs[0], "  "))
    if ours[1] != theirs[1]:
        for name, events in (("ours", ours[1]), ("theirs", theirs[1])):
            lines = [f"    {event['event']} {json.dumps(event.get('data', {}))}" for event in events]
            found.append("\n".join([f"  events, {name}", *lines]))
    return "\n".join(found)


def compare_images(ours: Path, theirs: Path, template: Path) -> list[str]:
    """What differs between the images that both sides leave."""
    found = []
    for path in sorted(theirs.iterdir()):
        own = ours / path.name
        if path.name in NOT_COMPARED or not path.is_file():
            continue
        if not own.exists():
            found.append(f"{path.name} is missing")
            continue
        data, other = own.read_bytes(), path.read_bytes()
        if data == other:
            continue
        if not path.stat().st_size or not own.stat().st_size:
            found.append(f"{path.name}: {len(data)} against {len(other)} bytes")
            continue
        formats = ["qcow2" if each[:4] == b"QFI\xfb" else "raw" for each in (data, other)]
        if formats[0] != formats[1]:
            found.append(f"{path.name}: {formats[0]} against {formats[1]}")
            continue
        if formats[0] == "raw":
            found.append(f"{path.name}: other bytes, {len(data)} against {len(other)}")
            continue
        facts = [image_facts(each) for each in (own, path)]
        if "check" not in facts[0]:
            facts[1].pop("check", None)  # QEMU leaks clusters where ours does not
        if facts[0] != facts[1]:
            found.append(f"{path.name}: {facts[0]} against {facts[1]}")
            continue
        done = _qemu_img("compare", "-U", own, path)
        if done.returncode:
            same = _qemu_img("compare", "-U", path, path)
            if not same.returncode:
                found.append(f"{path.name}: {(done.stdout + done.stderr).strip()}")
    found += [f"{path.name} is left over" for path in sorted(ours.iterdir()) if not (theirs / path.name).exists()]
    return found


def _qemu_img(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["qemu-img", *map(str, words)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ENDLESS)
    except subprocess.TimeoutExpired:
        # An image that became its own backing file is opened over and over.
        return subprocess.CompletedProcess(command, 1, "", "does not end")


def image_facts(path: Path) -> Any:
    """What qemu-img says of an image."""
    facts: dict[str, Any] = {}
    done = _qemu_img("check", "-U", "--output=json", path)
    if done.returncode:
        facts["check"] = [done.returncode, done.stderr.replace(str(path.parent), "DIR")[-200:]]
    done = _qemu_img("info", "-U", "--output=json", path)
    if done.returncode:
        facts["info"] = done.stderr.replace(str(path.parent), "DIR")
    else:
        info = json.loads(done.stdout)
        for snapshot in info.get("snapshots", []):
            for key in ("date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec"):
                snapshot.pop(key, None)
        for key in ("actual-size", "filename", "children", "dirty-flag"):
            info.pop(key, None)
        facts["info"] = without(json.loads(json.dumps(info).replace(str(path.parent), "DIR")))
    return facts


def _machine(options: Sequence[str]) -> Callable[[Path, bool], Player]:
    return lambda directory, ours: system(directory, ours, options)


_DRIVES = [
    "-drive", "if=none,id=d0,file=DIR/base.qcow2,format=qcow2,node-name=n0",
    "-device", "virtio-blk-pci,drive=d0,id=dev0", "-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-cd,id=cd0",
    "-drive", "if=none,id=d1,file=DIR/odd.raw,format=raw,read-only=on", "-device", "ide-cd,drive=d1,id=cd1",
    "-device", "isa-fdc", "-device", "floppy,id=fl0",
]  # fmt: skip

SERVERS: dict[str, tuple[Callable[[Path, bool], Player], list[str]]] = {
    "storage": (storage, []),
    "none": (_machine(["-machine", "none"]), []),
    "pc": (_machine(["-machine", "pc", *_DRIVES]), ["d0", "d1", "dev0", "cd0", "cd1", "fl0"]),
}
"""Servers by name: how to start one in a directory, and the names of its devices."""

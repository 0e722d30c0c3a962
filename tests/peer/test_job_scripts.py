"""The same QMP scripts of jobs to QEMU's storage daemon and to ours: the same replies, the same events in order."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.storage_daemon import OURS, StorageDaemon

pytestmark = pytest.mark.peer("qemu-storage-daemon", "qemu-img", "qemu-io")

Step = tuple[str, dict[str, Any]]
"""A command and its arguments; ``wait`` waits until a job was in a state."""


def run(daemon: StorageDaemon, steps: list[Step]) -> tuple[list[Any], list[dict[str, Any]]]:
    """All replies and all events; jobs are waited for one by one so that their order is defined."""
    replies: list[Any] = []
    for command, arguments in steps:
        if command == "wait":
            daemon.wait_job(**arguments)
            replies.append(without_progress(daemon.take_events()))
        else:
            replies.append(without_progress(daemon.ask(command, arguments)))
    return replies, without_progress(daemon.take_events())


def without_progress(value: Any) -> Any:
    """``value`` without what depends on how far a job had come, and without the class that only the manual has."""
    if isinstance(value, dict):
        dropped = ["offset", "current-progress", "busy", "timestamp"]
        if value.get("desc", "").startswith("Cannot find device="):
            dropped.append("class")
        return {key: without_progress(each) for key, each in value.items() if key not in dropped}
    if isinstance(value, list):
        return [without_progress(each) for each in value]
    return value


@pytest.fixture
def both(peer: Callable[[str], str], tmp_path: Path) -> Callable[[list[Step]], None]:
    """Run a script against both, each with images of its own, and compare."""

    def compare(steps: list[Step]) -> None:
        results = {}
        for name, command in (("qemu", [peer("qemu-storage-daemon")]), ("ours", OURS)):
            directory = tmp_path / name
            make_images(directory)
            daemon = StorageDaemon(command, directory)
            try:
                results[name] = run(daemon, steps)
            finally:
                daemon.kill()
        for step, qemu, ours in zip(steps, results["qemu"][0], results["ours"][0], strict=True):
            assert ours == qemu, step
        assert results["ours"][1] == results["qemu"][1]

    return compare


def make_images(directory: Path) -> None:
    """A chain top, mid, base and empty targets, 4 MiB each."""
    directory.mkdir()

    def image(name: str, *options: str) -> None:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, name, "4M"], cwd=directory, check=True)

    def write(name: str, what: str) -> None:
        subprocess.run(["qemu-io", "-c", what, name], cwd=directory, check=True, stdout=subprocess.DEVNULL)

    image("base")
    write("base", "write -P 1 0 1M")
    image("mid", "-b", "base", "-F", "qcow2")
    write("mid", "write -P 2 512k 1M")
    image("top", "-b", "mid", "-F", "qcow2")
    write("top", "write -P 3 1M 1M")
    image("target")
    image("target2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", "small", "1M"], cwd=directory, check=True)


def node(name: str, driver: str = "qcow2") -> Step:
    return "blockdev-add", {"driver": driver, "node-name": name, "file": {"driver": "file", "filename": name}}


def wait(job: str, status: str = "null") -> Step:
    return "wait", {"job": job, "status": status}


def job(verb: str, id: str = "j") -> Step:
    return f"job-{verb}", {"id": id}


QUERY: list[Step] = [("query-jobs", {}), ("query-block-jobs", {})]
BACKUP = {"job-id": "j", "device": "top", "target": "target", "sync": "full"}
SLOW_BACKUP = {**BACKUP, "speed": 1 << 19}
MIRROR = {"job-id": "j", "device": "top", "target": "target", "sync": "full"}
NODES = [node("top"), node("target")]

SCRIPTS: dict[str, list[Step]] = {
    "backup": [*NODES, ("blockdev-backup", BACKUP), wait("j"), *QUERY],
    "backup to be finalized and dismissed": [
        *NODES,
        ("blockdev-backup", {**BACKUP, "auto-finalize": False, "auto-dismiss": False}),
        wait("j", "pending"),
        *QUERY,
        job("pause"),
        job("resume"),
        job("complete"),
        job("dismiss"),
        ("block-job-set-speed", {"device": "j", "speed": 1}),
        job("finalize"),
        *QUERY,
        job("finalize"),
        job("cancel"),
        job("pause"),
        job("dismiss"),
        job("dismiss"),
    ],
    "verbs of a job that runs": [
        *NODES,
        ("blockdev-backup", SLOW_BACKUP),
        job("complete"),
        job("finalize"),
        job("dismiss"),
        ("block-job-set-speed", {"device": "j", "speed": -1}),
        job("pause"),
        wait("j", "paused"),
        *QUERY,
        job("pause"),
        ("block-job-pause", {"device": "j"}),
        job("resume"),
        job("resume"),
        ("block-job-resume", {"device": "j"}),
        ("blockdev-del", {"node-name": "target"}),
        ("blockdev-del", {"node-name": "top"}),
        job("cancel"),
        wait("j"),
        job("cancel"),
        ("block-job-cancel", {"device": "j"}),
    ],
    "backup refused": [
        *NODES,
        node("small", "raw"),
        ("block-dirty-bitmap-add", {"node": "top", "name": "b"}),
        *[
            ("blockdev-backup", {**BACKUP, **change})
            for change in (
                {"device": "x"},
                {"target": "x"},
                {"target": "top"},
                {"target": "small"},
                {"job-id": "1"},
                {"sync": "bitmap"},
                {"sync": "incremental"},
                {"bitmap": "x"},
                {"bitmap": "b"},
                {"bitmap-mode": "always"},
                {"sync": "incremental", "bitmap": "b", "bitmap-mode": "never"},
                {"sync": "top", "bitmap": "b", "bitmap-mode": "never"},
                {"sync": "none", "bitmap": "b", "bitmap-mode": "always"},
                {"speed": -1},
                {"x-perf": {"max-workers": 0}},
                {"x-perf": {"max-chunk": 100}},
            )
        ],
    ],
    "backups by bitmap": [
        *NODES,
        ("block-dirty-bitmap-add", {"node": "top", "name": "b"}),
        ("blockdev-backup", {**BACKUP, "sync": "bitmap", "bitmap": "b", "bitmap-mode": "always"}),
        wait("j"),
        ("blockdev-backup", {**BACKUP, "bitmap": "b", "bitmap-mode": "on-success"}),
        wait("j"),
    ],
    "mirror": [
        *NODES,
        ("blockdev-mirror", MIRROR),
        wait("j", "ready"),
        job("pause"),
        wait("j", "standby"),
        job("resume"),
        job("finalize"),
        ("block-job-cancel", {"device": "j"}),
        wait("j"),
        ("blockdev-mirror", {**MIRROR, "job-id": "k", "auto-finalize": False}),
        wait("k", "ready"),
        job("complete", "k"),
        wait("k", "pending"),
        job("finalize", "k"),
        ("blockdev-mirror", {**MIRROR, "job-id": "l", "device": "target", "target": "top"}),
        wait("l", "ready"),
        job("cancel", "l"),
        wait("l"),
    ],
    "mirror refused": [
        *NODES,
        node("small", "raw"),
        *[
            ("blockdev-mirror", {**MIRROR, **change})
            for change in (
                {"device": "x"},
                {"target": "x"},
                {"target": "top"},
                {"sync": "incremental"},
                {"sync": "bitmap"},
                {"granularity": 100},
                {"granularity": 1000},
                {"granularity": 1 << 27},
                {"buf-size": -1},
                {"replaces": "x"},
                {"replaces": "small"},
                {"speed": -1},
                {"job-id": ""},
            )
        ],
        ("blockdev-mirror", {**MIRROR, "target": "small"}),
        wait("j"),
    ],
    "commit": [
        node("top"),
        ("block-commit", {"job-id": "j", "device": "top", "top": "mid"}),
        wait("j"),
        ("block-commit", {"job-id": "k", "device": "top"}),
        wait("k", "ready"),
        job("complete", "k"),
        wait("k"),
    ],
    "commit refused": [
        node("top"),
        node("target"),
        *[
            ("block-commit", {"job-id": "j", "device": "top", **change})
            for change in (
                {"device": "x"},
                {"base": "x"},
                {"base-node": "x"},
                {"base-node": "target"},
                {"top": "x"},
                {"top-node": "x"},
                {"top": "base"},
                {"top": "a", "top-node": "b"},
                {"base": "a", "base-node": "b"},
                {"backing-file": "x"},
                {"device": "target"},
                {"top": "mid", "speed": -1},
            )
        ],
    ],
    "stream": [
        node("top"),
        ("block-stream", {"job-id": "j", "device": "top", "base": "base"}),
        wait("j"),
        ("block-stream", {"job-id": "k", "device": "top"}),
        wait("k"),
    ],
    "stream refused": [
        node("top"),
        *[
            ("block-stream", {"job-id": "j", "device": "top", **change})
            for change in (
                {"device": "x"},
                {"base": "x"},
                {"base-node": "x"},
                {"base-node": "top"},
                {"bottom": "x"},
                {"base": "a", "base-node": "b"},
                {"base": "a", "bottom": "b"},
                {"backing-file": "x"},
                {"speed": -1},
            )
        ],
    ],
    "create": [
        ("blockdev-create", {"job-id": "j", "options": {"driver": "file", "filename": "new", "size": 0}}),
        wait("j", "concluded"),
        *QUERY,
        job("cancel"),
        job("dismiss"),
        ("blockdev-create", {"job-id": "j", "options": {"driver": "file", "filename": "no/new", "size": 0}}),
        wait("j", "concluded"),
        *QUERY,
        job("dismiss"),
    ],
    "transactions": [
        *NODES,
        ("block-dirty-bitmap-add", {"node": "top", "name": "b"}),
        (
            "transaction",
            {"actions": [{"type": "blockdev-backup", "data": BACKUP}, {"type": "abort", "data": {}}]},
        ),
        (
            "transaction",
            {
                "actions": [
                    {"type": "block-dirty-bitmap-add", "data": {"node": "top", "name": "c"}},
                    {"type": "block-dirty-bitmap-clear", "data": {"node": "top", "name": "x"}},
                ]
            },
        ),
        ("block-dirty-bitmap-clear", {"node": "top", "name": "c"}),
        (
            "transaction",
            {
                "properties": {"completion-mode": "grouped"},
                "actions": [{"type": "block-dirty-bitmap-clear", "data": {"node": "top", "name": "b"}}],
            },
        ),
        (
            "transaction",
            {
                "properties": {"completion-mode": "grouped"},
                "actions": [{"type": "blockdev-backup", "data": {**BACKUP, "job-id": "k"}}],
            },
        ),
        wait("k"),
        ("transaction", {"actions": []}),
    ],
    "snapshots": [
        *NODES,
        ("blockdev-snapshot", {"node": "x", "overlay": "target"}),
        ("blockdev-snapshot", {"node": "top", "overlay": "x"}),
        ("blockdev-snapshot-sync", {"node-name": "top", "snapshot-file": "new"}),
        ("blockdev-snapshot", {"node": "top", "overlay": "target"}),
        ("blockdev-snapshot", {"node": "top", "overlay": "target"}),
        ("blockdev-del", {"node-name": "top"}),
        ("change-backing-file", {"device": "target", "image-node-name": "x", "backing-file": "y"}),
        ("blockdev-snapshot-internal-sync", {"device": "target", "name": ""}),
        ("blockdev-snapshot-delete-internal-sync", {"device": "target", "name": "x"}),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_as_qemu(both: Callable[[list[Step]], None], name: str) -> None:
    both(SCRIPTS[name])

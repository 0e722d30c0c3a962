"""Bitmaps of an image that two machines hand over: at the destination each is what it was, and QEMU's tools read those
that are stored.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.system import SystemProgram

pytestmark = pytest.mark.peer("qemu-img", "qemu-nbd")

SIZE = 64 << 20
GRANULARITY = {"stored": 65536, "fresh": 4096, "loose": 512}
"""One that the image had before, one that the source makes, and one that nobody stores; all note writes."""
DEADLINE_S = 60


def start(directory: Path, image: Path, node: str, *arguments: str) -> SystemProgram:
    directory.mkdir()
    disk = f"driver=qcow2,node-name={node},file.driver=file,file.filename={image}"
    program = SystemProgram(directory, "x86_64", "-m", "4", "-blockdev", disk, *arguments)
    on = [{"capability": name, "state": True} for name in ("dirty-bitmaps", "events")]
    assert program.qmp("migrate-set-capabilities", {"capabilities": on}) == {}
    return program


def write(program: SystemProgram, node: str, chance: random.Random, count: int) -> list[range]:
    """Write here and there; returns where."""
    places = []
    for _ in range(count):
        offset = chance.randrange(SIZE // 512 - 400) * 512
        length = chance.randrange(1, 400) * 512
        line = f'qemu-io {node} "write -P {chance.randrange(1, 256)} {offset} {length}"'
        assert program.qmp("human-monitor-command", {"command-line": line}) == ""
        places.append(range(offset, offset + length))
    return places


def digest(program: SystemProgram, node: str, bitmap: str) -> str:
    found = program.qmp("x-debug-block-dirty-bitmap-sha256", {"node": node, "name": bitmap})
    return str(found.get("sha256", found))


def bitmaps_of(program: SystemProgram, node: str) -> dict[str, dict[str, Any]]:
    nodes = {each["node-name"]: each for each in program.qmp("query-named-block-nodes", {"flat": True})}
    return {each["name"]: each for each in nodes[node].get("dirty-bitmaps", ())}


def wait_migrated(program: SystemProgram, run_state: str) -> set[str]:
    """Wait until it is over; returns the statuses before."""
    passed = set()
    while (status := program.wait_event("MIGRATION")["data"]["status"]) != "completed":
        assert status != "failed", program.qmp("query-migrate")
        passed.add(status)
    deadline = time.monotonic() + DEADLINE_S
    while (found := program.qmp("query-status")["status"]) != run_state:
        assert time.monotonic() < deadline, found
    return passed


def granules(places: list[range], granularity: int) -> set[int]:
    return {number for each in places for number in range(each[0] // granularity, each[-1] // granularity + 1)}


def read_by_qemu(image: Path, bitmap: str, directory: Path) -> set[int]:
    """The granules of a stored bitmap that are dirty, as QEMU's server and client tell."""
    way = directory / f"{bitmap}.nbd"
    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", str(way), "-B", bitmap, str(image)])
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not way.exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        options = f"driver=nbd,server.type=unix,server.path={way},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
        command = ["qemu-img", "map", "--output=json", "--image-opts", options]
        extents = json.loads(subprocess.check_output(command))
    finally:
        server.kill()
        server.wait()
    # What is dirty looks like what holds no data.
    dirty = [range(each["start"], each["start"] + each["length"]) for each in extents if not each["data"]]
    return granules(dirty, GRANULARITY[bitmap.removeprefix("new-")])


@pytest.mark.parametrize("postcopy", [False, True], ids=["background", "postcopy"])
@pytest.mark.parametrize("names", ["plain", "aliases", "transforms"])
def test_they_are_what_they_were(tmp_path: Path, names: str, postcopy: bool) -> None:
    image, way = tmp_path / "disk.qcow2", f"unix:{tmp_path}/way"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE)], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", image, "stored"], check=True)
    node, prefix = ("disk", "") if names == "plain" else ("other", "new-")
    chance = random.Random(f"{names} {postcopy}")
    with (
        start(tmp_path / "a", image, "disk") as source,
        start(tmp_path / "b", image, node, "-incoming", "defer") as destination,
    ):
        for name in ("fresh", "loose"):
            arguments = {"node": "disk", "name": name, "granularity": GRANULARITY[name], "persistent": name == "fresh"}
            assert source.qmp("block-dirty-bitmap-add", arguments) == {}
        stored = {"stored", "fresh"}
        if names != "plain":
            here = [{"name": name, "alias": f"alias-{name}"} for name in GRANULARITY]
            there: list[dict[str, Any]] = [{**each, "name": prefix + each["name"]} for each in here]
            if names == "transforms":
                there[1]["transform"] = {"persistent": False}
                there[2]["transform"] = {"persistent": True}
                stored = {"stored", "loose"}
            for program, known_as, bitmaps in ((source, "disk", here), (destination, node, there)):
                mapping = [{"node-name": known_as, "alias": "drive", "bitmaps": bitmaps}]
                assert program.qmp("migrate-set-parameters", {"block-bitmap-mapping": mapping}) == {}
        places = write(source, "disk", chance, 12)
        digests = {name: digest(source, "disk", name) for name in GRANULARITY}
        source.qmp("cont")
        destination.qmp("cont")
        assert destination.qmp("migrate-incoming", {"uri": way}) == {}
        if postcopy:
            source.qmp("migrate-set-parameters", {"max-bandwidth": 4096})  # it does not get far before that
        assert source.qmp("migrate", {"uri": way}) == {}
        if postcopy:
            source.qmp("migrate-start-postcopy")
        assert ("postcopy-active" in wait_migrated(source, "postmigrate")) == postcopy
        wait_migrated(destination, "running")
        assert {name: digest(destination, node, prefix + name) for name in GRANULARITY} == digests
        found = bitmaps_of(destination, node)
        assert {name for name in GRANULARITY if found[prefix + name]["persistent"]} == stored
        assert all(each["recording"] and not each["busy"] for each in found.values())
        source.qmp("quit")
        assert source.process.wait(DEADLINE_S) == 0
        places += write(destination, node, chance, 4)
        destination.qmp("quit")
        assert destination.process.wait(DEADLINE_S) == 0
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", image]))
    listed = told["format-specific"]["data"]["bitmaps"]
    assert {each["name"]: (each["granularity"], each["flags"]) for each in listed} == {
        prefix + name: (GRANULARITY[name], ["auto"]) for name in stored
    }
    for name in stored:
        assert read_by_qemu(image, prefix + name, tmp_path) == granules(places, GRANULARITY[name])

"""The contract against running QEMU 7.2: introspection, and what its programs say of wrong input.

``docs/schema-differences.md`` has a table of all differences; with ``QOBRA_WRITE_DIFFERENCES=1`` the test writes it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.qapi import keyval
from qobra.qapi.contract import contract
from qobra.qapi.diff import Change, diff
from qobra.qapi.introspect import introspect

DIFFERENCES = Path(__file__).parents[2] / "docs" / "schema-differences.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
VERSION = (7, 2)

PROGRAMS = {
    "qemu-system-x86_64": ["-S", "-machine", "none", "-display", "none", "-nodefaults", "-qmp", "stdio"],
    "qemu-system-riscv64": ["-S", "-machine", "none", "-display", "none", "-nodefaults", "-qmp", "stdio"],
    "qemu-storage-daemon": ["--chardev", "stdio,id=stdio", "--monitor", "chardev=stdio"],
}


class Peer:
    """A QEMU program with its monitor on our pipes."""

    def __init__(self, program: str, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        version = self._read()["QMP"]["version"]["qemu"]
        self.version = (version["major"], version["minor"])
        self.execute("qmp_capabilities", {})

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        return dict(json.loads(self._process.stdout.readline()))

    def execute(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The reply, ``return`` or ``error`` in it."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        while True:
            message = self._read()
            if "event" not in message:
                return message

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module", params=PROGRAMS)
def peer(request: pytest.FixtureRequest) -> Iterator[tuple[str, Peer]]:
    yield from _start(request.param)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Peer]:
    for _, running in _start("qemu-storage-daemon"):
        yield running


def _start(program: str) -> Iterator[tuple[str, Peer]]:
    try:
        running = Peer(program, PROGRAMS[program])
    except FileNotFoundError:
        pytest.skip(f"{program} is not installed")
    try:
        if running.version != VERSION:
            pytest.skip(f"{program} is version {running.version}, the differences are told for {VERSION}")
        yield program, running
    finally:
        running.close()


def _told() -> str:
    return DIFFERENCES.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def _table(changes: list[Change]) -> str:
    rows = sorted({(change.where, change.text, change.breaking) for change in changes})
    lines = ["| where | from the contract to QEMU 7.2 | breaks clients of the contract |", "|---|---|---|"]
    lines += [f"| {where} | {text} | {'yes' if breaking else ''} |" for where, text, breaking in rows]
    return "\n".join(lines) + "\n"


def test_the_differences_to_the_running_peer_are_those_of_the_table(peer: tuple[str, Peer]) -> None:
    program, running = peer
    theirs = running.execute("query-qmp-schema", {})["return"]
    names = {entity["name"] for entity in theirs}
    if program == "qemu-system-x86_64":
        table = _table(diff(introspect(contract().commands, contract().events), theirs))
        if os.environ.get("QOBRA_WRITE_DIFFERENCES"):
            before, _, rest = DIFFERENCES.read_text(encoding="utf-8").partition(BEGIN)
            DIFFERENCES.write_text(before + BEGIN + table + END + rest.partition(END)[2], encoding="utf-8")
        assert _told() == table
        return
    # The others serve other commands; what they have in common with the contract differs as it does above. Where a
    # type is told of depends on the commands that share it, so only what is said counts.
    ours = introspect(set(contract().commands) & names, set(contract().events) & names)
    told = {line.split(" | ")[1] for line in _told().splitlines() if " | " in line}
    told |= {"takes any string now"}
    assert {change.text for change in diff(ours, theirs)} <= told


# Commands of the storage daemon with arguments that are wrong in every way that there is.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("blockdev-add", {}),
    ("blockdev-add", {"driver": 1}),
    ("blockdev-add", {"driver": "zz"}),
    ("blockdev-add", {"driver": "file"}),
    ("blockdev-add", {"driver": "file", "filename": "a", "zz": 1}),
    ("blockdev-add", {"driver": "file", "filename": None}),
    ("blockdev-add", {"driver": "file", "filename": "a", "cache": {"direct": 1}}),
    ("blockdev-add", {"driver": "file", "filename": "a", "cache": {"zz": 1}}),
    ("blockdev-add", {"driver": "file", "filename": "a", "cache": 3}),
    ("blockdev-add", {"driver": "raw", "file": 3}),
    ("blockdev-add", {"driver": "raw", "file": {"driver": "file"}}),
    ("blockdev-add", {"driver": "raw", "file": {"driver": "zz"}}),
    ("blockdev-add", {"driver": "raw", "file": {"driver": "raw", "file": [1]}}),
    ("blockdev-add", {"driver": "quorum", "vote-threshold": 1, "children": ["a", {"driver": "file"}]}),
    ("blockdev-add", {"driver": "quorum", "vote-threshold": 1, "children": 3}),
    ("blockdev-add", {"driver": "quorum", "vote-threshold": 1, "children": [3]}),
    ("blockdev-add", {"driver": "quorum", "vote-threshold": 1.5, "children": []}),
    ("blockdev-add", {"driver": "quorum", "vote-threshold": 2**63, "children": []}),
    ("blockdev-add", {"driver": "quorum", "vote-threshold": 2**70, "children": []}),
    ("blockdev-add", {"driver": "null-co", "latency-ns": "a"}),
    ("blockdev-add", {"driver": "null-co", "latency-ns": 2**64}),
    ("blockdev-add", {"driver": "blkdebug", "image": "x", "max-transfer": 2**31}),
    ("blockdev-add", {"driver": "qcow2", "file": "a", "overlap-check": 4}),
    ("blockdev-add", {"driver": "qcow2", "file": "a", "overlap-check": {"template": "zz"}}),
    ("blockdev-add", {"driver": "nbd", "server": {"type": "inet", "host": "h"}}),
    ("block-dirty-bitmap-add", {"node": "a", "name": "b", "granularity": -1}),
    ("block-dirty-bitmap-add", {"node": "a", "name": "b", "granularity": "x"}),
    ("block-dirty-bitmap-merge", {"node": "a", "target": "b", "bitmaps": [{"node": "x"}]}),
    ("transaction", {"actions": [{"type": "block-dirty-bitmap-add", "data": {"node": "a"}}]}),
    ("transaction", {"actions": [{"type": "zz", "data": {}}]}),
    ("transaction", {"actions": [{"type": "abort"}]}),
    ("transaction", {"actions": [{"type": "abort", "data": {"x": 1}}]}),
    ("transaction", {"actions": [{"data": {}}]}),
    ("blockdev-create", {"job-id": "a", "options": {"driver": "qcow2", "file": "x", "size": "1M"}}),
    ("nbd-server-start", {"addr": {"type": "inet", "data": {"host": "a", "port": "3", "to": 70000}}}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": 3}}}),
    ("block-export-add", {"id": "e", "node-name": "n", "type": "nbd", "writable": "yes"}),
    ("query-jobs", {"x": 1}),
    ("job-pause", {"id": ["x"]}),
]

OPTIONS = [
    "driver=null-co,size=1M",
    "driver=null-co,read-only=1",
    "driver=null-co,cache=on",
    "driver=null-co,cache=on,cache.direct=on",
    "driver=null-co,cache.zz=1",
    "driver=null-co,node-name",
    "driver",
    "=x",
    ",driver=null-co",
    "driver=null-co,a..b=1",
    "driver=null-co,0=1",
    "driver=null-co,__a=1",
    "driver=null-co,__a.b_x=1",
    "driver=quorum,children.0=a,children.2=b",
    "driver=quorum,children.0=a,children.x=b",
    "driver=quorum,vote-threshold=1x,children.0=a",
    "driver=quorum,vote-threshold=1,children.0.driver=file",
    "driver=null-co,latency-ns=99999999999999999999",
    "driver=blkdebug,image=x,max-transfer=4294967296",
    "driver=null-co,,x",
    "driver=raw,file.0=x",
    "x." + "a" * 128 + "=1",
    "help",
]


def _as_5_2(text: str) -> str:
    """A message of 7.2 as 5.2 words it: of a bad value it names no parameter."""
    head, middle, tail = text.partition("' does not accept value '")
    return f"Invalid parameter '{tail}" if middle and head.startswith("Parameter '") else text


def _ours(command: str, arguments: dict[str, Any]) -> str | None:
    try:
        contract().check_arguments(command, arguments)
    except QobraError as error:
        return error.desc
    return None


@pytest.mark.parametrize(("command", "arguments"), WRONG)
def test_wrong_arguments_are_refused_in_the_peers_words(daemon: Peer, command: str, arguments: dict[str, Any]) -> None:
    reply = daemon.execute(command, arguments)
    assert _ours(command, arguments) == _as_5_2(reply["error"]["desc"])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.peer("qemu-storage-daemon")
def test_wrong_options_are_refused_in_the_peers_words(options: str) -> None:
    run = subprocess.run(
        ["qemu-storage-daemon", "--blockdev", options], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    said = run.stderr.strip().partition(f"--blockdev {options}: ")[2]
    assert said
    with pytest.raises(QobraError) as caught:
        contract().check("BlockdevOptions", keyval.parse(options, "driver"), keyval=True)
    assert caught.value.desc == said


def test_random_arguments_meet_the_same_fate(daemon: Peer) -> None:
    """Arguments made from the contract and then damaged: both sides refuse them alike, or both let them pass."""
    chance = random.Random(72)
    commands = ["block-dirty-bitmap-add", "block_resize", "blockdev-mirror", "block-commit"]
    commands += ["blockdev-backup", "block-stream", "job-pause", "block-job-set-speed", "block-dirty-bitmap-merge"]
    for _ in range(150):
        command = chance.choice(commands)
        arguments = _sample(chance, contract().commands[command].arg_type, 0)
        _damage(chance, arguments)
        ours = _ours(command, arguments)
        said = _as_5_2(daemon.execute(command, arguments).get("error", {}).get("desc", ""))
        if ours is None:
            assert not said.startswith(("Invalid parameter", "Parameter ")), (command, arguments)
        elif "BlockDirtyBitmapMergeSource" not in ours:  # 6.2 gave that type another name
            assert ours == said, (command, arguments)


def _sample(chance: random.Random, type_name: str, depth: int) -> Any:
    if type_name.startswith("["):
        return [_sample(chance, type_name[1:-1], depth + 1) for _ in range(chance.randrange(3))]
    simple = {"str": "x", "bool": True, "null": None, "any": 1, "number": 1.5, "q_empty": {}}
    if type_name in simple:
        return simple[type_name]
    if type_name not in contract().types:
        return chance.choice([0, 1, 70000])
    spec = contract().types[type_name]
    if spec.kind == "enum":
        return chance.choice(spec.values)
    if spec.kind == "alternate":
        return _sample(chance, chance.choice(spec.members).type, depth + 1)
    return {m.name: _sample(chance, m.type, depth + 1) for m in spec.members if not m.optional or chance.random() < 0.3}


def _damage(chance: random.Random, arguments: dict[str, Any]) -> None:
    kind = chance.randrange(3)
    if kind == 0 and arguments:
        del arguments[chance.choice(sorted(arguments))]
    elif kind == 1:
        arguments["unknown"] = 1
    elif arguments:
        arguments[chance.choice(sorted(arguments))] = chance.choice([None, 1, -1, 1.5, "zz", [], {}, [1], 2**64])

"""qobra-shell: lines, completion, help, scripts."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import qobra
from qobra.cli import shell
from qobra.cli._shell import manual
from qobra.cli._shell.complete import candidates
from qobra.cli._shell.line import Call, parse_line, split
from qobra.cli._shell.live import LiveSchema
from qobra.cli._shell.render import Printer
from qobra.client import Event
from qobra.errors import QobraError
from qobra.qapi.contract import contract
from qobra.qapi.introspect import introspect
from qobra.testing import QobraServer


@pytest.fixture(scope="module")
def schema() -> LiveSchema:
    return LiveSchema(introspect(contract().commands, contract().events))


# -- lines


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        ("x a='b c' d=\"e f\"", ["x", "a=b c", "d=e f"]),
        ('x {"a": "b c", "d": [1, 2]} y', ["x", '{"a": "b c", "d": [1, 2]}', "y"]),
        (r'x f={"a": "} \" ] b"}', ["x", r'f={"a": "} \" ] b"}']),
        ("x a=b{c", ["x", "a=b{c"]),
        ("x ''", ["x", ""]),
    ],
)
def test_split(text: str, words: list[str]) -> None:
    assert split(text) == words


@pytest.mark.parametrize("text", ["x 'a", 'x {"a": 1', "x [1"])
def test_split_refuses_what_has_no_end(text: str) -> None:
    with pytest.raises(QobraError):
        split(text)


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("block_resize node-name=10 size=10G", {"node-name": "10", "size": 10 << 30}),
        ("block_resize size=0x10", {"size": 16}),
        ("block_resize size=1.5k", {"size": 1536}),
        (
            "blockdev-add driver=qcow2 node-name=d read-only=on file.driver=file file.filename='a b'",
            {"driver": "qcow2", "node-name": "d", "read-only": True, "file": {"driver": "file", "filename": "a b"}},
        ),
        ("blockdev-add driver=raw file=base", {"driver": "raw", "file": "base"}),
        ('blockdev-add {"driver": "raw"} file={"driver": "null-co", "size": 5}',
         {"driver": "raw", "file": {"driver": "null-co", "size": 5}}),
        ("blockdev-add driver=qcow2 file=f backing=null", {"driver": "qcow2", "file": "f", "backing": None}),
        ("blockdev-add driver=null-co size=1M", {"driver": "null-co", "size": 1 << 20}),
        (
            "blockdev-add driver=quorum vote-threshold=2 children.0=a children.1.driver=null-co children.1.size=1",
            {"driver": "quorum", "vote-threshold": 2, "children": ["a", {"driver": "null-co", "size": 1}]},
        ),
        ("migrate-set-parameters tls-creds=null max-bandwidth=5", {"tls-creds": None, "max-bandwidth": 5}),
        ("qmp_capabilities enable=oob", {"enable": ["oob"]}),
        ("qom-set path=/objects/x property=y value=5", {"path": "/objects/x", "property": "y", "value": 5}),
        ("stop nonsense=5", {"nonsense": 5}),
    ],
)  # fmt: skip
def test_values_are_read_as_the_schema_has_them(schema: LiveSchema, line: str, arguments: dict[str, Any]) -> None:
    assert parse_line(line, schema) == Call(line.split()[0], arguments)


def test_commands_that_the_schema_lacks_are_guessed(schema: LiveSchema) -> None:
    call = parse_line('x-new a=1 b.c=on d=text e={"f":1}', schema)
    assert call.arguments == {"a": 1, "b": {"c": True}, "d": "text", "e": {"f": 1}}


def test_whole_requests_and_out_of_band(schema: LiveSchema) -> None:
    assert parse_line('{"exec-oob": "yank", "arguments": {"instances": []}}', schema).oob
    assert parse_line("exec-oob migrate-pause", schema) == Call("migrate-pause", {}, True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("block_resize size", "expected key=value or JSON, not 'size'"),
        ("block_resize size=big", "size: expected a number, not 'big'"),
        ("blockdev-add read-only=perhaps", "read-only: expected on or off"),
        ("block_resize size=1 size=2", "'size' is given twice"),
        ("block_resize size=1 size.x=2", "'size' has a value already"),
        ("blockdev-add cache=5", "cache: expected an object"),
        ("blockdev-add driver=quorum children.a=b", "expected children.0="),
        ('block_resize {"size"', "expected '}' at the end"),
        ("{]", "bad JSON"),
        ('{"run": "stop"}', "no member 'execute'"),
        ('{"execute": "stop", "arguments": 5}', "must be an object"),
    ],
)
def test_bad_lines_say_why(schema: LiveSchema, line: str, reason: str) -> None:
    with pytest.raises(QobraError, match=reason):
        parse_line(line, schema)


# -- completion and help


def complete(schema: LiveSchema, text: str) -> list[str]:
    def query(command: str) -> list[dict[str, Any]]:
        return {"query-named-block-nodes": [{"node-name": "disk"}, {"node-name": "data"}]}.get(command, [])

    return [found.text for found in candidates(text, schema, query, lambda name: "")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("block_res", ["block_resize "]),
        ("exec-oob yan", ["yank "]),
        ("hel", ["help "]),
        ("help block_res", ["block_resize"]),
        ("block_resize ", ["size=", "device=", "node-name="]),
        ("block_resize size=5 no", ["node-name="]),
        ("block_resize node-name=di", ["disk "]),
        ("blockdev-add driver=qcow", ["qcow ", "qcow2 "]),
        ("blockdev-add read-only=o", ["on ", "off "]),
        ("blockdev-add driver=qcow2 fi", ["file=", "file."]),
        ("blockdev-add driver=qcow2 file.driver=file file.filen", ["file.filename="]),
        ("blockdev-add driver=null-co file", []),
        ("events BLOCK_JOB_COMP", ["BLOCK_JOB_COMPLETED"]),
        ("x 'unfinished", []),
        ("nothing a", []),
    ],
)
def test_completion(schema: LiveSchema, text: str, expected: list[str]) -> None:
    assert complete(schema, text) == expected


def test_completion_offers_members_of_the_chosen_branch(schema: LiveSchema) -> None:
    assert "latency-ns=" in complete(schema, "blockdev-add driver=null-co ")
    assert "latency-ns=" not in complete(schema, "blockdev-add driver=raw file=x ")


def test_help_has_shapes_and_meanings(schema: LiveSchema) -> None:
    page = manual.page(schema, "block_resize", [], {})
    assert "  size                     int\n" in page
    assert "[node-name]" in page and "returns nothing" in page
    assert manual.about_member("block_resize", ["size"], {}) in page.replace("\n" + " " * 27, " ")


def test_help_follows_the_branch(schema: LiveSchema) -> None:
    given = {"driver": "nbd", "server": {"type": "unix"}}
    page = manual.page(schema, "blockdev-add", ["server"], given)
    assert "  path " in page
    assert "NBD" in manual.about_member("blockdev-add", ["server"], given)


# -- output


def test_pretty_output(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": 1, "b": {"c": "x\x1b[2J", "d": []}, "e": [{"f": None, "g": True}, 2], "h": {}}
    Printer(as_json=False, color=False).result(value)
    assert capsys.readouterr().out == (
        "a: 1\nb:\n  c: x\\x1b[2J\n  d: []\ne:\n  - f: null\n    g: true\n  - 2\nh: {}\n"
    )
    Printer(as_json=False, color=False).result("what a monitor says\r\nto people\r\n")
    assert capsys.readouterr().out == "what a monitor says\nto people\n\n"
    Printer(as_json=False, color=True).result({"a": "b"})
    assert capsys.readouterr().out == "\x1b[36ma\x1b[0m: \x1b[32mb\x1b[0m\n"


def test_events_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(as_json=False, color=False).event(Event("STOP", {"a": "x", "b": [1]}, 0.0))
    assert capsys.readouterr().out.endswith("] STOP a=x b=[1]\n")


# -- the program


def test_script(qobra_server: QobraServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("# nodes\nblockdev-add driver=null-co node-name=a size=1M\n\nblock_resize node-name=a size=2M\n")
    assert shell.main([qobra_server.address, "-f", str(script)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert qobra_server.execute("query-named-block-nodes")[0]["node-name"] == "a"


def test_script_stops_at_the_first_failure(qobra_server: QobraServer, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["query-name", "blockdev-del node-name=none", "query-version"]
    arguments = [word for line in lines for word in ("-c", line)]
    assert shell.main([qobra_server.address, "--json", *arguments]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"return": {}}
    assert second["error"]["desc"] == "Failed to find node with node-name='none'"


def test_events_and_quit_in_a_script(qobra_server: QobraServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-c", "help wait", "-c", "events", "-c", "quit", "-c", "never reached"]
    assert shell.main([qobra_server.address, *arguments]) == 0
    assert "events shown: none" in capsys.readouterr().out
    assert qobra_server.wait_for_quit(timeout=30)


def test_jobs_events_and_hmp_in_a_script(qobra_server: QobraServer, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "blockdev-add driver=null-co node-name=a size=1M read-zeroes=on",
        "blockdev-add driver=null-co node-name=b size=1M",
        "blockdev-backup job-id=j device=a target=b sync=full",
        "wait j",
        "wait-event JOB_STATUS_CHANGE id=j status=null",
        "hmp info name",
        "events JOB_STATUS_CHANGE STOP",
        "blockdev-add driver=raw node-name=r file={'driver': 'null-co'}",
    ]
    arguments = [word for line in lines for word in ("-c", line)]
    assert shell.main([qobra_server.address, *arguments]) == 1
    out, err = capsys.readouterr()
    assert "job j (backup) is done: 1048576 of 1048576\n" in out
    assert "] JOB_STATUS_CHANGE status=null id=j\n" in out
    assert "events shown: JOB_STATUS_CHANGE, STOP\n" in out
    assert "bad JSON" in err


def test_no_connection_and_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main([str(tmp_path / "none"), "-c", "stop"]) == 3
    assert "No such file" in capsys.readouterr().err
    assert shell.main(["x:1", "-f", str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit) as caught:
        shell.main([])
    assert caught.value.code == 2


def test_interactive(qobra_server: QobraServer, tmp_path: Path) -> None:
    """At a terminal: a command, an event that comes by itself, Tab, and Ctrl-D."""
    try:
        master, slave = pty.openpty()
    except OSError as error:
        pytest.skip(f"there is no pseudo-terminal: {error}")
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "qobra.cli.shell", qobra_server.address]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    seen = b""

    def expect(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 65536)
                # prompt_toolkit asks where the cursor is.
                if b"\x1b[6n" in seen:
                    seen = seen.replace(b"\x1b[6n", b"")
                    os.write(master, b"\x1b[1;1R")
        seen = seen.partition(text)[2]

    try:
        expect(b"connected to")
        expect(b"(qmp)")
        os.write(master, b"blockdev-add driver=null-co node-name=typed\r")
        os.write(master, b"query-named-block-nodes flat=on\r")
        expect(b"node-name: typed")
        qobra_server.emit("BLOCK_IO_ERROR", device="mydisk")
        expect(b"BLOCK_IO_ERROR device=mydisk")
        os.write(master, b"block_resi\t")
        # Only the completed name has a summary in the toolbar.
        expect(manual.summary("block_resize").encode()[:20])
        os.write(master, b"\x03")
        # Ctrl-D ends the shell at an empty prompt, which comes back some time after Ctrl-C.
        deadline = time.monotonic() + 60
        while process.poll() is None:
            assert time.monotonic() < deadline, seen
            try:
                os.write(master, b"\x04")
                if select.select([master], [], [], 0.1)[0]:
                    seen += os.read(master, 65536)
            except OSError:
                process.wait(timeout=60)  # the terminal is gone with the shell
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert "node-name=typed" in (tmp_path / "qobra" / "shell_history").read_text()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        shell.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"qobra-shell {qobra.__version__}\n"

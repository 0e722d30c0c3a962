"""``qobra schema``: what each action prints, and its exit status."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from qobra.cli.subcommand.schema import main
from qobra.errors import QobraError
from qobra.qapi.contract import contract
from qobra.qapi.introspect import introspect
from qobra.qapi.load import SCHEMA_FILE


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(_run(capsys, *arguments, "--json")[1])


@pytest.mark.parametrize("action", ["", "check", "show", "doc", "introspect", "coverage", "diff"])
def test_help(capsys: pytest.CaptureFixture[str], action: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([action, "--help"] if action else ["--help"])
    assert caught.value.code == 0
    assert "usage: qobra schema" in capsys.readouterr().out


class TestCheck:
    def test_our_own_schema(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, _ = _run(capsys, "check")
        assert status == 0
        assert f"{len(contract().commands)} commands, {len(contract().events)} events" in out
        assert _json(capsys, "check")[0]["commands"] == len(contract().commands)

    def test_a_wrong_file(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path = tmp_path / "bad.json"
        path.write_text("{ 'struct': 'A',\n  'data': { 'x' 'int' } }")
        status, _, err = _run(capsys, "check", str(path))
        assert (status, err) == (1, f"{path}:2:17: expected ':' after 'x', got the string 'int'\n")
        assert _json(capsys, "check", str(path))[0]["error"]["line"] == 2

    def test_a_file_from_a_web_page(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path = tmp_path / "page.json"
        path.write_text("{ 'include': 'gone.json' }\nsome words\n{ 'struct': 'A', 'data': { 'x': 'X' } }\n")
        status, _, err = _run(capsys, "check", str(path))
        assert status == 1 and "--stubs --lenient" in err
        status, out, _ = _run(capsys, "check", "--stubs", "--lenient", str(path))
        assert status == 0 and "skipped" in out and "not defined: X" in out

    def test_a_missing_file(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        status, _, err = _run(capsys, "check", str(tmp_path / "none"))
        assert (status, err) == (1, f"{tmp_path}/none:1:1: cannot read the schema: No such file or directory\n")

    def test_an_include_that_is_missing_is_told_where_it_is_included(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "part.json"
        path.write_text("\n{ 'include': 'gone.json' }")
        status, _, err = _run(capsys, "check", str(path))
        assert status == 1 and err.startswith(f"{path}:2:3: there is no file 'gone.json' to include\n")

    def test_what_is_no_text(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path = tmp_path / "noise.json"
        path.write_bytes(b"{ \xfb }")
        status, _, err = _run(capsys, "check", str(path))
        assert (status, err) == (1, f"{path}:1:1: expected UTF-8 text, got 0xfb\n")


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, "show", "job-pause", "JobStatus")
    assert status == 0
    assert "command job-pause (since 3.0)" in out and "enum JobStatus" in out and "concluded" in out
    shown = _json(capsys, "show", "BlockdevOptions")[0]
    assert shown["branches"]["qcow2"] == "BlockdevOptionsQcow2"
    with pytest.raises(QobraError, match="no 'blockcommit' in the schema; there are block-commit"):
        main(["show", "blockcommit"])


def test_doc(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = _run(capsys, "doc", "job")
    assert status == 0 and out.startswith("# Jobs\n") and "## `job-pause`" in out
    assert _run(capsys, "doc", "job", "--text")[1].startswith("enum JobType")
    assert {item["section"] for item in _json(capsys, "doc", "job")} == {"job"}
    assert _run(capsys, "doc", "--output", str(tmp_path / "site"))[0] == 0
    assert {"index.md", "block-core.md"} <= set(os.listdir(tmp_path / "site"))
    with pytest.raises(QobraError, match="no section 'nope'"):
        main(["doc", "nope"])


def test_introspect(capsys: pytest.CaptureFixture[str]) -> None:
    everything = introspect(contract().commands, contract().events)
    assert _json(capsys, "introspect", "--all") == everything
    assert [json.loads(line) for line in _run(capsys, "introspect", SCHEMA_FILE)[1].splitlines()] == everything
    served = _json(capsys, "introspect")
    assert {"query-version", "qmp_capabilities"} <= {entity["name"] for entity in served}
    assert len(_json(capsys, "introspect", "--storage-daemon")) <= len(served)


def test_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    report = _json(capsys, "coverage")
    commands = report["commands"]
    # 196 of the manual, and three that only older ones have.
    assert len(commands["served"]) + len(commands["missing"]) == 199
    assert len(report["events"]["served"]) + len(report["events"]["missing"]) == 48
    assert sum(row["commands"][1] for row in report["sections"].values()) == 199
    assert {"query-version", "rtc-reset-reinjection"} <= set(commands["served"])  # whatever the architecture
    out = _run(capsys, "coverage", "--missing")[1]
    assert f"commands: {len(commands['served'])} of 199 of the reference" in out
    assert all(f"  {name}\n" in out for name in commands["missing"])


class TestDiff:
    def test_files(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        old, new = tmp_path / "old.json", tmp_path / "new.json"
        old.write_text("{ 'command': 'a', 'data': { '*x': 'int' } }")
        new.write_text("{ 'command': 'a', 'data': { 'x': 'int', '*y': 'int' } }")
        status, out, _ = _run(capsys, "diff", str(old), str(new))
        assert status == 1
        assert out.splitlines() == [
            "breaks: command a, argument 'x': is mandatory now",
            "safe: command a, argument 'y': is new",
            "2 changes, 1 of them break clients",
        ]
        assert "argument 'y'" not in _run(capsys, "diff", "--breaking", str(old), str(new))[1]
        assert _json(capsys, "diff", str(new), str(old))[0]["breaking"] is True

    def test_files_that_are_not_whole(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        old, new = tmp_path / "old.json", tmp_path / "new.json"
        old.write_text("{ 'include': 'gone.json' }\n{ 'command': 'a', 'data': { 'x': 'Gone' } }")
        new.write_text("{ 'command': 'a' }\nsome words\n")
        with pytest.raises(QobraError, match=r"old\.json:1:3: there is no file"):
            main(["diff", str(old), str(new)])
        status, out, _ = _run(capsys, "diff", "--stubs", "--lenient", str(old), str(new))
        assert (status, out) == (1, "breaks: command a, argument 'x': is gone\n1 changes, 1 of them break clients\n")

    def test_a_saved_introspection_with_and_without_the_reply_around_it(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        entities = introspect(contract().commands, contract().events)
        texts = {
            "bare.json": json.dumps(entities),
            "reply.json": json.dumps({"return": entities, "id": 1}),
            "lines.json": _run(capsys, "introspect", "--all")[1],
        }
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            assert _run(capsys, "diff", "qobra", str(tmp_path / name))[:2] == (
                0,
                "0 changes, 0 of them break clients\n",
            )

    @pytest.mark.parametrize("content", ["[1]", "{}", '[{"name": "x"}]', '[{"meta-type": "zz", "name": "a"}]'])
    def test_what_is_no_introspection(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "dump.json"
        path.write_text(content)
        with pytest.raises(QobraError, match="is not what query-qmp-schema returns"):
            main(["diff", str(path), "qobra"])

    def test_a_live_server(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path = str(tmp_path / "qmp.sock")
        served = introspect(["query-version"], [])
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            thread = threading.Thread(target=_serve_one, args=(listener, served))
            thread.start()
            status, out, _ = _run(capsys, "diff", f"unix:{path}", "qobra")
            thread.join(10)
        assert status == 0
        assert "safe: command query-block: is new" in out

    def test_nobody_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(QobraError):
            main(["diff", f"unix:{tmp_path}/none", "qobra"])


def _serve_one(listener: socket.socket, schema: list[dict[str, Any]]) -> None:
    connection, _ = listener.accept()
    version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
    with connection, connection.makefile("rwb", buffering=0) as stream:
        stream.write(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\n")
        for line in iter(stream.readline, b""):
            request = json.loads(line)
            reply = {"return": schema if request["execute"] == "query-qmp-schema" else {}}
            if "id" in request:
                reply["id"] = request["id"]
            stream.write(json.dumps(reply).encode() + b"\n")

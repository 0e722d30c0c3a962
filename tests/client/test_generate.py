"""The generated methods: current, complete, and right about what they send."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from qobra.client import aio_commands, generate, sync_commands
from qobra.client.arguments import UNSET
from qobra.qapi.contract import contract


class Recorder(sync_commands.Commands):
    """Keeps what would be sent."""

    def _call(self, command: str, arguments: dict[str, Any]) -> Any:
        self.sent = (command, arguments)
        return [command]


@pytest.mark.parametrize("name", ["aio_commands.py", "sync_commands.py", "sync_jobs.py"])
def test_generated_files_are_current(name: str) -> None:
    assert (generate.DIRECTORY / name).read_text() == generate.sources()[name], "run `make generate`"


@pytest.mark.parametrize("commands", [aio_commands.Commands, sync_commands.Commands])
def test_every_command_has_its_method(commands: type) -> None:
    for name in contract().commands:
        method = getattr(commands, generate.python_name(name))
        assert inspect.iscoroutinefunction(method) == (commands is aio_commands.Commands)
        assert inspect.getdoc(method)


def test_every_method_sends_what_the_schema_takes() -> None:
    """Each command with a placeholder for every argument: the names on the wire are exactly the schema's."""
    for name, spec in contract().commands.items():
        recorder = Recorder()
        method = getattr(recorder, generate.python_name(name))
        parameters = inspect.signature(method).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        assert method(**dict.fromkeys(parameters, 1)) in (None, [name])
        wire = [member.name for member in contract().types[spec.arg_type].members]
        assert recorder.sent == (name, dict.fromkeys(wire, 1))


def test_absence_and_null() -> None:
    recorder = Recorder()
    recorder.block_resize(size=0, node_name="disk", device=None)
    assert recorder.sent == ("block_resize", {"size": 0, "node-name": "disk"})
    recorder.migrate_set_parameters(tls_creds=None, tls_hostname=UNSET)
    assert recorder.sent == ("migrate-set-parameters", {"tls-creds": None})
    with pytest.raises(TypeError):
        recorder.block_resize()  # type: ignore[call-arg]


def test_unions_take_mappings_and_keywords() -> None:
    recorder = Recorder()
    recorder.blockdev_add({"driver": "raw", "node-name": "r"}, file="f", read_only=True, discard=None)
    assert recorder.sent == ("blockdev-add", {"driver": "raw", "node-name": "r", "file": "f", "read-only": True})
    recorder.object_add(qom_type="iothread", id="io0")
    assert recorder.sent == ("object-add", {"qom-type": "iothread", "id": "io0"})


def test_async_methods_send_the_same() -> None:
    class AsyncRecorder(aio_commands.Commands):
        async def _call(self, command: str, arguments: dict[str, Any]) -> Any:
            return [command, arguments]

    assert asyncio.run(AsyncRecorder().query_jobs()) == ["query-jobs", {}]


def test_main_writes_only_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "sources", lambda: {"a.py": "new", "b.py": "same"})
    monkeypatch.setattr(generate, "DIRECTORY", tmp_path)
    (tmp_path / "b.py").write_text("same")
    generate.main()
    assert capsys.readouterr().out == "written: a.py\n"
    assert (tmp_path / "a.py").read_text() == "new"

"""Trace events, switched over QMP and in the human monitor."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from qobra import trace
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import dispatch, hmp
from qobra.qmp.monitor import Monitors


def test_switching() -> None:
    machine = Machine()
    try:
        with machine.control:
            dispatch.call(machine, "trace-event-set-state", {"name": "blk_root_*", "enable": True})
            states = dispatch.call(machine, "trace-event-get-state", {"name": "blk_*"})
            assert {each["name"]: each["state"] for each in states} == {
                "blk_root_attach": "enabled",
                "blk_root_detach": "enabled",
                "blk_co_preadv": "disabled",
                "blk_co_pwritev": "disabled",
            }
            assert hmp.execute(machine, "trace-event blk_root_* off") == ""
            assert hmp.execute(machine, "info trace-events blk_root_attach") == "blk_root_attach : state 0\r\n"
            assert len(hmp.execute(machine, "info trace-events").splitlines()) == len(trace.events())
            with pytest.raises(QobraError, match='unknown event "nosuch"'):
                dispatch.call(machine, "trace-event-get-state", {"name": "nosuch"})
            with pytest.raises(QobraError, match="invalid vCPU index 0"):
                dispatch.call(machine, "trace-event-get-state", {"name": "blk*", "vcpu": 0})
    finally:
        for event in trace.events().values():
            event.set(False)
        machine.close()


def test_a_session_is_traced(capfd: pytest.CaptureFixture[str]) -> None:
    machine = Machine()
    monitors = Monitors(machine)
    ours, theirs = socket.socketpair()
    monitors.serve_socket(theirs)
    with ours, ours.makefile("rb") as answers:
        answers.readline()
        ours.sendall(b'{"execute": "qmp_capabilities"}')
        answers.readline()
        for pattern in ("handle_qmp_command", "monitor_qmp_*"):
            for event in trace.matching(pattern):
                event.set(True)
        try:
            ours.sendall(b'{"execute": "query-name", "id": 7}')
            assert json.loads(answers.readline()) == {"return": {}, "id": 7}
        finally:
            for event in trace.events().values():
                event.set(False)
    machine.close()
    monitors.close()
    lines = [line.split(" ", 1) for line in capfd.readouterr().err.splitlines()]
    assert [name for name, _ in lines] == ["handle_qmp_command", "monitor_qmp_cmd_in_band", "monitor_qmp_respond"]
    assert lines[0][1].endswith(' req: {"execute": "query-name", "id": 7}')
    assert lines[1][1] == "7"
    assert lines[2][1].endswith(' resp: {"return": {}, "id": 7}')


def test_logging(tmp_path: Path) -> None:
    machine = Machine()
    try:
        assert hmp.execute(machine, "log int,trace:blk_root_attach") == ""
        assert hmp.execute(machine, "info trace-events blk_root_*").splitlines() == [
            "blk_root_attach : state 1",
            "blk_root_detach : state 0",
        ]
        assert hmp.execute(machine, "log trace:-blk_root_*,all") == ""
        assert hmp.execute(machine, "info trace-events blk_root_attach") == "blk_root_attach : state 0\r\n"
        assert hmp.execute(machine, "log trace:a*,trace:b") == "warning: trace event 'b' does not exist\r\n"
        for items in ("help", "int,none", "trace:"):
            assert hmp.execute(machine, f"log {items}").startswith("Log items (comma separated):\r\nout_asm ")
        assert hmp.execute(machine, f"logfile {tmp_path}/log%s") == f"Bad logfile template: {tmp_path}/log%s\r\n"
        assert hmp.execute(machine, f"logfile {tmp_path}/a/b").endswith("/a/b: No such file or directory\r\n")
        assert not list(tmp_path.iterdir())
    finally:
        machine.close()


def test_a_file_to_log_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_descriptor", trace.STANDARD_ERROR)
    machine = simple_machine("x86_64", "none")
    try:
        assert hmp.execute(machine, "log trace:blk_root_attach") == ""
        assert hmp.execute(machine, f"logfile {tmp_path}/log-%d") == ""
        assert hmp.execute(machine, "drive_add 0 if=none,id=d,file=null-co://") == "OK\r\n"
        assert (tmp_path / f"log-{os.getpid()}").read_text().startswith("blk_root_attach ")
    finally:
        for event in trace.events().values():
            event.set(False)
        os.close(trace._descriptor)
        machine.close()

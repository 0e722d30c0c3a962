"""What waits for a client: kept in order, sent when it reads, and not lost where the program ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.machine.machine import Machine
from qobra.qmp import output
from qobra.qmp.monitor import Monitors

_COMMANDS = ("qmp_capabilities", "query-qmp-schema", "quit")


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def _ask(machine: Machine, tmp_path: Path) -> int:
    """Ask for more than a pipe holds; the end to read from, of which nothing was read."""
    for end in ("in", "out"):
        os.mkfifo(tmp_path / f"m.{end}")
    monitors = Monitors(machine)
    reader = os.open(tmp_path / "m.out", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    commands: Any = "".join(f'{{"execute": "{each}"}}\n' for each in _COMMANDS).encode()
    with machine.control:
        machine.chardevs.create("m", {"type": "pipe", "data": {"device": str(tmp_path / "m")}})
        monitors.add("m")
    writer = os.open(tmp_path / "m.in", os.O_WRONLY)
    os.write(writer, commands)
    os.close(writer)
    assert machine.wait_for_exit(30)
    return reader


def _read_all(reader: int) -> bytes:
    data = b""
    while part := os.read(reader, 1 << 16):
        data += part
    os.close(reader)
    return data


def test_a_client_that_reads_late_loses_nothing_at_the_end(machine: Machine, tmp_path: Path) -> None:
    reader = _ask(machine, tmp_path)
    session: Any = machine.chardevs.find("m").frontend
    read = [b""]
    late = threading.Thread(target=lambda: read.__setitem__(0, _read_all(reader)))
    closing = threading.Thread(target=machine.close)
    closing.start()
    late.start()
    closing.join(30)
    # The program may be gone from here on: nothing is left to its threads.
    assert not session._output._backlog
    late.join(30)
    assert read[0].count(b'{"return"') == len(_COMMANDS)


def test_a_client_that_does_not_read_holds_the_end_up_for_a_moment(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.01)
    reader = _ask(machine, tmp_path)
    closing = threading.Thread(target=machine.close)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    os.close(reader)

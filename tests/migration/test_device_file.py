"""The devices' state alone, in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    made = simple_machine("x86_64", "pc", memory=1 << 20), simple_machine("x86_64", "pc", memory=1 << 20)
    yield made
    for machine in made:
        machine.close()


def _call(machine: Machine, command: str, **arguments: Any) -> None:
    with machine.control:
        dispatch.call(machine, command, arguments)


def test_devices_move_and_memory_does_not(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    source, destination = machines
    path = str(tmp_path / "state")
    with source.control:
        source.run_state.start()
    guest, there = BoardAccess(source), BoardAccess(destination)
    for access, value in ((guest, 0x5A), (there, 0)):
        access.port_out(0x70, 1, 0x50)
        access.port_out(0x71, 1, value)
        access.write(0x5000, bytes([value]))
    _call(source, "xen-save-devices-state", filename=path)
    assert source.run_state.running
    _call(destination, "xen-load-devices-state", filename=path)
    there.port_out(0x70, 1, 0x50)
    assert there.port_in(0x71, 1) == 0x5A
    assert there.read(0x5000, 1) == b"\0"
    assert destination.run_state.state == "prelaunch"
    with pytest.raises(QobraError, match="Cannot update device state while vm is running"):
        _call(source, "xen-load-devices-state", filename=path)


def test_a_machine_that_stands_still_lets_go_of_its_disks(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    source, _destination = machines
    image, path = tmp_path / "image", str(tmp_path / "state")
    image.write_bytes(bytes(1 << 16))
    _call(source, "blockdev-add", **{"driver": "file", "node-name": "n", "filename": str(image)})
    _call(source, "xen-save-devices-state", filename=path, live=False)
    assert not source.block.find_node("n").inactive
    _call(source, "xen-save-devices-state", filename=path)
    assert source.block.find_node("n").inactive
    _call(source, "cont")
    assert not source.block.find_node("n").inactive


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_files_that_are_none(machines: tuple[Machine, Machine], tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(QobraError):
        _call(machines[0], "xen-load-devices-state", filename=str(path))
    with pytest.raises(QobraError, match="Unable to open /nowhere/x: No such file or directory"):
        _call(machines[0], "xen-save-devices-state", filename="/nowhere/x")


def test_a_pipe_without_another_end_is_not_waited_for(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    machine, _other = machines
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    with pytest.raises(QobraError, match="The migration stream ends too early"):
        _call(machine, "xen-load-devices-state", filename=path)
    with pytest.raises(QobraError, match=f"Unable to open {path}: No such device or address"):
        _call(machine, "xen-save-devices-state", filename=path)

"""Disks that move along with the machine: all of them or what an overlay holds, and what is written meanwhile."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qobra.block.layer import BlockLayer
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.migration import machine_state
from qobra.migration.disks import CHUNK, DiskReceiver
from qobra.qmp import dispatch, hmp

_MIB = 1 << 20
_LENGTH = 5 * _MIB + 512
_DEADLINE_S = 60
_FLUSH = {"event": "none", "iotype": "flush"}


def _with_disks(*disks: dict[str, Any]) -> Callable[[], Machine]:
    """Makes machines with a disk each, in this order; those after the first wait for a migration."""
    left = list(disks)

    def make() -> Machine:
        machine = simple_machine("x86_64", "pc", memory=4 << 20)
        with machine.control:
            if len(left) < len(disks):
                machine.migration.expect()
            machine.block.add_node({"node-name": "disk"} | left.pop(0))
            machine.board.ready = False  # type: ignore[union-attr]
            add_device(machine, {"driver": "virtio-blk-pci", "drive": "disk", "addr": "5"}, keyval=True)
            machine.board.ready = True  # type: ignore[union-attr]
        return machine

    return make


def _raw(path: Path, content: bytes) -> dict[str, Any]:
    path.write_bytes(content)
    return {"driver": "raw", "file": {"driver": "file", "filename": str(path)}}


def _migrate(pair: Any, monkeypatch: pytest.MonkeyPatch, **arguments: bool) -> None:
    """``migrate`` with its arguments, over the pair's stream."""
    if arguments:
        start = pair.source.migration._start
        monkeypatch.setattr(pair.source.migration, "_start", lambda way, **_more: start(way, **arguments))
    pair.migrate()
    assert (pair.source.migration.describe()["status"], pair.destination.run_state.state) == ("completed", "running")


def _content(machine: Machine) -> bytes:
    return machine.block.graph.nodes["disk"].read(0, _LENGTH)


@pytest.mark.parametrize("capabilities", [["block"], ["block", "zero-blocks"], ["block", "compress"]])
def test_a_disk_moves_while_it_is_written(pair_of: Callable[..., Any], tmp_path: Path, capabilities: list[str]) -> None:
    pattern = random.Random(1).randbytes(2 * _MIB) + bytes(_LENGTH - 2 * _MIB)
    # What the destination has is overwritten, with zeroes too.
    pair = pair_of(_with_disks(_raw(tmp_path / "a", pattern), _raw(tmp_path / "b", b"\xff" * _LENGTH)))
    pair.source.migration.set_capabilities([{"capability": name, "state": True} for name in capabilities])
    with pair.source.control:
        pair.source.run_state.start()
        pair.source.migration.settings.set_parameters({"max-bandwidth": 20 << 20, "downtime-limit": 10})
    node = pair.source.block.graph.nodes["disk"]
    device = pair.source.block.visible_backends()[0]
    stop, writes = threading.Event(), random.Random(2)

    def write() -> None:
        while not stop.is_set() and not node.inactive:
            place = writes.randrange(_LENGTH // 512) * 512
            with pair.source.control:
                if pair.source.run_state.running:
                    device.write(place, writes.randbytes(512))

    writer = threading.Thread(target=write)
    writer.start()
    pair.start()
    # The guest runs on while what it writes would take longer than it may stand still.
    while (told := pair.source.migration.describe()).get("disk", {}).get("transferred", 0) < 5 * _LENGTH:
        assert told["status"] in ("setup", "active") and pair.source.run_state.running
    with pair.source.control:
        pair.source.migration.settings.set_parameters({"downtime-limit": 2000})
    assert pair.source.migration.wait(_DEADLINE_S) and pair.destination.migration.wait(_DEADLINE_S)
    stop.set()
    writer.join()
    assert pair.source.migration.describe()["status"] == "completed"
    expected = (tmp_path / "a").read_bytes()
    assert expected != pattern
    assert _content(pair.destination) == expected
    assert (tmp_path / "b").read_bytes() == expected


def test_what_is_written_while_the_guest_stands_still(
    pair_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By somebody at the monitor, after the last pass over the disks."""
    pair = pair_of(_with_disks(_raw(tmp_path / "a", bytes(_LENGTH)), _raw(tmp_path / "b", bytes(_LENGTH))))
    pair.set_capability("block")
    with pair.source.control:
        pair.source.run_state.start()
    write_devices = machine_state.write_devices

    def write_first(*arguments: Any) -> None:
        assert not pair.source.run_state.running
        with pair.source.control:
            pair.source.block.visible_backends()[0].write(2 * _MIB + 512, b"late" * 128)
        write_devices(*arguments)

    monkeypatch.setattr(machine_state, "write_devices", write_first)
    _migrate(pair, monkeypatch)
    assert _content(pair.destination)[2 * _MIB + 512 :][:512] == b"late" * 128


def test_how_far_disks_are_is_told(
    pair_of: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = pair_of(_with_disks(_raw(tmp_path / "a", b"a" * _LENGTH), _raw(tmp_path / "b", bytes(_LENGTH))))
    pair.set_capability("block")
    with pair.source.control:
        pair.source.migration.settings.set_parameters({"max-bandwidth": _MIB})
    pair.start()
    while (told := pair.source.migration.describe()).get("disk", {}).get("transferred", 0) < 2 * CHUNK:
        assert told["status"] in ("setup", "active")
    assert told["disk"]["total"] == _LENGTH
    assert 0 < told["disk"]["remaining"] <= _LENGTH - told["disk"]["transferred"] + CHUNK
    assert told["ram"]["total"] < 4 * _LENGTH
    assert f"total disk: {_LENGTH >> 10} kbytes" in hmp.execute(pair.source, "info migrate")
    with pair.source.control:
        pair.source.migration.settings.set_parameters({"max-bandwidth": 0})
    assert pair.source.migration.wait(_DEADLINE_S) and pair.destination.migration.wait(_DEADLINE_S)
    told = pair.source.migration.describe()
    assert told["status"] == "completed" and "disk" not in told
    assert _content(pair.destination) == b"a" * _LENGTH
    said = capsys.readouterr().out
    assert said.startswith("Completed 19 %\rCompleted 39 %\r") and said.endswith("\rCompleted 100 %\n")


def _overlay(tmp_path: Path, name: str, base: Path) -> dict[str, Any]:
    from qobra.block.creation._image import plan

    path = tmp_path / name
    layer = BlockLayer()
    plan(layer, str(path), "qcow2", size=_LENGTH).run(layer)
    layer.close()
    backing = {"driver": "raw", "file": {"driver": "file", "filename": str(base)}, "read-only": True}
    return {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": backing}


def test_only_what_an_overlay_holds(
    pair_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"b" * _LENGTH)
    pair = pair_of(_with_disks(_overlay(tmp_path, "a", base), _overlay(tmp_path, "b", base)))
    pair.source.block.graph.nodes["disk"].write(3 * _MIB + 4096, b"own" * 10)
    with pair.source.control:
        pair.source.run_state.start()
    _migrate(pair, monkeypatch, disks=True, incremental=True)
    assert _content(pair.destination)[3 * _MIB + 4096 :][:30] == b"own" * 10
    assert (tmp_path / "b").stat().st_blocks * 512 < 2 * _MIB  # one chunk, no more


def test_a_disk_of_another_length_is_refused(pair_of: Callable[..., Any], tmp_path: Path) -> None:
    pair = pair_of(_with_disks(_raw(tmp_path / "a", bytes(_LENGTH)), _raw(tmp_path / "b", bytes(_MIB))))
    pair.set_capability("block")
    with pair.source.control:
        pair.source.run_state.start()
    pair.migrate()
    assert pair.destination.migration.describe()["status"] == "failed"
    assert pair.source.migration.describe()["status"] == "failed"
    assert pair.source.run_state.running


def test_a_disk_that_changes_meanwhile_keeps_the_machine_here(pair_of: Callable[..., Any], tmp_path: Path) -> None:
    pair = pair_of(_with_disks(_raw(tmp_path / "a", bytes(_LENGTH)), _raw(tmp_path / "b", bytes(_LENGTH))))
    pair.set_capability("block")
    with pair.source.control:
        pair.source.run_state.start()
        pair.source.migration.settings.set_parameters({"max-bandwidth": _MIB})
    pair.start()
    while "disk" not in pair.source.migration.describe():
        pass
    with pair.source.control:
        dispatch.call(pair.source, "block_resize", {"node-name": "disk", "size": 4 * _MIB})
        pair.source.migration.settings.set_parameters({"max-bandwidth": 0})
    assert pair.source.migration.wait(_DEADLINE_S) and pair.destination.migration.wait(_DEADLINE_S)
    assert pair.source.migration.describe()["status"] == "failed"
    assert pair.source.run_state.running
    # The migration has let go of the disk.
    assert all(root.description != "the migration" for root in pair.source.block.graph.state.roots)


def test_arguments_and_capability_exclude_each_other(pair_of: Callable[..., Any], tmp_path: Path) -> None:
    pair = pair_of()
    pair.set_capability("block")
    text = "Command options are incompatible with current migration capabilities"
    for argument in ("blk", "inc"):
        with pair.source.control, pytest.raises(QobraError, match=text):
            dispatch.call(pair.source, "migrate", {"uri": "exec:false", argument: True})


@pytest.mark.parametrize("seed", range(40))
def test_records_of_hostile_sources(tmp_path: Path, seed: int) -> None:
    """Whatever comes, one error is all, and nothing but the disk that was named is written."""
    (tmp_path / "d").write_bytes(bytes(_MIB + 512))
    layer, chance = BlockLayer(), random.Random(seed)
    layer.add_node({"driver": "raw", "node-name": "d", "file": {"driver": "file", "filename": str(tmp_path / "d")}})
    receiver = DiskReceiver(layer)
    good = b"\1\0\0" + (_MIB + 512).to_bytes(8, "little") + b"\1d"
    for _ in range(20):
        payload = bytearray(chance.choice((good, b"\2\0\0" + bytes(8) + b"x" * 512, b"\3\0\0" + bytes(8))))
        for _ in range(chance.randrange(3)):
            payload[chance.randrange(len(payload))] = chance.choice((0, 1, 2, 0x80, 0xFF))
        try:
            receiver.take(bytes(payload[: chance.randrange(len(payload) + 1)]), lambda call: call())
        except QobraError:
            pass
    assert (tmp_path / "d").stat().st_size == _MIB + 512
    receiver.close()
    layer.close()


def test_a_disk_that_cannot_be_written_out(tmp_path: Path) -> None:
    layer = BlockLayer()
    disk = {"driver": "null-co", "node-name": "n", "size": _MIB}
    layer.add_node({"driver": "blkdebug", "node-name": "d", "image": disk, "inject-error": [_FLUSH]})
    receiver = DiskReceiver(layer)
    receiver.take(b"\1\0\0" + _MIB.to_bytes(8, "little") + b"\1d", lambda call: call())
    with pytest.raises(QobraError, match="Could not write the disks out: Input/output error"):
        receiver.flush()
    receiver.close()
    layer.close()

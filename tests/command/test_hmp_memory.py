"""What people see of plugged memory, the generation id and dumps; texts as QEMU's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch

_GUID = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "pc"))
        board.set_topology({"cpus": 1})
        board.max_ram_size, board.memory_slots = 1 << 30, 2
        for name in ("m", "d", "v"):
            machine.objects.create("memory-backend-ram", name, {"size": 16 << 20})
        board.numa.set({"type": "node", "cpus": [0], "memdev": "m"})
        board.set_memory(16 << 20)
        board.start()
        add_device(machine, {"driver": "pc-dimm", "id": "dimm", "memdev": "d"}, keyval=True)
        add_device(machine, {"driver": "virtio-mem-pci", "memdev": "v", "requested-size": "4M"}, keyval=True)
        add_device(machine, {"driver": "vmgenid", "guid": _GUID}, keyval=True)
        board.finish()
    yield machine
    machine.close()


def _ask(machine: Machine, line: str) -> Any:
    with machine.control:
        return dispatch.call(machine, "human-monitor-command", {"command-line": line}).replace("\r", "")


def test_memory_devices(machine: Machine) -> None:
    text = _ask(machine, "info memory-devices")
    assert text.startswith(
        'Memory device [dimm]: "dimm"\n  addr: 0x100000000\n  slot: 0\n  node: 0\n  size: 16777216\n'
        "  memdev: /objects/d\n  hotplugged: false\n  hotpluggable: true\n"
        'Memory device [virtio-mem]: ""\n  memaddr: 0x'
    )
    assert text.endswith(
        "requested-size: 4194304\n  size: 0\n  max-size: 16777216\n  block-size: 2097152\n  memdev: /objects/v\n"
    )
    assert _ask(machine, "info numa") == "1 nodes\nnode 0 cpus: 0\nnode 0 size: 32 MB\nnode 0 plugged: 16 MB\n"


def test_generation_and_dump(machine: Machine, tmp_path: Path) -> None:
    assert _ask(machine, "info vm-generation-id") == f"{_GUID}\n"
    assert _ask(machine, "info dump") == "Status: none\n"
    with machine.control:
        target = f"file:{tmp_path}/dump"
        dispatch.call(machine, "dump-guest-memory", {"paging": False, "protocol": target})
    assert _ask(machine, "info dump") == "Status: completed\n"


def test_memory_to_files(machine: Machine, tmp_path: Path) -> None:
    target = tmp_path / "saved"
    with machine.control:
        top = (16 << 20) - 8
        with pytest.raises(QobraError, match=f"Invalid addr 0x{top:016x}/size 16 specified"):
            dispatch.call(machine, "memsave", {"val": top, "size": 16, "filename": str(target)})
        assert target.stat().st_size == 8
        dispatch.call(machine, "pmemsave", {"val": top, "size": 16, "filename": str(target)})
        assert target.stat().st_size == 16
        with pytest.raises(QobraError, match="Invalid addr 0xffffffffffffffff/size 1 specified"):
            dispatch.call(machine, "memsave", {"val": -1, "size": 1, "filename": str(target)})

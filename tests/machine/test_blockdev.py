"""Devices that store, and their backends."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device


def test_a_device_that_works_goes_on_with_another_node() -> None:
    machine = simple_machine("x86_64", "pc", memory=32 << 20)
    try:
        with machine.control:
            board: Any = machine.board
            board.ready = True
            for name in ("one", "two"):
                machine.block.add_node({"driver": "null-co", "node-name": name, "size": 1 << 20})
            add_device(machine, {"driver": "virtio-scsi-pci", "id": "bus"}, keyval=True)
            disk: Any = add_device(machine, {"driver": "scsi-hd", "drive": "one", "id": "disk"}, keyval=True)
            backend = disk.backend
            disk.set("drive", "two")
            assert disk.backend is backend and backend.node is machine.block.find_node("two")
            with pytest.raises(QobraError, match="Cannot find device='' nor node-name='nope'"):
                disk.set("drive", "nope")
            assert backend.node is machine.block.find_node("two")
    finally:
        machine.close()

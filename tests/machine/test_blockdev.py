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


@pytest.mark.parametrize(
    ("bus", "disk", "text"),
    [
        (None, {"driver": "ide-hd"}, "Cannot change iothread of active block backend"),
        (None, {"driver": "virtio-blk-pci"}, "Cannot change iothread of active block backend"),
        (None, {"driver": "virtio-blk-pci", "iothread": "io"}, "Cannot change iothread of active block backend"),
        ({"driver": "lsi53c895a"}, {"driver": "scsi-hd"}, "HBA does not support iothreads"),
        ({"driver": "virtio-scsi-pci"}, {"driver": "scsi-hd"}, "Cannot change iothread of active block backend"),
        ({"driver": "virtio-scsi-pci", "iothread": "io"}, {"driver": "scsi-hd"}, None),
    ],
)
def test_devices_that_share_a_node_share_its_iothread(
    bus: dict[str, str] | None, disk: dict[str, str], text: str | None
) -> None:
    machine = simple_machine("x86_64", "pc", memory=16 << 20)
    try:
        with machine.control:
            board: Any = machine.board
            board.ready = False  # as on a command line
            machine.objects.create("iothread", "io", {})
            machine.block.add_node({"driver": "null-co", "node-name": "n", "size": 1 << 20})

            def add(options: dict[str, str]) -> None:
                add_device(machine, options, keyval=True)

            add({"driver": "virtio-scsi-pci", "id": "first", "iothread": "io"})
            add({"driver": "scsi-hd", "bus": "first.0", "drive": "n", "share-rw": "on"})
            if bus is not None:
                add({**bus, "id": "second"})
                disk = {**disk, "bus": "second.0"}
            shared = {**disk, "drive": "n", "share-rw": "on"}
            if text is None:
                add(shared)
            else:
                with pytest.raises(QobraError, match=f"^{text}$"):
                    add(shared)
    finally:
        machine.close()


def test_a_device_may_say_which_requests_count() -> None:
    """Else its drive says so."""
    machine = simple_machine("x86_64", "pc", memory=16 << 20)
    try:
        with machine.control:
            for name, options in {
                "off": {"account-invalid": "off", "account-failed": "off"},
                "on": {"account-invalid": "on", "account-failed": "auto"},
            }.items():
                machine.block.add_node({"driver": "null-co", "node-name": name, "size": 1 << 20})
                add_device(machine, {"driver": "virtio-blk", "drive": name} | options, keyval=True)
                counted = machine.block.devices[-1].accounting
                assert (counted.account_invalid, counted.account_failed) == (name == "on", name == "on")
    finally:
        machine.close()

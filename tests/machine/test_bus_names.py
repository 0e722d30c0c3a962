"""What buses are called: after their device's id, or by their type and the next number."""

from __future__ import annotations

from typing import Any

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, all_buses


def test_buses_are_called_after_their_device_or_by_number() -> None:
    machine = simple_machine("x86_64", "q35", memory=4 << 20)
    board: Any = machine.board
    with machine.control:
        board.ready = False
        for id in ("sata", None):
            for options in (
                {"driver": "ich9-ahci"},
                {"driver": "virtio-scsi-pci"},
                {"driver": "piix3-usb-uhci"},
                {"driver": "pci-bridge", "chassis_nr": "1"},
            ):
                named = {"id": f"{id}-{options['driver']}"} if id else {}
                add_device(machine, options | named, keyval=True)
        add_device(machine, {"driver": "ide-cd", "bus": "sata-ich9-ahci.5"}, keyval=True)
        add_device(machine, {"driver": "ide-cd", "bus": "ide.11"}, keyval=True)
        names = {bus.bus_name for bus in all_buses(board.system_bus)}
    assert {f"sata-ich9-ahci.{n}" for n in range(6)} | {f"ide.{n}" for n in range(12)} <= names
    assert {"sata-virtio-scsi-pci.0", "scsi.0", "sata-piix3-usb-uhci.0", "usb-bus.0"} <= names
    assert {"sata-pci-bridge", "pci.0", "pcie.0"} <= names
    machine.close()

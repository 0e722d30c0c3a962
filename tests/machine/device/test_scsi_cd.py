"""CDs on a SCSI bus: what is told before a command is carried out, and what is not kept waiting for that."""

from __future__ import annotations

from typing import Any

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction
from qobra.testing.guest_drivers import ScsiDriver


def test_events_can_be_asked_for_before_an_attention_was_told() -> None:
    machine = simple_machine("x86_64", "pc", memory=16 << 20)
    board: Any = machine.board
    with machine.control:
        board.ready = False
        add_device(machine, {"driver": "virtio-scsi-pci", "addr": "5"}, keyval=True)
        add_device(machine, {"driver": "scsi-cd", "id": "cd"}, keyval=True)
        board.ready = True
    function = PciFunction(BoardAccess(machine), 5 << 3)
    function.enable()
    driver = ScsiDriver(ModernPci(function), Memory())
    device: Any = machine.objects.resolve("/machine/peripheral/cd")
    assert device.attention is not None
    assert driver.command(bytes((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0)), read=8)[1] == 0
    assert device.attention is not None
    driver.command(bytes(6))
    assert device.attention is None
    machine.close()

"""USB devices in the middle of their work move with their controllers, whoever has the port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.migration import machine_state
from qobra.migration.ram import ram_blocks
from qobra.testing.guest import BoardAccess
from qobra.testing.usb import EhciHost, OhciHost, UhciHost, UsbHost

_SLOT = 4 << 3
_READ = b"\x28\0\0\0\0\3\0\0\1\0"
_PLACES: dict[str, tuple[type[UsbHost], list[dict[str, str]]]] = {
    "uhci": (UhciHost, [{"driver": "piix3-usb-uhci", "id": "host", "addr": "4"}]),
    "ohci": (OhciHost, [{"driver": "pci-ohci", "id": "host", "addr": "4"}]),
    "ehci": (EhciHost, [{"driver": "usb-ehci", "id": "host", "addr": "4"}]),
    "ehci with a companion": (
        EhciHost,
        [
            {"driver": "ich9-usb-ehci1", "id": "host", "addr": "4"},
            {"driver": "ich9-usb-uhci1", "masterbus": "host.0", "addr": "5"},
        ],
    ),
    "companion": (
        UhciHost,
        [
            {"driver": "ich9-usb-ehci1", "id": "host", "addr": "5"},
            {"driver": "ich9-usb-uhci1", "masterbus": "host.0", "addr": "4"},
        ],
    ),
}


def machine_with(directory: Path, devices: list[dict[str, str]], port: str) -> Machine:
    machine = simple_machine(memory=32 << 20)
    image = directory / "disk"
    image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
    board: Any = machine.board
    with machine.control:
        machine.block.add_node(
            {"driver": "file", "filename": str(image), "node-name": "disk", "read-only": True, "locking": "off"}
        )
        board.ready = False
        disk = {"driver": "usb-storage", "drive": "disk", "bus": "host.0", "port": port}
        for device in (*devices, *([{"driver": "usb-hub", "port": "1"}] if "." in port else []), disk):
            add_device(machine, dict(device), keyval=True)
        board.ready = True
    return machine


def move(source: Machine, destination: Machine) -> None:
    with source.control:
        source.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(source, "paused")
    with destination.control:
        for block, there in zip(ram_blocks(source.board), ram_blocks(destination.board), strict=True):
            there.ram.view[:] = block.ram.view
        machine_state.load_devices(destination, bytes(head), [bytes(payload) for _kind, payload in sections])


@pytest.mark.parametrize("behind_hub", [False, True])
@pytest.mark.parametrize("place", _PLACES)
def test_a_disk_goes_on_where_it_was(tmp_path: Path, place: str, behind_hub: bool) -> None:
    kind, devices = _PLACES[place]
    if behind_hub and kind is EhciHost:
        pytest.skip("no hub is of high speed")
    port = "1.3" if behind_hub else "1"
    source, destination = (machine_with(tmp_path, devices, port) for _ in range(2))
    host = kind(BoardAccess(source), _SLOT)
    host.packet_size = min(host.packet_size, 64)
    if behind_hub:
        host.configure(address=5)
        assert host.control(bytes((0x23, 3, 4, 0, 3, 0, 0, 0))) == b""
        host.address = 0
    host.configure(address=6)
    assert host.scsi(_READ, room=512) == (0, 0, bytes([3]) * 512)
    move(source, destination)
    # The same driver now finds the other machine.
    access = BoardAccess(destination)
    host.access = host.function.guest = access
    host._wait = access.step
    assert host.scsi(_READ, room=512) == (0, 0, bytes([3]) * 512)
    source.close()
    destination.close()

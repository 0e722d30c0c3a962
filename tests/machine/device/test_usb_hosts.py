"""USB devices behind each kind of host controller, from the guest's side: descriptors, disks, hubs, companions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess
from qobra.testing.usb import EhciHost, OhciHost, UhciHost, UsbHost

_SLOT = 4 << 3
_HOSTS: dict[str, type[UsbHost]] = {
    "piix3-usb-uhci": UhciHost,
    "piix4-usb-uhci": UhciHost,
    "usb-ehci": EhciHost,
    "ich9-usb-ehci2": EhciHost,
    "pci-ohci": OhciHost,
}
_DEVICE = bytes((0x80, 6, 0, 1, 0, 0, 18, 0))


class Pc:
    """A PC with devices, and a disk image of 1 MiB for one of them."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        self.machine = simple_machine(memory=32 << 20)
        self.access = BoardAccess(self.machine)
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(self.image), "node-name": "disk"})

    def add(self, driver: str, *, cold: bool = True, **options: str) -> Any:
        board: Any = self.machine.board
        with self.machine.control:
            board.ready = not cold
            device = add_device(self.machine, {"driver": driver} | options, keyval=True)
            board.ready = True
        return device


@pytest.fixture
def pc(tmp_path: Path) -> Iterator[Pc]:
    pc = Pc(tmp_path)
    yield pc
    pc.machine.close()


@pytest.mark.parametrize("controller", _HOSTS)
def test_a_disk_behind_each_controller(pc: Pc, controller: str) -> None:
    pc.add(controller, id="host", addr="4")
    pc.add("usb-storage", drive="disk", bus="host.0", port="2")
    host = _HOSTS[controller](pc.access, _SLOT, port=1)
    descriptor = host.control(_DEVICE, 18)
    assert descriptor is not None and descriptor[8:12] == b"\xf4\x46\x01\x00"
    host.configure()
    assert host.scsi(b"\x25" + bytes(9), room=8)[2] == (2047).to_bytes(4, "big") + (512).to_bytes(4, "big")
    assert host.scsi(b"\x28\0\0\0\0\3\0\0\2\0", room=1024) == (0, 0, bytes([3]) * 512 + bytes([4]) * 512)
    assert host.scsi(b"\x2a\0\0\0\0\5\0\0\1\0", data=b"u" * 512)[:2] == (0, 0)
    assert pc.image.read_bytes()[5 * 512 : 6 * 512] == b"u" * 512
    # Less than the host expects.
    assert host.scsi(b"\x12\0\0\0\x24\0", room=100)[:2] == (0, 64)
    # What the device refuses stalls, and goes on once the host has cleared it.
    assert host.transfer(0xE1, 2, b"nonsense") is None
    host.control(bytes((0x21, 0xFF, 0, 0, 0, 0, 0, 0)))
    host.control(bytes((0x02, 1, 0, 0, 2, 0, 0, 0)))
    assert host.scsi(b"\0" * 6)[:2] == (0, 0)
    # Nobody is at the address.
    host.address = 9
    assert host.control(_DEVICE, 18) is None

"""A PC with an xHCI controller, for tests: devices are plugged in, and driven from the guest's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, remove_device
from qobra.machine.usb.xhci import ring
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.xhci import XhciDriver

BULK_OUT, BULK_IN, INTERRUPT_IN = 2, 6, 7
IN, OUT = 3, 4
"""The endpoints of disks, by their place in the context; reports of input devices come from the first."""
DISK = {IN: (BULK_IN, 1024), OUT: (BULK_OUT, 1024)}
INPUT = {IN: (INTERRUPT_IN, 8)}
SUPER_PORT, HIGH_PORT = 1, 5
"""Where the guest finds what is at the first port of the bus."""
_SET_CONFIGURATION = bytes((0x00, 9, 1, 0, 0, 0, 0, 0))


class XhciPc:
    """A PC with a controller whose driver has begun, and a disk image of 1 MiB."""

    def __init__(self, directory: Path, model: str = "qemu-xhci", **options: str) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        self.machine = simple_machine(memory=64 << 20)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        self.board = board
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(self.image), "node-name": "disk"})
            board.ready = False
            self.host: Any = self._add({"driver": model, "id": "usb", "addr": "4"} | options)
            board.ready = True
            board.reset_all()
            self.machine.run_state.start()
        self.function = PciFunction(self.access, 4 << 3)
        self.function.enable()
        self.driver = XhciDriver(self.access, self.function.bars[0])
        self.tag = 0

    def _add(self, options: dict[str, str]) -> Any:
        return add_device(self.machine, options, keyval=True)

    def plug(self, driver: str, **options: str) -> Any:
        with self.machine.control:
            return self._add({"driver": driver, "bus": "usb.0"} | options)

    def unplug(self, name: str) -> None:
        with self.machine.control:
            remove_device(self.machine, name)

    def send(self, *events: dict[str, Any]) -> None:
        with self.machine.control:
            self.board.input.send(list(events))

    def begin(self, port: int, endpoints: dict[int, tuple[int, int]] | None = None) -> int:
        """Reset the port, and give the device there a slot and a configuration with ``endpoints``."""
        driver = self.driver
        driver.reset_port(port)
        slot = driver.enable_slot()
        assert driver.address(slot, port).code == ring.SUCCESS
        if endpoints is not None:
            assert driver.configure(slot, endpoints).code == ring.SUCCESS
            assert driver.control(slot, _SET_CONFIGURATION)[0] == ring.SUCCESS
        if endpoints is DISK:
            assert self.scsi(slot, bytes(6))[0] == 1  # it has just been switched on
        driver.others.clear()
        return slot

    def command_block(self, cdb: bytes, length: int, *, to_host: bool) -> bytes:
        self.tag += 1
        head = b"USBC" + self.tag.to_bytes(4, "little") + length.to_bytes(4, "little")
        return head + bytes((0x80 if to_host else 0, 0, len(cdb))) + cdb.ljust(16, b"\0")

    def scsi(self, slot: int, cdb: bytes, data: bytes = b"", room: int = 0) -> tuple[int, int, bytes]:
        """One command: its status, the residue, and the data."""
        block = self.command_block(cdb, len(data) or room, to_host=bool(room))
        assert self.driver.send(slot, OUT, block).code == ring.SUCCESS
        got = b""
        if data:
            assert self.driver.send(slot, OUT, data).code == ring.SUCCESS
        elif room:
            got = self.driver.receive(slot, IN, room)[1]
        event, status = self.driver.receive(slot, IN, 13)
        assert event.code == ring.SUCCESS and status[:8] == b"USBS" + block[4:8]
        return status[12], int.from_bytes(status[8:12], "little"), got

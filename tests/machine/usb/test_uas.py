"""USB Attached SCSI behind xHCI, with streams and without: commands, data, status, task management, hot-plug."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, remove_device
from qobra.machine.usb.xhci import ring
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.xhci import Event, XhciDriver

_COMMAND, _STATUS, _IN, _OUT = 2, 5, 7, 8
"""The pipes, by their place in the device context."""
_BULK_OUT, _BULK_IN = 2, 6
_REQUEST = ring.NORMAL << 10 | ring.ON_COMPLETION | ring.SHORT_EVENT


class Host:
    """A PC with an adapter behind xHCI, at super or at high speed, and two units."""

    def __init__(self, directory: Path, *, fast: bool) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        self.machine = simple_machine(memory=64 << 20)
        board: Any = self.machine.board
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(self.image), "node-name": "disk"})
            for name in ("null", "late"):
                self.machine.block.add_node({"driver": "null-co", "size": 1 << 20, "node-name": name})
            board.ready = False
            self.add("qemu-xhci", id="usb", addr="4", p3="4" if fast else "0")
            self.device = self.add("usb-uas", id="uas", bus="usb.0")
            self.add("scsi-hd", drive="disk", bus="uas.0")
            self.add("scsi-hd", drive="null", bus="uas.0", lun="5", **{"scsi-id": "0"})
            board.ready = True
            board.reset_all()
        access = BoardAccess(self.machine)
        function = PciFunction(access, 4 << 3)
        function.enable()
        self.access, self.fast = access, fast
        driver = self.driver = XhciDriver(access, function.bars[0])
        driver.start()
        driver.reset_port(1)
        slot = self.slot = driver.enable_slot()
        assert driver.address(slot, 1).code == ring.SUCCESS
        size = 1024 if fast else 512
        kinds = {_COMMAND: (_BULK_OUT, size), _STATUS: (_BULK_IN, size), _IN: (_BULK_IN, size), _OUT: (_BULK_OUT, size)}
        done = driver.configure(slot, kinds, streams=4, with_streams=(_STATUS, _IN, _OUT) if fast else ())
        assert done.code == ring.SUCCESS
        assert driver.control(slot, bytes((0, 9, 1, 0, 0, 0, 0, 0)))[0] == ring.SUCCESS
        driver.others.clear()

    def add(self, driver: str, **options: str) -> Any:
        return add_device(self.machine, {"driver": driver} | options, keyval=True)

    def put(self, pipe: int, tag: int, length: int, data: bytes = b"") -> tuple[int, int]:
        """A transfer; returns the address of the request and of its buffer."""
        driver, stream = self.driver, tag if self.fast else 0
        buffer = driver.memory.take(length)
        self.access.write(buffer, data)
        transfers = driver.streams[self.slot, pipe, tag] if self.fast else driver.rings[self.slot, pipe]
        at = transfers.put(buffer, length, _REQUEST)
        driver.ring(self.slot, pipe, stream)
        return at, buffer

    def send(self, unit: bytes) -> None:
        """Send an information unit to the command pipe."""
        buffer = self.driver.memory.take(len(unit))
        self.access.write(buffer, unit)
        at = self.driver.rings[self.slot, _COMMAND].put(buffer, len(unit), _REQUEST)
        self.driver.ring(self.slot, _COMMAND)
        assert self.event(at).code == ring.SUCCESS

    def command(self, tag: int, cdb: bytes, *, lun: int = 0) -> None:
        address = lun.to_bytes(2, "big") + bytes(6)
        unit = bytes((1, 0)) + tag.to_bytes(2, "big") + bytes(4) + address + cdb.ljust(16, b"\0")
        self.send(unit)

    def event(self, at: int) -> Event:
        """The event of the request at ``at``."""
        for event in self.driver.others:
            if event.pointer == at:
                self.driver.others.remove(event)
                return event
        while (event := self.driver.wait(ring.TRANSFER_EVENT)).pointer != at:
            self.driver.others.append(event)
        return event

    def status(self, tag: int) -> bytes:
        """What the status pipe tells."""
        at, buffer = self.put(_STATUS, tag, 96)
        return self.access.read(buffer, 96 - self.event(at).length)

    def run(self, tag: int, cdb: bytes, *, room: int = 0, data: bytes = b"", lun: int = 0) -> tuple[bytes, bytes]:
        """A command from its beginning to its end: the status and the data."""
        self.command(tag, cdb, lun=lun)
        if not self.fast and (room or data):
            ready = self.status(tag)
            if ready[0] == 3:
                return ready, b""
            assert ready == bytes((7 if data else 6, 0)) + tag.to_bytes(2, "big")
        if data:
            at, _ = self.put(_OUT, tag, len(data), data)
            assert self.event(at).code == ring.SUCCESS
        got = b""
        if room:
            at, buffer = self.put(_IN, tag, room)
            event = self.event(at)
            got = self.access.read(buffer, room - event.length)
        return self.status(tag), got


@pytest.fixture(params=[True, False], ids=["streams", "turns"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, fast=request.param)
    yield host
    host.machine.close()


def test_descriptors(host: Host) -> None:
    configuration = host.driver.descriptor(host.slot, 2) or b""
    assert len(configuration) == configuration[2] == (86 if host.fast else 62)
    assert configuration[14:17] == b"\x08\x06\x62" and configuration.count(b"\x04\x24") == 4
    assert configuration.count(bytes((6, 0x30, 15, 4))) == (3 if host.fast else 0)
    capabilities = host.driver.descriptor(host.slot, 15) or b""
    assert capabilities.hex() == "050f160002071002020000000a1003000c00020a2000"


def test_commands(host: Host) -> None:
    status, _ = host.run(1, bytes(6))
    assert status[:7] == bytes((3, 0, 0, 1, 0, 0, 2)) and status[14:16] == b"\0\x12" and status[16 + 12] == 0x29
    assert host.run(2, b"\x28\0\0\0\0\3\0\0\2\0", room=1024) == (
        bytes((3, 0, 0, 2)) + bytes(12),
        bytes([3]) * 512 + bytes([4]) * 512,
    )
    assert host.run(3, b"\x2a\0\0\0\0\5\0\0\1\0", data=b"u" * 512)[0][6] == 0
    assert host.image.read_bytes()[5 * 512 : 6 * 512] == b"u" * 512
    assert len(host.run(4, b"\x12\0\0\0\x24\0", room=36)[1]) == 36
    host.run(1, bytes(6), lun=5)
    assert host.run(1, b"\x28\0\0\0\0\0\0\0\1\0", room=512, lun=5)[1] == bytes(512)
    # A command that fails has no data.
    host.command(6, b"\x28\0\0\xff\xff\0\0\0\1\0")
    assert host.status(6)[6] == 2


def test_what_is_not_there_or_makes_no_sense(host: Host) -> None:
    host.command(7, bytes(6), lun=9)
    assert host.status(7) == bytes((4, 0, 0, 7, 0, 0, 0, 9))
    host.send(bytes((1, 0, 0, 8)))
    assert host.status(8) == bytes((4, 0, 0, 8, 0, 0, 0, 2))
    host.command(9, b"\x2a\0\0\0\0\5\0\0\1\0")  # waits for its data
    host.command(9, bytes(6))
    told = [host.status(9)] if host.fast else [host.status(9), host.status(9)]
    assert told[-1] == bytes((4, 0, 0, 9, 0, 0, 0, 0x0A))
    manage = bytes((5, 0, 0, 10, 1, 0, 0, 9)) + bytes(8)
    host.send(manage)
    assert host.status(10) == bytes((4, 0, 0, 10, 0, 0, 0, 0))
    host.send(bytes((5, 0, 0, 11, 0x80, 0, 0, 9)) + bytes(8))
    assert host.status(11)[7] == 4
    host.run(12, bytes(6))
    assert host.run(12, bytes(6))[0][6] == 0
    host.send(bytes((5, 0, 0, 13, 8, 0, 0, 0)) + bytes(8))
    assert host.status(13)[7] == 0
    assert host.run(14, bytes(6))[0][28] == 0x29  # the unit was reset


def test_several_at_once(host: Host) -> None:
    host.run(1, bytes(6))
    waiting = {}
    if host.fast:
        for tag in range(1, 9):
            waiting[tag] = host.put(_STATUS, tag, 96), host.put(_IN, tag, 512)
    for tag in range(1, 9):
        host.command(tag, b"\x28\0\0\0\0" + bytes([tag]) + b"\0\0\1\0")
    seen = {}
    if host.fast:
        for tag, ((told, _), (at, buffer)) in waiting.items():
            assert host.event(at).code == ring.SUCCESS and host.event(told).code == ring.SHORT_PACKET
            seen[tag] = host.access.read(buffer, 512)
    else:
        for _ in range(8):
            ready = host.status(0)
            while ready[0] == 3:  # of one whose data was read
                ready = host.status(0)
            at, buffer = host.put(_IN, 0, 512)
            host.event(at)
            seen[ready[3]] = host.access.read(buffer, 512)
    assert seen == {tag: bytes([tag]) * 512 for tag in range(1, 9)}


def test_units_and_adapters_that_come_later(host: Host) -> None:
    with host.machine.control:
        host.add("scsi-hd", drive="late", id="late", bus="uas.0", lun="7", **{"scsi-id": "0"})
    assert host.run(1, bytes(6), lun=7)[0][6] == 2
    host.command(2, b"\x2a\0\0\0\0\5\0\0\1\0", lun=7)
    with host.machine.control:
        remove_device(host.machine, "late")
    told = host.status(2) if not host.fast else b"\7"
    assert told[0] == 7
    host.command(3, bytes(6), lun=7)
    assert host.status(3)[7] == 9
    with host.machine.control:
        second = host.add("usb-uas", id="second", bus="usb.0")
        assert second.get("attached") is False
        with pytest.raises(QobraError, match="bad scsi device id: 1"):
            host.add("scsi-hd", drive="late", bus="second.0", **{"scsi-id": "1"})
        port = host.driver.port(2)
        second.set("attached", True)
    assert not port & 1 and host.driver.port(2) & 1
    with host.machine.control:
        second.set("attached", False)
    assert not host.driver.port(2) & 1


def test_what_waits_for_its_data_is_bounded(host: Host) -> None:
    host.run(1, bytes(6))
    write_16_mib = b"\x2a\0\0\0\0\0\0\x80\0\0"
    for tag in range(1, 5):
        host.command(tag, write_16_mib)
    host.command(5, write_16_mib)
    host.command(6, b"\xaa\0\0\0\0\0\0\0\x80\1\0\0")  # longer than any may be
    ready = [host.status(0)[0]] if not host.fast else []  # of the first, whose turn it is
    assert ready in ([], [7])
    assert [host.status(tag)[:7] for tag in (5, 6)] == [bytes((3, 0, 0, 5, 0, 0, 0x28)), bytes((3, 0, 0, 6, 0, 0, 2))]
    host.send(bytes((5, 0, 0, 7, 1, 0, 0, 1)) + bytes(8))  # the first is aborted
    assert 7 in {host.status(7)[3] for _ in range(1 if host.fast else 2)}
    host.command(8, write_16_mib)
    assert sorted(host.device._tasks) == [2, 3, 4, 8]

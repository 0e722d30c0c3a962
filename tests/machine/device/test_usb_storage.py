"""USB disks behind UHCI, from the guest's side: frames, control requests, the bulk-only transport, hot-plug."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.block import query
from qobra.errors import QobraError
from qobra.machine.drive import Drives
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, remove_device
from qobra.testing.guest import BoardAccess, PciFunction, wait_until

_FRAMES, _QUEUE, _TRANSFER, _BUFFER = 0x100000, 0x110000, 0x111000, 0x200000
_SETUP, _IN, _OUT = 0x2D, 0x69, 0xE1
_ACTIVE, _STALLED = 1 << 23, 1 << 22
_MS = 10**6


class Guest:
    """A pc with a UHCI controller and a USB disk of 1 MiB at its first port."""

    def __init__(self, directory: Path, **properties: str) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        self.machine = simple_machine(memory=32 << 20)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(self.image), "node-name": "disk"})
            board.ready = False
            add_device(self.machine, {"driver": "piix3-usb-uhci", "id": "uhci", "addr": "4"}, keyval=True)
            options = {"driver": "usb-storage", "drive": "disk", "id": "stick", "bus": "uhci.0"} | properties
            self.device: Any = add_device(self.machine, options, keyval=True)
            board.ready = True
        self.function = PciFunction(self.access, 4 << 3)
        self.function.enable()
        self.base = self.function.bars[4]
        self.access.write(_FRAMES, (_QUEUE | 2).to_bytes(4, "little") * 1024)
        self.access.write(_QUEUE, (1).to_bytes(4, "little") * 2)
        self.access.port_out(self.base + 8, 4, _FRAMES)
        self.access.port_out(self.base + 0x10, 2, 0x0200)
        self.access.port_out(self.base + 0x10, 2, 0x0004)
        self.access.port_out(self.base, 2, 1)
        self.address = 0
        self.tag = 0

    def transfer(self, pid: int, endpoint: int, data: bytes = b"", room: int = 0) -> bytes | None:
        """One packet; None if it stalled."""
        length = len(data) if data or pid != _IN else room
        self.access.write(_BUFFER, data)
        token = (length - 1 & 0x7FF) << 21 | endpoint << 15 | self.address << 8 | pid
        words = (1, _ACTIVE | 3 << 27 | 1 << 24, token, _BUFFER)
        self.access.write(_TRANSFER, b"".join(word.to_bytes(4, "little") for word in words))
        self.access.store(_QUEUE + 4, 4, _TRANSFER)

        def done() -> bool:
            self.access.step(_MS)
            return not self.access.load(_TRANSFER + 4, 4) & _ACTIVE

        wait_until(done)
        control = self.access.load(_TRANSFER + 4, 4)
        self.access.port_out(self.base + 2, 2, 0x3F)
        if control & _STALLED:
            return None
        return self.access.read(_BUFFER, (control + 1) & 0x7FF) if pid == _IN else b""

    def control(self, request: bytes, room: int = 0) -> bytes | None:
        if self.transfer(_SETUP, 0, request) is None:
            return None
        if not room:
            return self.transfer(_IN, 0)
        data = b""
        while len(data) < room:
            part = self.transfer(_IN, 0, room=8)
            if part is None:
                return None
            data += part
            if len(part) < 8:
                break
        self.transfer(_OUT, 0)
        return data

    def configure(self) -> None:
        assert self.control(bytes((0x00, 5, 7, 0, 0, 0, 0, 0))) == b""
        self.address = 7
        assert self.control(bytes((0x00, 9, 1, 0, 0, 0, 0, 0))) == b""

    def scsi(self, cdb: bytes, data: bytes = b"", room: int = 0) -> tuple[int, int, bytes]:
        """One command: its status, the residue, and the data."""
        self.tag += 1
        length = len(data) or room
        wrapper = b"USBC" + self.tag.to_bytes(4, "little") + length.to_bytes(4, "little")
        wrapper += bytes((0x80 if room else 0, 0, len(cdb))) + cdb.ljust(16, b"\0")
        assert self.transfer(_OUT, 2, wrapper) == b""
        for at in range(0, len(data), 64):
            assert self.transfer(_OUT, 2, data[at : at + 64]) == b""
        got = b""
        while len(got) < room:
            part = self.transfer(_IN, 1, room=64)
            assert part is not None
            got += part
            if len(part) < 64:
                break
        status = self.transfer(_IN, 1, room=13)
        assert status is not None and status[:4] == b"USBS" and status[4:8] == wrapper[4:8]
        return status[12], int.from_bytes(status[8:12], "little"), got


@pytest.fixture
def guest(tmp_path: Path) -> Any:
    guest = Guest(tmp_path)
    yield guest
    guest.machine.close()


def test_descriptors(guest: Guest) -> None:
    descriptor = guest.control(bytes((0x80, 6, 0, 1, 0, 0, 18, 0)), 18)
    assert descriptor is not None and descriptor[8:12] == b"\xf4\x46\x01\x00"
    configuration = guest.control(bytes((0x80, 6, 0, 2, 0, 0, 255, 0)), 255)
    assert configuration is not None and len(configuration) == 32 and configuration[14:17] == b"\x08\x06\x50"
    serial = guest.control(bytes((0x80, 6, 3, 3, 9, 4, 255, 0)), 255)
    assert serial is not None and serial[2:].decode("utf-16-le") == "1-0000:00:04.0-1"
    assert guest.control(bytes((0x80, 6, 0, 9, 0, 0, 8, 0)), 8) is None


def test_reading_and_writing(guest: Guest) -> None:
    guest.configure()
    assert guest.scsi(b"\0" * 6)[0] == 0
    assert guest.scsi(b"\x25" + bytes(9), room=8)[2] == (2047).to_bytes(4, "big") + (512).to_bytes(4, "big")
    assert guest.scsi(b"\x28\0\0\0\0\3\0\0\1\0", room=512)[2] == bytes([3]) * 512
    assert guest.scsi(b"\x2a\0\0\0\0\5\0\0\1\0", data=b"u" * 512)[:2] == (0, 0)
    assert guest.image.read_bytes()[5 * 512 : 6 * 512] == b"u" * 512
    # Less than the host expects.
    status, residue, data = guest.scsi(b"\x12\0\0\0\x24\0", room=100)
    assert (status, residue, data[36:]) == (0, 64, bytes(64))
    assert guest.scsi(b"\x28\0\0\0\xff\0\0\0\1\0", room=512)[:2] == (1, 512)
    assert guest.scsi(b"\x03\0\0\0\x12\0", room=18)[2][12] == 0x21


def test_a_broken_command_stalls_until_the_host_recovers(guest: Guest) -> None:
    guest.configure()
    assert guest.transfer(_OUT, 2, b"nonsense") is None
    assert guest.transfer(_OUT, 2, bytes(31)) is None
    guest.control(bytes((0x21, 0xFF, 0, 0, 0, 0, 0, 0)))
    guest.control(bytes((0x02, 1, 0, 0, 2, 0, 0, 0)))
    guest.scsi(b"\0" * 6)
    assert guest.scsi(b"\0" * 6)[0] == 0


def test_ports_hot_plug_and_queries(guest: Guest) -> None:
    assert guest.access.port_in(guest.base + 0x10, 2) & 1
    assert not guest.access.port_in(guest.base + 0x12, 2) & 1
    events: list[Any] = []
    guest.machine.events.subscribe(events.append)
    with guest.machine.control:
        assert query.block_info(guest.machine.block)[0]["qdev"] == "/machine/peripheral/stick/stick.0/legacy[0]"
        guest.machine.block.add_node({"driver": "null-co", "node-name": "n1", "size": 1 << 20})
        with pytest.raises(QobraError, match=r"usb port 1 \(bus uhci.0\) not found \(in use\?\)"):
            add_device(guest.machine, {"driver": "usb-storage", "drive": "n1", "port": "1"}, keyval=True)
        add_device(guest.machine, {"driver": "usb-storage", "drive": "n1", "id": "second", "port": "2"}, keyval=True)
    assert guest.access.port_in(guest.base + 0x12, 2) & 3 == 3
    with guest.machine.control:
        with pytest.raises(QobraError, match="No 'usb-bus' bus found|no free ports"):
            add_device(guest.machine, {"driver": "usb-storage", "drive": "n1"}, keyval=True)
        remove_device(guest.machine, "second")
        guest.machine.block.delete_node("n1")
    assert guest.access.port_in(guest.base + 0x12, 2) & 3 == 2
    assert {"device": "second", "path": "/machine/peripheral/second"} in [e["data"] for e in events if e.get("data")]


def test_a_failed_read_stops_the_machine_and_is_retried(tmp_path: Path) -> None:
    guest = Guest(tmp_path, rerror="stop")
    guest.configure()
    guest.scsi(b"\0" * 6)
    with guest.machine.control:
        guest.machine.run_state.start()
    backend = guest.device.disk.backend
    original, failing = backend.read, True

    def read(offset: int, length: int) -> bytes:
        if failing:
            raise OSError(5, "Input/output error")
        return original(offset, length)  # type: ignore[no-any-return]

    backend.read = read
    wrapper = b"USBC" + bytes(4) + (512).to_bytes(4, "little") + bytes((0x80, 0, 10)) + b"\x28\0\0\0\0\3\0\0\1\0"
    guest.transfer(_OUT, 2, wrapper.ljust(31, b"\0"))
    wait_until(lambda: guest.machine.run_state.state == "io-error")
    failing = False
    with guest.machine.control:
        guest.machine.run_state.cont()
    assert guest.transfer(_IN, 1, room=64) == bytes([3]) * 64
    guest.machine.close()


_WORDS = st.lists(
    st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([1, _QUEUE | 2, _TRANSFER, _TRANSFER | 4, _FRAMES | 2])),
    max_size=24,
)
_PORT = st.tuples(st.sampled_from([0, 2, 4, 6, 8, 10, 12, 16, 18]), st.integers(0, 0xFFFF))


@given(_WORDS, _WORDS, st.lists(_PORT, max_size=8))
def test_hostile_frames(tmp_path_factory: Any, queues: list[int], transfers: list[int], ports: list[Any]) -> None:
    guest = Guest(tmp_path_factory.mktemp("usb"))
    try:
        guest.access.write(_QUEUE, b"".join(word.to_bytes(4, "little") for word in queues))
        guest.access.write(_TRANSFER, b"".join(word.to_bytes(4, "little") for word in transfers))
        for offset, value in ports:
            guest.access.port_out(guest.base + offset, 2, value)
            guest.access.step(2 * _MS)
        guest.access.port_out(guest.base, 2, 2)
        assert guest.access.port_in(guest.base + 0x10, 2) & 1
    finally:
        guest.machine.close()


def test_a_cd_drive_may_be_empty(tmp_path: Path) -> None:
    machine = simple_machine(memory=32 << 20)
    drives = Drives(machine, default_interface="ide")
    with machine.control:
        board: Any = machine.board
        board.drives = [drives.add_text("if=none,id=cd,media=cdrom"), drives.add_text("if=none,id=hd")]
        board.ready = False
        add_device(machine, {"driver": "piix3-usb-uhci", "id": "uhci", "addr": "4"}, keyval=True)
        stick = add_device(machine, {"driver": "usb-storage", "drive": "cd"}, keyval=True)
        assert [device.type_name for device in stick.buses()[0].devices] == ["scsi-cd"]
        with pytest.raises(QobraError, match="Device needs media, but drive is empty"):
            add_device(machine, {"driver": "usb-storage", "drive": "hd"}, keyval=True)
    machine.close()


def test_what_the_command_does_not_move_is_told(guest: Guest) -> None:
    guest.configure()
    assert guest.scsi(b"\0" * 6, data=bytes(64))[:2] == (0, 64)
    assert guest.scsi(b"\x2a\0\0\0\0\5\0\0\1\0", data=b"w" * 1024)[:2] == (0, 512)
    assert guest.image.read_bytes()[5 * 512 : 7 * 512] == b"w" * 512 + bytes([6]) * 512


@pytest.mark.parametrize(("cdb", "to_host"), [(b"\x12\0\0\0\x24\0", False), (b"\x2a\0\0\0\0\5\0\0\1\0", True)])
def test_data_that_go_the_other_way_are_refused(guest: Guest, cdb: bytes, to_host: bool) -> None:
    guest.configure()
    wrapper = b"USBCtag." + (36).to_bytes(4, "little") + bytes((0x80 if to_host else 0, 0, len(cdb)))
    assert guest.transfer(_OUT, 2, wrapper + cdb.ljust(16, b"\0")) == b""
    data = guest.transfer(_IN, 1, room=36) if to_host else guest.transfer(_OUT, 2, bytes(36))
    assert data is None
    guest.control(bytes((0x02, 1, 0, 0, 0x81 if to_host else 2, 0, 0, 0)))
    assert guest.transfer(_IN, 1, room=13) == b"USBStag." + (36).to_bytes(4, "little") + b"\2"
    assert guest.image.read_bytes()[5 * 512 : 6 * 512] == bytes([5]) * 512
    assert guest.scsi(b"\0" * 6)[0] == 0

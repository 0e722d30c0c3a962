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
from qobra.testing.guest import BoardAccess
from qobra.testing.usb import IN, OUT, QUEUE, TABLE, TRANSFER, UhciHost
from qobra.testing.waiting import wait_until

_MS = 10**6


class Guest(UhciHost):
    """A pc with a UHCI controller and a USB disk of 1 MiB at its first port."""

    def __init__(self, directory: Path, **properties: str) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        self.machine = simple_machine(memory=32 << 20)
        board: Any = self.machine.board
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(self.image), "node-name": "disk"})
            board.ready = False
            add_device(self.machine, {"driver": "piix3-usb-uhci", "id": "uhci", "addr": "4"}, keyval=True)
            options = {"driver": "usb-storage", "drive": "disk", "id": "stick", "bus": "uhci.0"} | properties
            self.device: Any = add_device(self.machine, options, keyval=True)
            board.ready = True
        super().__init__(BoardAccess(self.machine), 4 << 3)


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
    assert guest.transfer(OUT, 2, b"nonsense") is None
    assert guest.transfer(OUT, 2, bytes(31)) is None
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
    guest.transfer(OUT, 2, wrapper.ljust(31, b"\0"))
    wait_until(lambda: guest.machine.run_state.state == "io-error")
    failing = False
    with guest.machine.control:
        guest.machine.run_state.cont()
    assert guest.transfer(IN, 1, room=64) == bytes([3]) * 64
    guest.machine.close()


_WORDS = st.lists(
    st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([1, QUEUE | 2, TRANSFER, TRANSFER | 4, TABLE | 2])),
    max_size=24,
)
_PORT = st.tuples(st.sampled_from([0, 2, 4, 6, 8, 10, 12, 16, 18]), st.integers(0, 0xFFFF))


@given(_WORDS, _WORDS, st.lists(_PORT, max_size=8))
def test_hostile_frames(tmp_path_factory: Any, queues: list[int], transfers: list[int], ports: list[Any]) -> None:
    guest = Guest(tmp_path_factory.mktemp("usb"))
    try:
        guest.access.write(QUEUE, b"".join(word.to_bytes(4, "little") for word in queues))
        guest.access.write(TRANSFER, b"".join(word.to_bytes(4, "little") for word in transfers))
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
    assert guest.transfer(OUT, 2, wrapper + cdb.ljust(16, b"\0")) == b""
    data = guest.transfer(IN, 1, room=36) if to_host else guest.transfer(OUT, 2, bytes(36))
    assert data is None
    guest.control(bytes((0x02, 1, 0, 0, 0x81 if to_host else 2, 0, 0, 0)))
    assert guest.transfer(IN, 1, room=13) == b"USBStag." + (36).to_bytes(4, "little") + b"\2"
    assert guest.image.read_bytes()[5 * 512 : 6 * 512] == bytes([5]) * 512
    assert guest.scsi(b"\0" * 6)[0] == 0

"""SCSI devices of the host: commands, data, sense and reservations go there and come back."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.machine.scsi import passthrough
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction
from qobra.testing.guest_drivers import ScsiDriver

_DISK_TYPE = 0


class HostDisk:
    """Stands for the kernel: what it is asked, and what it answers."""

    def __init__(self) -> None:
        self.version = 30536
        self.commands: list[tuple[bytes, bytes]] = []
        self.answers: dict[int, dict[str, Any]] = {}

    def ioctl(self, _fd: int, request: int, argument: Any) -> int:
        if request == 0x2282:
            argument[:4] = self.version.to_bytes(4, "little")
        elif request == 0x2276:
            argument[16:20] = _DISK_TYPE.to_bytes(4, "little")
        elif request == 0x2285:
            self._transfer(argument)
        else:
            raise OSError(errno.ENOTTY, "")
        return 0

    def _transfer(self, header: Any) -> None:
        assert header.interface_id == ord("S") and header.timeout == 30000
        cdb = ctypes.string_at(header.command, header.command_length)
        sent = ctypes.string_at(header.data, header.length) if header.direction == -2 else b""
        self.commands.append((cdb, sent))
        answer = self.answers.get(cdb[0], {})
        data, sense = answer.get("data", b""), answer.get("sense", b"")
        if header.direction == -3:
            ctypes.memmove(header.data, data, min(len(data), header.length))
            header.residual = header.length - min(len(data), header.length)
        ctypes.memmove(header.sense, sense, len(sense))
        header.sense_written = len(sense)
        header.status, header.driver_status = answer.get("status", 0), answer.get("driver", 0)
        header.host_status = answer.get("host", 0)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostDisk:
    found = HostDisk()
    monkeypatch.setattr(passthrough.fcntl, "ioctl", found.ioctl)
    return found


@pytest.fixture(params=["scsi-generic", "scsi-block"])
def start(request: pytest.FixtureRequest) -> Iterator[Callable[[], ScsiDriver]]:
    machine = simple_machine("x86_64", "pc", memory=16 << 20)
    board: Any = machine.board

    def start() -> ScsiDriver:
        with machine.control:
            board.ready = False
            machine.block.add_node({"driver": "host_device", "filename": "/dev/null", "node-name": "sg"})
            machine.block.add_node({"driver": "raw", "file": "sg", "node-name": "n"})
            add_device(machine, {"driver": "virtio-scsi-pci", "addr": "5"}, keyval=True)
            add_device(machine, {"driver": request.param, "drive": "n", "id": "it"}, keyval=True)
            board.ready = True
        function = PciFunction(BoardAccess(machine), 5 << 3)
        function.enable()
        driver = ScsiDriver(ModernPci(function), Memory())
        driver.command(bytes(6))  # the unit attention after the reset
        return driver

    yield start
    machine.close()


def test_commands_are_the_hosts_to_answer(host: HostDisk, start: Callable[[], ScsiDriver]) -> None:
    host.answers = {0x12: {"data": b"inquiry" * 5}, 0xC0: {"data": b"never"}}
    driver = start()
    assert driver.command(bytes((0x12, 0, 0, 0, 96, 0)), read=96) == (0, 0, b"", b"inquiry" * 5)
    assert driver.command(bytes((0x2A, 0, 0, 0, 0, 9, 0, 0, 1, 0)), data=b"x" * 512)[:2] == (0, 0)
    assert host.commands[-2:] == [
        (bytes((0x12, 0, 0, 0, 96, 0)), b""),
        (bytes((0x2A, 0, 0, 0, 0, 9, 0, 0, 1, 0)), b"x" * 512),
    ]
    # Nobody knows how long a command of a vendor's is.
    assert driver.command(bytes((0xC0, 0)), read=8)[1] == 2
    assert host.commands[-1][0][0] == 0x2A


def test_failures_of_the_host_are_the_guests(host: HostDisk, start: Callable[[], ScsiDriver]) -> None:
    sense = bytes((0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0))
    host.answers = {
        0x28: {"status": 2, "driver": 8, "sense": sense},
        0x2A: {"driver": 6},
        0x35: {"host": 1},
        0x00: {"status": 0x18},
    }
    driver = start()
    assert driver.command(bytes((0x28,)) + bytes(9), read=512)[1:3] == (2, sense)
    assert driver.command(bytes((0x2A,)) + bytes(9), data=bytes(512))[1] == 8  # busy: the host took too long
    status, code = driver.command(bytes((0x35,)) + bytes(9))[1:3]
    assert (status, code[2]) == (2, 0xB)
    assert driver.command(bytes(6))[1] == 0x18  # somebody else has reserved it


def test_what_is_no_scsi_device_is_refused(host: HostDisk, start: Callable[[], ScsiDriver]) -> None:
    host.version = 20000
    with pytest.raises(QobraError, match="scsi generic interface too old"):
        start()


def test_files_are_refused(start: Callable[[], ScsiDriver]) -> None:
    with pytest.raises(QobraError, match="cannot get SG_IO version number: Inappropriate ioctl for device"):
        start()


def test_reservations_go_through_their_manager(host: HostDisk, start: Callable[[], ScsiDriver]) -> None:
    class Manager:
        def execute(self, fd: int, cdb: bytes, data: bytes) -> tuple[int, bytes, bytes]:
            return 0, b"", b"keys" if fd >= 0 and cdb[0] == 0x5E else data

    driver = start()
    access: Any = driver.guest
    access.machine.objects.resolve("it")._unit.reservations = Manager()
    cdb = bytes((0x5E, 0, 0, 0, 0, 0, 0, 0, 16, 0))
    assert driver.command(cdb, read=16) == (0, 0, b"", b"keys")
    assert all(each[0] != 0x5E for each, _ in host.commands)

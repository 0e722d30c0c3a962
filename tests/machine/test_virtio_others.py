"""virtio-scsi, -serial, -rng and -balloon from the guest's side."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver
from qobra.testing.guest_drivers import ScsiDriver
from qobra.testing.waiting import wait_until

_TEST_UNIT_READY, _START_STOP, _PREVENT, _READ_CAPACITY = 0x00, 0x1B, 0x1E, 0x25


class Guest:
    """A PC with the device under test in slot 5."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.events: list[dict[str, Any]] = []
        machine.events.subscribe(self.events.append)
        self.access = BoardAccess(machine)
        self.memory = Memory()

    def plug(self, driver: str, **options: Any) -> Any:
        with self.machine.control:
            named = {key.replace("_", "-"): value for key, value in options.items()}
            return add_device(self.machine, {"driver": driver} | named, keyval=True)

    def call(self, command: str, **arguments: Any) -> Any:
        with self.machine.control:
            return dispatch.call(self.machine, command, arguments)

    def transport(self) -> ModernPci:
        function = PciFunction(self.access, 5 << 3)
        function.enable()
        return ModernPci(function)

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]


@pytest.fixture
def guest() -> Any:
    machine = simple_machine("x86_64", "pc", memory=32 << 20, running=True)
    yield Guest(machine)
    machine.close()


def _scsi(guest: Guest) -> ScsiDriver:
    guest.plug("virtio-scsi-pci", id="s", addr="5")
    return ScsiDriver(guest.transport(), guest.memory)


def test_units_come_and_go(guest: Guest) -> None:
    driver = _scsi(guest)
    driver.await_event()
    with guest.machine.control:
        guest.machine.block.add_node({"driver": "null-co", "node-name": "n0", "size": 1 << 20})
    guest.plug("scsi-hd", drive="n0", id="hd", scsi_id="3", lun="260")
    driver.events.wait_used()
    kind, lun, reason = (guest.access.read(driver.event_buffer + at, n) for at, n in ((0, 4), (4, 8), (12, 4)))
    assert (kind[0], lun, reason[0]) == (1, b"\x01\x03\x41\x04\0\0\0\0", 1)
    driver.command(bytes(6), target=3, lun=260)
    assert driver.command(bytes((_READ_CAPACITY,)) + bytes(9), target=3, lun=260, read=8)[3].hex() == "000007ff00000200"
    driver.await_event()
    guest.call("device_del", id="hd")
    driver.events.wait_used()
    assert guest.access.load(driver.event_buffer + 12, 4) == 2
    assert guest.events[-1]["data"] == {"device": "hd", "path": "/machine/peripheral/hd"}
    assert driver.command(bytes(6), target=3, lun=260)[0] == 3


def test_a_target_answers_for_units_that_it_has_not(guest: Guest) -> None:
    driver = _scsi(guest)
    with guest.machine.control:
        guest.machine.block.add_node({"driver": "null-co", "node-name": "n0", "size": 1 << 20})
    guest.plug("scsi-hd", drive="n0", id="hd", scsi_id="3", lun="260")

    def told(lun: int, *cdb: int) -> bytes:
        response, status, _sense, data = driver.command(bytes(cdb), target=3, lun=lun, read=4096)
        assert (response, status) == (0, 0)
        return data

    def refused(lun: int, *cdb: int) -> tuple[int, ...]:
        response, status, sense, _data = driver.command(bytes(cdb), target=3, lun=lun, read=4096)
        assert (response, status) == (0, 2)
        return sense[2], sense[12], sense[13]

    invalid_field, no_unit, no_command = (5, 0x24, 0), (5, 0x25, 0), (5, 0x20, 0)
    assert refused(0, *bytes(6)) == (6, 0x29, 0)  # the target's unit has something to tell first
    assert driver.command(bytes(6), target=3)[:2] == (0, 0)
    inquiry = told(0, 0x12, 0, 0, 1, 0, 0)
    assert inquiry == bytes((0x3F, 0, 5, 0x12, 31, 0, 0, 0x12)) + b"QEMU    QEMU TARGET     2.5\0"
    assert told(0, 0x12, 0, 0, 0, 5, 0) == bytes((0x3F, 0, 5, 0x12, 0))
    assert told(0, 0x12, 1, 0, 0, 36, 0) == bytes((0x3F, 0, 0, 1, 0))
    assert refused(0, 0x12, 1, 5, 1, 0, 0) == refused(0, 0x12, 0, 5, 1, 0, 0) == invalid_field
    assert refused(0, 0x12, 2, 0, 1, 0, 0) == invalid_field
    assert told(0, 0xA0, *bytes(5), 0, 0, 1, 0, 0, 0) == bytes((0, 0, 0, 16, *bytes(12), 0x41, 4, *bytes(6)))
    assert refused(0, 0x28, *bytes(9)) == no_command
    assert [told(0, 0x03, 0, 0, 0, 18, 0)[2:14:10] for _ in range(2)] == [bytes((5, 0x20)), bytes(2)]

    assert told(5, 0x12, 0, 0, 1, 0, 0) == bytes((0x7F, *bytes(35)))
    assert told(5, 0x12, 0, 0, 0, 5, 0) == bytes((0x7F, 0, 0, 0, 0))
    assert told(5, 0x03, 0, 0, 0, 18, 0)[2:14:10] == bytes((5, 0x25))
    assert refused(5, *bytes(6)) == refused(5, 0x28, *bytes(9)) == no_unit
    assert refused(5, 0xA0, *bytes(5), 0, 0, 1, 0, 0, 0) == no_unit
    assert driver.command(bytes(6), target=4)[0] == 3


def test_a_disk_counts_what_it_is_asked_for(guest: Guest) -> None:
    driver = _scsi(guest)
    with guest.machine.control:
        node = guest.machine.block.add_node({"driver": "null-co", "node-name": "n0", "size": 1 << 20})
    guest.plug("scsi-hd", drive="n0", id="hd", rerror="ignore", werror="report")

    def failing() -> None:
        raise OSError(5, "Input/output error")

    node.flush = failing  # type: ignore[method-assign]
    driver.command(bytes(6))  # takes the unit attention
    driver.command(bytes((0x28, 0, 0, 0, 7, 0xFF, 0, 0, 2, 0)), read=1024)  # over the end
    driver.command(bytes((0x2A, 0, 0, 0, 8, 0, 0, 0, 1, 0)), data=bytes(512))  # behind it
    driver.command(bytes((0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0)), data=bytes(512))
    unmap = bytes((0, 22, 0, 16)) + bytes(4) + (2048).to_bytes(8, "big") + (1).to_bytes(4, "big") + bytes(4)
    driver.command(bytes((0x42,)) + bytes(7) + bytes((24, 0)), data=unmap)
    assert driver.command(bytes((0x35,)) + bytes(9))[1] == 2  # a failed flush is no read, so the guest is told
    [device] = guest.call("query-blockstats")
    counted = {name: device["stats"][f"{name}_operations"] for name in ("invalid_rd", "invalid_wr", "invalid_unmap")}
    assert counted == {"invalid_rd": 1, "invalid_wr": 1, "invalid_unmap": 1}
    assert (device["stats"]["wr_operations"], device["stats"]["failed_flush_operations"]) == (1, 1)
    error = next(event["data"] for event in guest.events if event["event"] == "BLOCK_IO_ERROR")
    assert (error["operation"], error["action"]) == ("write", "report")


def test_a_removable_disk_has_a_tray(guest: Guest) -> None:
    driver = _scsi(guest)
    with guest.machine.control:
        for name in ("one", "two"):
            guest.machine.block.add_node({"driver": "null-co", "node-name": name, "size": 1 << 20})
    guest.plug("scsi-hd", drive="one", id="hd", removable="on")
    driver.command(bytes(6))
    [told] = guest.call("query-block")
    assert (told["removable"], told["tray_open"], told["locked"]) == (True, False, False)
    driver.command(bytes((_PREVENT, 0, 0, 0, 1, 0)))
    with pytest.raises(QobraError, match="is locked and force was not specified"):
        guest.call("eject", id="hd")
    driver.command(bytes((_PREVENT, 0, 0, 0, 0, 0)))
    guest.call("eject", id="hd")
    assert guest.events[-1]["data"] == {"device": "", "id": "hd", "tray-open": True}
    assert [driver.command(bytes(6))[2][2] for _ in range(2)] == [6, 2]  # the medium may have changed; there is none
    guest.call("blockdev-insert-medium", id="hd", **{"node-name": "two"})
    guest.call("blockdev-close-tray", id="hd")
    assert [driver.command(bytes(6))[1] for _ in range(3)] == [2, 2, 0]
    assert driver.command(bytes((0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0)), data=bytes(512))[1] == 0
    driver.command(bytes((_START_STOP, 0, 0, 0, 2, 0)))  # the guest ejects
    wait_until(lambda: guest.events[-1].get("data") == {"device": "", "id": "hd", "tray-open": True})


def test_a_cd_drive_with_its_tray(guest: Guest, tmp_path: Path) -> None:
    image = tmp_path / "cd.iso"
    image.write_bytes(b"CD" * 4096)
    driver = _scsi(guest)
    guest.plug("scsi-cd", id="cd")

    def ready() -> tuple[int, bytes]:
        _response, status, sense, _data = driver.command(bytes(6))
        return status, sense[12:14]

    ready()
    assert ready() == (2, b"\x3a\0")
    guest.call("blockdev-change-medium", id="cd", filename=str(image), format="raw")
    told = [ready() for _ in range(3)]
    assert (2, b"\x28\0") in told  # the medium changed
    assert told[-1] == (0, b"")
    assert driver.command(bytes((0x28,)) + bytes(7) + b"\1\0", read=2048)[3][:4] == b"CDCD"
    driver.command(bytes((_PREVENT, 0, 0, 0, 1, 0)))
    assert driver.command(bytes((_START_STOP, 0, 0, 0, 2, 0)))[1] == 2  # locked
    driver.command(bytes((_PREVENT, 0, 0, 0, 0, 0)))
    assert driver.command(bytes((_START_STOP, 0, 0, 0, 2, 0)))[1] == 0
    moved = [event["data"]["tray-open"] for event in guest.events if event["event"] == "DEVICE_TRAY_MOVED"]
    assert moved[-1] is True
    assert ready() == (2, b"\x3a\0")


class Ports:
    """A driver of virtio-serial with port 1."""

    def __init__(self, guest: Guest) -> None:
        self.guest, self.access = guest, guest.access
        transport = guest.transport()
        start_driver(transport, 1 << 32 | 1 << 1)
        self.queues = [Queue(transport, guest.memory, n) for n in range(6)]
        self.buffers = [guest.memory.take(1024) for _ in range(6)]
        driver_ok(transport)
        for number in (2, 4):
            self.queues[number].send([(self.buffers[number], 1024, True)])

    def control(self, port: int, event: int, value: int) -> None:
        message = port.to_bytes(4, "little") + event.to_bytes(2, "little") + value.to_bytes(2, "little")
        self.access.write(self.buffers[3], message)
        self.queues[3].send([(self.buffers[3], 8, False)])
        self.queues[3].wait_used()

    def messages(self, count: int) -> list[tuple[int, int, int, bytes]]:
        found = []
        for _ in range(count):
            _head, length = self.queues[2].wait_used()
            data = self.access.read(self.buffers[2], length)
            found.append(
                (*(int.from_bytes(data[a:b], "little") for a, b in ((0, 4), (4, 6), (6, 8))), data[8:])  # type: ignore[arg-type]
            )
            self.queues[2].send([(self.buffers[2], 1024, True)])
        return found

    def send(self, data: bytes) -> None:
        self.access.write(self.buffers[5], data)
        self.queues[5].send([(self.buffers[5], len(data), False)])
        self.queues[5].wait_used()

    def receive(self) -> bytes:
        _head, length = self.queues[4].wait_used()
        data = self.access.read(self.buffers[4], length)
        self.queues[4].send([(self.buffers[4], 1024, True)])
        return data


def test_a_port_without_a_backend(guest: Guest) -> None:
    guest.plug("virtio-serial-pci", id="ser", addr="5")
    assert guest.plug("virtserialport", id="port", chardev="").get("chardev") == ""


def test_a_serial_port(guest: Guest, tmp_path: Path) -> None:
    address = {"type": "unix", "data": {"path": str(tmp_path / "port")}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    guest.call("chardev-add", id="c", backend=backend)
    guest.plug("virtio-serial-pci", id="ser", addr="5")
    guest.plug("virtserialport", id="port", chardev="c", name="org.test")
    ports = Ports(guest)
    ports.control(0xFFFFFFFF, 0, 1)
    assert ports.messages(1) == [(1, 1, 1, b"")]
    ports.control(1, 3, 1)
    assert ports.messages(1) == [(1, 7, 1, b"org.test\0")]
    ports.control(1, 6, 1)
    assert guest.events[-1]["event"] == "VSERPORT_CHANGE" and guest.events[-1]["data"] == {"id": "port", "open": True}
    with socket.socket(socket.AF_UNIX) as outside:
        outside.connect(str(tmp_path / "port"))
        outside.settimeout(20)
        assert ports.messages(1) == [(1, 6, 1, b"")]
        ports.send(b"to the host")
        assert outside.recv(100) == b"to the host"
        outside.sendall(b"to the guest")
        assert ports.receive() == b"to the guest"
    assert ports.messages(1) == [(1, 6, 0, b"")]
    ports.control(1, 6, 0)
    assert guest.events[-1]["data"] == {"id": "port", "open": False}
    guest.call("device_del", id="port")
    assert ports.messages(1) == [(1, 2, 1, b"")]


def test_a_port_of_a_guest_that_stands_still(guest: Guest, tmp_path: Path) -> None:
    """What comes from outside waits, as its memory may be on the move; what is told is how things are when it runs."""
    address = {"type": "unix", "data": {"path": str(tmp_path / "port")}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    guest.call("chardev-add", id="c", backend=backend)
    guest.plug("virtio-serial-pci", id="ser", addr="5")
    guest.plug("virtserialport", id="port", chardev="c")
    ports = Ports(guest)
    ports.control(0xFFFFFFFF, 0, 1)
    ports.messages(1)
    ports.control(1, 3, 1)
    ports.control(1, 6, 1)
    chardev: Any = guest.machine.chardevs.find("c")
    guest.call("stop")
    with socket.socket(socket.AF_UNIX) as outside:
        outside.connect(str(tmp_path / "port"))
        outside.sendall(b"hello")
        wait_until(lambda: chardev.is_open)
        time.sleep(0.05)
        for queue in (ports.queues[2], ports.queues[4]):
            with pytest.raises(AssertionError):
                queue.wait_used(0.01)
        guest.call("cont")
        assert ports.messages(1) == [(1, 6, 1, b"")]
        assert ports.receive() == b"hello"


def test_random_bytes(guest: Guest) -> None:
    guest.call("object-add", **{"qom-type": "rng-random", "id": "r", "filename": "/dev/urandom"})
    guest.plug("virtio-rng-pci", rng="r", addr="5", id="rng")
    transport = guest.transport()
    start_driver(transport, 1 << 32)
    queue = Queue(transport, guest.memory, 0)
    buffer = guest.memory.take(256)
    driver_ok(transport)
    queue.send([(buffer, 256, True)])
    assert queue.wait_used() == (0, 256)
    assert len(set(guest.access.read(buffer, 256))) > 64
    with pytest.raises(Exception, match="object 'r' is in use"):
        guest.call("object-del", id="r")


def test_random_bytes_within_a_quota(guest: Guest) -> None:
    guest.plug("virtio-rng-pci", max_bytes="100", period="1000", addr="5")
    transport = guest.transport()
    start_driver(transport, 1 << 32)
    queue = Queue(transport, guest.memory, 0)
    buffer = guest.memory.take(256)
    driver_ok(transport)
    queue.send([(buffer, 80, True)])
    assert queue.wait_used() == (0, 80)
    queue.send([(buffer, 80, True)])
    assert queue.wait_used() == (0, 20)
    queue.send([(buffer, 80, True)])
    board: Any = guest.machine.board
    wait_until(lambda: board.clock.next_deadline_ns() is not None)
    guest.access.step(1_000_000_000)
    assert queue.wait_used() == (0, 80)


def test_the_balloon(guest: Guest) -> None:
    guest.plug("virtio-balloon-pci", id="b", addr="5")
    transport = guest.transport()
    start_driver(transport, 1 << 32 | 1 << 1)
    inflate, _deflate, stats = (Queue(transport, guest.memory, n) for n in range(3))
    driver_ok(transport)
    guest.call("balloon", value=16 << 20)
    assert transport.config(0, 4) == 4096 and transport.isr() & 2
    guest.access.write(8 << 20, b"to be taken" * 100)
    pages = guest.memory.take(16)
    guest.access.write(pages, ((8 << 20) // 4096).to_bytes(4, "little"))
    inflate.send([(pages, 4, False)])
    inflate.wait_used()
    assert guest.access.read(8 << 20, 1100) == bytes(1100)
    areas: Any = transport
    guest.access.store(areas._areas[4] + 4, 4, 4096)
    assert guest.events[-1]["event"] == "BALLOON_CHANGE" and guest.events[-1]["data"] == {"actual": 16 << 20}
    assert guest.call("query-balloon") == {"actual": 16 << 20}
    entry = guest.memory.take(16)
    guest.access.write(entry, (4).to_bytes(2, "little") + (12345).to_bytes(8, "little"))
    stats.send([(entry, 10, False)])
    found = guest.call("qom-get", path="b", property="guest-stats")
    assert found["stats"]["stat-free-memory"] == 12345
    guest.call("qom-set", path="b", property="guest-stats-polling-interval", value=2)
    guest.access.step(0)
    stats.wait_used()


@pytest.mark.parametrize("share", ["on", "off"])
def test_reported_pages_go_back_to_the_host(share: str) -> None:
    machine = simple_machine("x86_64", "pc", memory=32 << 20, max_memory=256 << 20, slots=1)
    try:
        guest = Guest(machine)
        backend = {"qom-type": "memory-backend-memfd", "id": "m", "size": 128 << 20, "share": share == "on"}
        guest.call("object-add", **backend)
        guest.plug("pc-dimm", id="d", memdev="m")
        _report_pages(guest, 4 << 30)
    finally:
        machine.close()


def test_reported_pages_of_plain_memory_go_back_to_the_host(guest: Guest) -> None:
    _report_pages(guest, 8 << 20)


def _report_pages(guest: Guest, start: int) -> None:
    guest.plug("virtio-balloon-pci", id="b", addr="5", free_page_reporting="on")
    transport = guest.transport()
    assert transport.features() >> 5 & 1
    start_driver(transport, 1 << 32 | 1 << 5 | 1 << 4)
    reports = Queue(transport, guest.memory, 3)
    driver_ok(transport)
    guest.access.write(start, b"page" * (32 << 10 >> 2))

    def kept() -> str:
        return "".join("0" if guest.access.read(start + at, 4) == bytes(4) else "1" for at in range(0, 32 << 10, 4096))

    # What is no whole page, or only shown to the device, stays.
    for part in ((start + 4, 4096, True), (start, 5000, True), (start, 4096, False)):
        reports.send([part])
        assert reports.wait_used()[1] == 0
    assert kept() == "11111111"
    reports.send([(start, 8192, True), (start + 16384, 4096, True)])
    reports.wait_used()
    assert kept() == "00110111"
    # The driver fills free pages with something that would be gone.
    poison: Any = transport
    guest.access.store(poison._areas[4] + 12, 4, 0xAA)
    reports.send([(start + 8192, 4096, True)])
    reports.wait_used()
    assert kept() == "00110111"


@pytest.mark.parametrize(
    ("board", "options", "poison", "size"),
    [
        ("pc", {}, True, 16),
        ("pc", {"page-poison": "off"}, False, 8),
        ("pc", {"page-poison": "off", "qemu-4-0-config-size": "on"}, False, 16),
        ("pc-i440fx-5.1", {}, True, 16),
        ("pc-i440fx-5.0", {}, False, 8),
        ("pc-i440fx-4.0", {}, False, 16),
    ],
)
def test_the_balloon_of_a_version(board: str, options: dict[str, str], poison: bool, size: int) -> None:
    machine = simple_machine("x86_64", board, memory=32 << 20)
    guest = Guest(machine)
    guest.plug("virtio-balloon-pci", id="b", addr="5", **options)
    transport = guest.transport()
    assert bool(transport.features() >> 4 & 1) == poison
    words = [transport.config(at, 4) for at in (0, 4, 8, 12, 16)]
    assert words == [0] * (size // 4) + [0xFFFFFFFF] * (5 - size // 4)
    machine.close()


def test_a_cd_has_blocks_of_2048_bytes(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "cd.iso").write_bytes(b"CD" * 4096)
    driver = _scsi(guest)
    guest.plug("scsi-cd", id="cd")
    guest.call("blockdev-change-medium", id="cd", filename=str(tmp_path / "cd.iso"), format="raw")
    for _ in range(4):  # what happened to the drive until now
        driver.command(bytes(6))
    capacity = driver.command(bytes((_READ_CAPACITY,)) + bytes(9), read=8)[3]
    assert capacity == (3).to_bytes(4, "big") + (2048).to_bytes(4, "big")

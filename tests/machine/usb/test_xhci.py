"""xHCI controllers from the guest's side: rings, slots, transfers of every kind, ports, interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, remove_device
from qobra.machine.usb.xhci import ring
from qobra.migration import machine_state
from qobra.migration.ram import ram_blocks
from qobra.testing import xhci
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.xhci import XhciDriver

_MS = 10**6
_BULK_OUT, _CONTROL, _BULK_IN, _INTERRUPT_IN = 2, 4, 6, 7
_SET_CONFIGURATION = bytes((0x00, 9, 1, 0, 0, 0, 0, 0))
_IN, _OUT = 3, 4
"""The disk's endpoints, by their place in the context."""
_SUPER_PORT, _HIGH_PORT = 1, 5
"""Where the guest finds what is at the first port of the bus."""


class Guest:
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
        if endpoints is _DISK:
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
        assert self.driver.send(slot, _OUT, block).code == ring.SUCCESS
        got = b""
        if data:
            assert self.driver.send(slot, _OUT, data).code == ring.SUCCESS
        elif room:
            got = self.driver.receive(slot, _IN, room)[1]
        event, status = self.driver.receive(slot, _IN, 13)
        assert event.code == ring.SUCCESS and status[:8] == b"USBS" + block[4:8]
        return status[12], int.from_bytes(status[8:12], "little"), got


_DISK = {_IN: (_BULK_IN, 1024), _OUT: (_BULK_OUT, 1024)}
_HID = {_IN: (_INTERRUPT_IN, 8)}


def _key(name: str, down: bool) -> dict[str, Any]:
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}}


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    guest.driver.start()
    yield guest
    guest.machine.close()


# -- devices at their speeds


def test_speeds_and_descriptors(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    guest.plug("usb-tablet", port="2")
    guest.plug("usb-kbd", port="3", usb_version="1")
    slots = {port: guest.begin(port) for port in (1, 6, 7)}
    assert [driver.port(port) >> 10 & 0xF for port in slots] == [4, 3, 1]
    devices = {port: driver.descriptor(slot, 1) or b"" for port, slot in slots.items()}
    assert [device[3] for device in devices.values()] == [3, 2, 2]
    assert [device[7] for device in devices.values()] == [9, 64, 8]
    disk = driver.descriptor(slots[1], 2) or b""
    assert len(disk) == disk[2] == 44 and disk.count(bytes((6, 0x30, 15))) == 2
    assert driver.descriptor(slots[1], 6) is None  # what is fast needs no qualifier
    tablet = driver.descriptor(slots[6], 2) or b""
    assert driver.descriptor(slots[6], 6) == bytes((10, 6, 0, 2, 0, 0, 0, 8, 1, 0))
    assert driver.descriptor(slots[6], 7) == tablet[:1] + b"\x07" + tablet[2:-1] + b"\x0a"
    assert driver.descriptor(slots[7], 6) is None and driver.descriptor(slots[7], 15) is None
    assert (driver.descriptor(slots[6], 15) or b"").hex() == "050f0c000107100202000000"
    assert (driver.descriptor(slots[1], 15) or b"").hex() == "050f160002071002020000000a1003000e00010a2000"
    # Microsoft's: a string that leads to a property.
    assert (driver.descriptor(slots[6], 3, 0xEE) or b"")[2:].decode("utf-16-le") == "MSFT100Q"
    code, properties = driver.control(slots[6], bytes((0xC0, 0x51, 0, 0, 5, 0, 0, 1)))
    assert code == ring.SUCCESS and len(properties) == int.from_bytes(properties[:4], "little") == 82
    assert "SelectiveSuspendEnabled" in properties.decode("utf-16-le", "replace")


def test_a_disk(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(_SUPER_PORT, _DISK)
    assert guest.scsi(slot, bytes(6))[0] == 0
    assert guest.scsi(slot, b"\x28\0\0\0\0\3\0\0\2\0", room=1024) == (0, 0, bytes([3]) * 512 + bytes([4]) * 512)
    assert guest.scsi(slot, b"\x2a\0\0\0\0\5\0\0\1\0", data=b"u" * 512)[:2] == (0, 0)
    assert guest.image.read_bytes()[5 * 512 : 6 * 512] == b"u" * 512
    status, residue, data = guest.scsi(slot, b"\x12\0\0\0\x24\0", room=100)
    assert (status, residue, data[36:]) == (0, 64, bytes(64))
    # Data in pieces, and events with data of their own.
    driver.send(slot, _OUT, guest.command_block(b"\x28\0\0\0\0\7\0\0\4\0", 2048, to_host=True))
    transfers, buffer = driver.rings[slot, _IN], driver.memory.take(4096, 4096)
    for at, length in ((0, 100), (100, 900), (1000, 1048)):
        transfers.put(buffer + at, length, ring.NORMAL << 10 | ring.CHAIN)
    transfers.put(0x1122334455667788, 0, ring.EVENT_DATA << 10 | ring.ON_COMPLETION)
    driver.ring(slot, _IN)
    event = driver.wait(ring.TRANSFER_EVENT)
    assert event.has_data and event.pointer == 0x1122334455667788 and event.length == 2048
    assert guest.access.read(buffer, 2048) == b"".join(bytes([n]) * 512 for n in range(7, 11))


def test_less_than_there_is_room_for(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(_SUPER_PORT, _DISK)
    driver.send(slot, _OUT, guest.command_block(b"\x12\0\0\0\x24\0", 36, to_host=True))
    transfers, buffer = driver.rings[slot, _IN], driver.memory.take(4096)
    first = transfers.put(buffer, 20, ring.NORMAL << 10 | ring.CHAIN | ring.SHORT_EVENT)
    second = transfers.put(buffer + 20, 40, ring.NORMAL << 10 | ring.CHAIN | ring.SHORT_EVENT)
    last = transfers.put(buffer + 60, 40, ring.NORMAL << 10 | ring.ON_COMPLETION | ring.SHORT_EVENT)
    driver.ring(slot, _IN)
    events = [driver.wait(ring.TRANSFER_EVENT) for _ in range(2)]
    assert [(e.pointer, e.code, e.length) for e in events] == [
        (second, ring.SHORT_PACKET, 24),
        (last, ring.SHORT_PACKET, 40),
    ]
    assert first != second and driver.receive(slot, _IN, 13)[1][12] == 0


def test_a_refusal_halts_the_endpoint(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(_SUPER_PORT, _DISK)
    event = driver.send(slot, _OUT, b"nonsense")
    assert event.code == ring.STALL_ERROR and event.length == 8
    assert driver.endpoint_context(slot, _OUT)[0] & 7 == 2
    assert driver.endpoint_context(slot, _OUT)[2] == event.pointer | 1
    driver.ring(slot, _OUT)
    assert driver.event() is None
    assert driver.endpoint_command(xhci.STOP_ENDPOINT, slot, _OUT).code == ring.CONTEXT_STATE_ERROR
    driver.recover(slot, _OUT)
    assert driver.endpoint_context(slot, _OUT)[0] & 7 == 3
    driver.control(slot, bytes((0x21, 0xFF, 0, 0, 0, 0, 0, 0)))
    driver.control(slot, bytes((0x02, 1, 0, 0, 2, 0, 0, 0)))
    assert guest.scsi(slot, bytes(6))[0] == 0
    assert driver.endpoint_context(slot, _OUT)[0] & 7 == 1
    # On the control pipe the next request is a new beginning.
    assert driver.descriptor(slot, 2, 7) is None
    assert driver.descriptor(slot, 1) is not None


def test_events_of_a_keyboard_end_the_wait(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-kbd", port="1", id="keys")
    slot = guest.begin(_HIGH_PORT, _HID)
    buffer = driver.memory.take(64)
    places = [driver.rings[slot, _IN].put(buffer + 8 * n, 8, ring.NORMAL << 10 | ring.ON_COMPLETION) for n in range(3)]
    driver.ring(slot, _IN)
    assert driver.event() is None
    guest.send(_key("a", True))
    guest.send(_key("a", False))
    events = driver.all_events()
    assert [e.pointer for e in events] == places[:2] and {e.code for e in events} == {ring.SUCCESS}
    assert guest.access.read(buffer, 16).hex() == "00000400000000000000000000000000"
    # An idle rate has the keyboard say again and again how things stand.
    assert driver.control(slot, bytes((0x21, 0x0A, 0, 1, 0, 0, 0, 0)))[0] == ring.SUCCESS
    driver.ring(slot, _IN)
    guest.access.step(5 * _MS)
    assert [e.pointer for e in driver.all_events()] == places[2:]
    # What waits is given back when the endpoint is stopped, and begun again when it goes on.
    driver.control(slot, bytes((0x21, 0x0A, 0, 0, 0, 0, 0, 0)))
    place = driver.rings[slot, _IN].put(buffer, 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
    driver.ring(slot, _IN)
    assert driver.endpoint_command(xhci.STOP_ENDPOINT, slot, _IN).code == ring.SUCCESS
    (stopped,) = driver.others
    assert (stopped.code, stopped.pointer, stopped.length) == (ring.STOPPED, place, 8)
    guest.send(_key("b", True))
    assert driver.event() is None
    driver.ring(slot, _IN)
    assert [e.pointer for e in driver.all_events()] == [place]


# -- ports


def test_devices_that_come_and_go(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-kbd", port="2", id="keys")
    assert [(e.kind, e.pointer >> 24) for e in driver.all_events()] == [(ring.PORT_STATUS_CHANGE, 6)]
    assert driver.port(6) & 0x20FFF == 0x20EE1 and driver.operational(4) & 0x10
    slot = guest.begin(6, _HID)
    assert driver.port(6) & 0x3FF == 0x203
    driver.rings[slot, _IN].put(driver.memory.take(8), 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
    driver.ring(slot, _IN)
    guest.unplug("keys")
    events = driver.all_events()
    assert [(e.kind, e.code) for e in events] == [
        (ring.PORT_STATUS_CHANGE, ring.SUCCESS),
        (ring.TRANSFER_EVENT, ring.TRANSACTION_ERROR),
    ]
    assert driver.port(6) & 0x20FFF == 0x202A0
    # Another device there is not this slot's.
    guest.plug("usb-tablet", port="2")
    driver.reset_port(6)
    driver.recover(slot, _IN)
    assert driver.send(slot, 1, b"").code == ring.TRB_ERROR
    driver.rings[slot, _IN].put(driver.memory.take(8), 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
    driver.ring(slot, _IN)
    assert driver.wait(ring.TRANSFER_EVENT).code == ring.TRANSACTION_ERROR
    assert driver.command(xhci.DISABLE_SLOT, control=slot << 24).code == ring.SUCCESS
    again = driver.enable_slot()
    assert again == slot and driver.address(again, 6).code == ring.SUCCESS


def test_a_port_sleeps_and_is_woken(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-kbd", port="1")
    slot = guest.begin(_HIGH_PORT, _HID)
    buffer = driver.memory.take(8)
    assert driver.control(slot, bytes((0x00, 3, 1, 0, 0, 0, 0, 0)))[0] == ring.SUCCESS  # it may wake
    driver.rings[slot, _IN].put(buffer, 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
    driver.ring(slot, _IN)
    assert driver.port(_HIGH_PORT, 0x10200 | 3 << 5) >> 5 & 0xF == 3
    guest.send(_key("c", True))
    assert [(e.kind, e.pointer >> 24) for e in driver.all_events()] == [(ring.PORT_STATUS_CHANGE, _HIGH_PORT)]
    assert driver.port(_HIGH_PORT) & 0x4001E0 == 0x4001E0
    driver.port(_HIGH_PORT, 0x400200)
    assert driver.port(_HIGH_PORT, 0x10200) & 0x4001E0 == 0x400000
    events = driver.all_events()
    assert [e.kind for e in events] == [ring.PORT_STATUS_CHANGE, ring.TRANSFER_EVENT]
    assert guest.access.read(buffer, 3) == b"\0\0\x06"


def test_a_port_that_is_switched_off(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(_SUPER_PORT, _DISK)
    driver.port(_SUPER_PORT, 0x202)
    assert driver.port(_SUPER_PORT) & 0x1FF == 0x81
    assert driver.send(slot, _OUT, bytes(31)).code == ring.TRANSACTION_ERROR
    driver.port(_SUPER_PORT, 0x10200 | 5 << 5)
    assert driver.port(_SUPER_PORT) & 0x1FF == 0x03
    driver.port(_SUPER_PORT, 0x80000200)
    assert driver.port(_SUPER_PORT) & 0x280000 == 0x280000


# -- slots and commands


def test_slots(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-kbd", port="1")
    driver.reset_port(_HIGH_PORT)
    slots = [driver.enable_slot() for _ in range(64)]
    assert slots == list(range(1, 65)) and driver.command(xhci.ENABLE_SLOT).code == ring.NO_SLOTS
    assert driver.command(xhci.DISABLE_SLOT, control=7 << 24).code == ring.SUCCESS
    assert driver.command(xhci.DISABLE_SLOT, control=7 << 24).code == ring.SLOT_NOT_ENABLED
    assert driver.address(1, 8, speed=3).code == ring.TRANSACTION_ERROR  # nothing is there
    assert driver.address(1, 9, speed=3).code == ring.PARAMETER_ERROR
    assert driver.address(1, _HIGH_PORT, blocked=True).code == ring.SUCCESS
    assert driver.endpoint_context(1, 0)[3] == 1 << 27
    assert driver.address(2, _HIGH_PORT).code == ring.TRB_ERROR  # it is the other's
    assert driver.address(1, _HIGH_PORT).code == ring.SUCCESS
    assert driver.endpoint_context(1, 0)[3] == 2 << 27 | 1
    assert driver.address(1, _HIGH_PORT).code == ring.CONTEXT_STATE_ERROR
    assert driver.command(xhci.RESET_DEVICE, control=3 << 24).code == ring.CONTEXT_STATE_ERROR
    assert driver.command(99 & 0x3F).code == ring.TRB_ERROR
    assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS


def test_configurations(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(_SUPER_PORT, _DISK)
    assert driver.endpoint_context(slot, 0)[3] >> 27 == 3 and driver.endpoint_context(slot, 0)[0] >> 27 == 4
    assert driver.configure(slot, {5: (_BULK_OUT, 64)}).code == ring.PARAMETER_ERROR  # an IN endpoint
    assert driver.configure(slot, {}, drop=1 << _OUT).code == ring.SUCCESS
    assert driver.endpoint_context(slot, _OUT)[0] & 7 == 0
    driver.ring(slot, _OUT)
    assert driver.endpoint_command(xhci.STOP_ENDPOINT, slot, _OUT).code == ring.ENDPOINT_NOT_ENABLED
    assert driver.command(xhci.CONFIGURE, control=slot << 24 | 0x200).code == ring.SUCCESS
    assert driver.endpoint_context(slot, 0)[3] >> 27 == 2 and driver.endpoint_context(slot, _IN)[0] & 7 == 0
    assert driver.configure(slot, _DISK).code == ring.SUCCESS
    assert driver.command(xhci.RESET_DEVICE, control=slot << 24).code == ring.SUCCESS
    assert driver.endpoint_context(slot, 0)[3] == 1 << 27 and driver.endpoint_context(slot, _IN)[0] & 7 == 0
    at = driver.memory.take(16)
    assert driver.command(xhci.PORT_BANDWIDTH, parameter=at).code == ring.SUCCESS
    assert guest.access.read(at, 9) == bytes((0, *(80,) * 8))


def test_the_command_ring_stops(guest: Guest) -> None:
    driver = guest.driver
    assert not driver.operational(0x18) & 8
    driver.command(xhci.COMMAND_NO_OP)
    assert driver.operational(0x18) & 8
    driver.operational(0x18, 0x4)
    event = driver.wait(ring.COMMAND_COMPLETION)
    assert event.code == ring.COMMAND_RING_STOPPED and event.pointer == driver.commands.position & ~1
    assert not driver.operational(0x18) & 8
    assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS


# -- rings


def test_no_event_is_lost_while_the_guest_does_not_look(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    driver = guest.driver = XhciDriver(guest.access, guest.function.bars[0], events=16)
    driver.start()
    places = [driver.commands.put(0, 0, xhci.COMMAND_NO_OP << 10) for _ in range(40)]
    driver.ring(0, 0)
    seen, full = [], 0
    for _ in range(20):
        events = driver.all_events()
        seen += [e.pointer for e in events if e.kind == ring.COMMAND_COMPLETION]
        full += sum(e.kind == ring.HOST_CONTROLLER and e.code == ring.EVENT_RING_FULL for e in events)
    assert seen == places and full == 2
    guest.machine.close()


def test_links_in_circles(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(_SUPER_PORT, _DISK)
    position = driver.rings[slot, _OUT].position & ~1
    guest.access.write(position, Struct("<QII").pack(position, 0, ring.LINK << 10 | 1))
    driver.ring(slot, _OUT)
    assert driver.wait(ring.TRANSFER_EVENT).code == ring.TRB_ERROR
    assert driver.endpoint_context(slot, _OUT)[0] & 7 == 4
    position = driver.commands.position & ~1
    guest.access.write(position, Struct("<QII").pack(position, 0, ring.LINK << 10 | 1))
    driver.ring(0, 0)
    assert driver.operational(4) & 0x1001 == 0x1001  # only a reset helps
    driver.start()
    assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS


def test_a_ring_without_end_leaves_time_to_others(guest: Guest) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(_SUPER_PORT, _DISK)
    at = driver.rings[slot, _OUT].position & ~1
    guest.access.write(at, Struct("<QIIQII").pack(0, 0, ring.NO_OP << 10 | 1, at, 0, ring.LINK << 10 | 1))
    driver.ring(slot, _OUT)
    assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS
    assert driver.endpoint_command(xhci.STOP_ENDPOINT, slot, _OUT).code == ring.SUCCESS


# -- interrupts


def test_messages(guest: Guest) -> None:
    driver, function = guest.driver, guest.function
    base, message = function.bars[0], 0x3000
    guest.access.write(0x8000, bytes(4))
    guest.access.store(base + message, 4, 0x8000)
    guest.access.store(base + message + 8, 4, 0x4321)
    guest.access.store(base + message + 12, 4, 0)
    ((_, at),) = [each for each in function.capabilities() if each[0] == 0x11]
    function.set_config(at + 2, 2, 0x8000)
    driver.start(interrupts=True)
    driver.commands.put(0, 0, xhci.COMMAND_NO_OP << 10)
    driver.ring(0, 0)
    assert guest.access.load(0x8000, 4) == 0x4321 and driver.operational(4) & 8
    assert driver.runtime(0x20) & 1 == 0  # the message says it
    # Until the guest has seen to that one, no other is sent.
    guest.access.store(0x8000, 4, 0)
    driver.commands.put(0, 0, xhci.COMMAND_NO_OP << 10)
    driver.ring(0, 0)
    assert guest.access.load(0x8000, 4) == 0
    assert driver.event(consume=True) is not None  # there is one more
    assert guest.access.load(0x8000, 4) == 0x4321
    driver.all_events()
    guest.access.store(0x8000, 4, 0)
    driver.acknowledge()
    assert guest.access.load(0x8000, 4) == 0


def test_the_pin(guest: Guest) -> None:
    driver, function = guest.driver, guest.function
    driver.start(interrupts=True)
    assert not function.config(4) & 0x80000
    driver.command(xhci.COMMAND_NO_OP)
    assert function.config(4) & 0x80000
    driver.runtime(0x20, 3)
    assert not function.config(4) & 0x80000 and driver.operational(4, 8) & 8 == 0


@pytest.mark.parametrize(("options", "kinds"), [({}, [0x11, 0x05]), ({"msi": "off"}, [0x11]), ({"msix": "off"}, [5])])
def test_what_nec_has(tmp_path: Path, options: dict[str, str], kinds: list[int]) -> None:
    guest = Guest(tmp_path, "nec-usb-xhci", p2="6", p3="1", slots="8", intrs="5", **options)
    assert [kind for kind, _ in guest.function.capabilities()] == kinds
    base = guest.function.bars[0]
    assert guest.access.load(base + 4, 4) == 7 << 24 | 4 << 8 | 8
    assert guest.access.load(base + 0x28, 4) == 0x0602 and guest.access.load(base + 0x38, 4) == 0x0101
    guest.driver.start()
    place = guest.driver.commands.put(0, 0, 49 << 10)
    guest.driver.ring(0, 0)
    assert [(e.kind, e.pointer, e.length) for e in guest.driver.all_events()] == [(48, place, 0x3034)]
    assert [guest.driver.command(xhci.ENABLE_SLOT).code for _ in range(9)] == [ring.SUCCESS] * 8 + [ring.NO_SLOTS]
    guest.machine.close()


def test_microframes(guest: Guest) -> None:
    driver = guest.driver
    driver.operational(0, 0x401)
    before = driver.runtime(0)
    guest.access.step(10 * _MS)
    assert (driver.runtime(0) - before) % 0x4000 == 80
    guest.access.step(0x4000 * 125_000)
    assert [e.kind for e in driver.all_events()] == [ring.MFINDEX_WRAP]
    driver.operational(0, 0)
    assert driver.operational(4) & 1 and driver.runtime(0) == 0


# -- guests that mean harm

_PLACES = st.sampled_from([0, 0x100000, 0x101000, 0x102000, 0x103000, 0xE0000000, (1 << 64) - 16])
_NUMBER = st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0, 1, 2, 5, 0x3F, 0xFF, 0x10000, 0x1FFFF]))
_REGISTERS = st.sampled_from([
    *(0x40 + at for at in (0, 0, 4, 0x14, 0x18, 0x1C, 0x30, 0x34, 0x38)),
    *(0x440 + 16 * port + at for port in (0, 3, 4, 7) for at in (0, 4)),
    *(0x1020 + 32 * n + at for n in (0, 1, 15) for at in (0, 4, 8, 16, 20, 24, 28)),
    *(0x2000 + 4 * slot for slot in (0, 1, 1, 1, 2, 64)),
])  # fmt: skip
_REQUEST = st.tuples(
    st.one_of(_PLACES, st.integers(0, (1 << 64) - 1)), _NUMBER, st.sampled_from([*range(1, 24), 48, 63]), _NUMBER
)
_ACT = st.one_of(
    st.tuples(st.just("register"), _REGISTERS, _NUMBER),
    st.tuples(st.just("command"), _REQUEST, st.just(0)),
    st.tuples(st.just("transfer"), _REQUEST, st.sampled_from([1, _IN, _OUT])),
    st.tuples(st.just("memory"), st.integers(0x100000, 0x110000), _NUMBER),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_ACT, max_size=40))
def test_hostile_guests(tmp_path_factory: Any, acts: list[Any]) -> None:
    guest = Guest(tmp_path_factory.mktemp("usb"))
    driver = guest.driver
    try:
        driver.start()
        guest.plug("usb-storage", drive="disk", port="1")
        guest.plug("usb-kbd", port="2")
        slot = guest.begin(_SUPER_PORT, _DISK)
        for kind, what, value in acts:
            if kind == "register":
                guest.access.store(driver.base + what, 4, value)
            elif kind == "memory":
                guest.access.store(what & ~3, 4, value)
            else:
                parameter, status, type_, flags = what
                at = driver.commands if kind == "command" else driver.rings[slot, value]
                at.put(parameter, status, type_ << 10 | flags & 0x3FF | slot << 24 | _OUT << 16)
                driver.ring(0 if kind == "command" else slot, value)
            guest.access.step(_MS // 4)
        driver.start()
        assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS
        assert driver.port(_SUPER_PORT) & 1
    finally:
        guest.machine.close()


# -- migration


def test_what_is_under_way_goes_on_elsewhere(tmp_path: Path) -> None:
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    source, target = (Guest(tmp_path / name) for name in ("from", "to"))
    try:
        driver = source.driver
        driver.start()
        for guest in (source, target):
            guest.plug("usb-storage", drive="disk", port="1", id="stick")
            guest.plug("usb-kbd", port="2", id="keys")
        disk, keys = source.begin(_SUPER_PORT, _DISK), source.begin(6, _HID)
        buffer = driver.memory.take(8)
        place = driver.rings[keys, _IN].put(buffer, 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
        driver.ring(keys, _IN)
        driver.send(disk, _OUT, source.command_block(b"\x25" + bytes(9), 8, to_host=True))
        driver.receive(disk, _IN, 8)
        driver.receive(disk, _IN, 13)
        with source.machine.control:
            source.machine.run_state.stop("paused")
            machine_state.settle(source.machine)
            (_kind, head), *sections = machine_state.save_devices(source.machine, "paused")
        with target.machine.control:
            target.machine.run_state.stop("paused")
            for block, there in zip(ram_blocks(source.board), ram_blocks(target.board), strict=True):
                there.ram.view[:] = block.ram.view
            machine_state.load_devices(target.machine, bytes(head), [bytes(payload) for _kind, payload in sections])
            target.machine.run_state.start()
        ports = [driver.port(n) for n in range(1, 9)]
        driver.move(target.access)
        target.driver = driver
        assert [driver.port(n) for n in range(1, 9)] == ports
        target.send(_key("a", True))
        assert [e.pointer for e in driver.all_events()] == [place]
        assert target.access.read(buffer, 3) == b"\0\0\x04"
        assert target.scsi(disk, b"\x28\0\0\0\0\3\0\0\1\0", room=512)[2] == bytes([3]) * 512
    finally:
        source.machine.close()
        target.machine.close()


# -- an adapter for bulk-only transport


def test_units_behind_one_plug(guest: Guest) -> None:
    driver = guest.driver
    bot = guest.plug("usb-bot", port="1", id="bot")
    assert not driver.port(_SUPER_PORT) & 1  # it waits until its units are there
    with guest.machine.control:
        guest.machine.block.add_node({"driver": "null-co", "size": 1 << 20, "node-name": "null"})
        for node, lun in (("disk", "0"), ("null", "2")):
            place = {"bus": "bot.0", "scsi-id": "0", "lun": lun}
            add_device(guest.machine, {"driver": "scsi-hd", "drive": node, "id": node} | place, keyval=True)
        bot.set("attached", True)
    slot = guest.begin(_SUPER_PORT, _DISK)
    assert driver.control(slot, bytes((0xA1, 0xFE, 0, 0, 0, 0, 1, 0))) == (ring.SUCCESS, b"\2")
    assert guest.scsi(slot, b"\x28\0\0\0\0\3\0\0\1\0", room=512) == (0, 0, bytes([3]) * 512)

    def command(lun: int, cdb: bytes, room: int) -> int:
        block = bytearray(guest.command_block(cdb, room, to_host=True))
        block[13] = lun
        return driver.send(slot, _OUT, bytes(block)).code

    assert command(2, bytes(6), 0) == ring.SUCCESS and driver.receive(slot, _IN, 13)[1][12] == 1
    assert command(2, b"\x03\0\0\0\x12\0", 18) == ring.SUCCESS
    assert driver.receive(slot, _IN, 18)[1][12] == 0x29 and driver.receive(slot, _IN, 13)[1][12] == 0
    assert command(1, bytes(6), 0) == ring.STALL_ERROR

"""xHCI controllers from the guest's side: rings, slots, transfers of every kind, ports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any

import pytest

from qobra.machine.usb.xhci import ring
from qobra.machine.usb.xhci.transfers import BYTES_AT_ONCE
from qobra.testing import xhci
from qobra.testing.usb import key_event
from qobra.testing.xhci import XhciDriver
from qobra.testing.xhci_pc import BULK_OUT, DISK, HIGH_PORT, IN, INPUT, OUT, SUPER_PORT, XhciPc

_MS = 10**6


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[XhciPc]:
    guest = XhciPc(tmp_path)
    guest.driver.start()
    yield guest
    guest.machine.close()


# -- devices at their speeds


def test_speeds_and_descriptors(guest: XhciPc) -> None:
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


def test_a_disk(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(SUPER_PORT, DISK)
    assert guest.scsi(slot, bytes(6))[0] == 0
    assert guest.scsi(slot, b"\x28\0\0\0\0\3\0\0\2\0", room=1024) == (0, 0, bytes([3]) * 512 + bytes([4]) * 512)
    assert guest.scsi(slot, b"\x2a\0\0\0\0\5\0\0\1\0", data=b"u" * 512)[:2] == (0, 0)
    assert guest.image.read_bytes()[5 * 512 : 6 * 512] == b"u" * 512
    status, residue, data = guest.scsi(slot, b"\x12\0\0\0\x24\0", room=100)
    assert (status, residue, data[36:]) == (0, 64, bytes(64))
    # Data in pieces, and events with data of their own.
    driver.send(slot, OUT, guest.command_block(b"\x28\0\0\0\0\7\0\0\4\0", 2048, to_host=True))
    transfers, buffer = driver.rings[slot, IN], driver.memory.take(4096, 4096)
    for at, length in ((0, 100), (100, 900), (1000, 1048)):
        transfers.put(buffer + at, length, ring.NORMAL << 10 | ring.CHAIN)
    transfers.put(0x1122334455667788, 0, ring.EVENT_DATA << 10 | ring.ON_COMPLETION)
    driver.ring(slot, IN)
    event = driver.wait(ring.TRANSFER_EVENT)
    assert event.has_data and event.pointer == 0x1122334455667788 and event.length == 2048
    assert guest.access.read(buffer, 2048) == b"".join(bytes([n]) * 512 for n in range(7, 11))


def test_less_than_there_is_room_for(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(SUPER_PORT, DISK)
    driver.send(slot, OUT, guest.command_block(b"\x12\0\0\0\x24\0", 36, to_host=True))
    transfers, buffer = driver.rings[slot, IN], driver.memory.take(4096)
    first = transfers.put(buffer, 20, ring.NORMAL << 10 | ring.CHAIN | ring.SHORT_EVENT)
    second = transfers.put(buffer + 20, 40, ring.NORMAL << 10 | ring.CHAIN | ring.SHORT_EVENT)
    last = transfers.put(buffer + 60, 40, ring.NORMAL << 10 | ring.ON_COMPLETION | ring.SHORT_EVENT)
    driver.ring(slot, IN)
    events = [driver.wait(ring.TRANSFER_EVENT) for _ in range(2)]
    assert [(e.pointer, e.code, e.length) for e in events] == [
        (second, ring.SHORT_PACKET, 24),
        (last, ring.SHORT_PACKET, 40),
    ]
    assert first != second and driver.receive(slot, IN, 13)[1][12] == 0


def test_a_refusal_halts_the_endpoint(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(SUPER_PORT, DISK)
    event = driver.send(slot, OUT, b"nonsense")
    assert event.code == ring.STALL_ERROR and event.length == 8
    assert driver.endpoint_context(slot, OUT)[0] & 7 == 2
    assert driver.endpoint_context(slot, OUT)[2] == event.pointer | 1
    driver.ring(slot, OUT)
    assert driver.event() is None
    assert driver.endpoint_command(xhci.STOP_ENDPOINT, slot, OUT).code == ring.CONTEXT_STATE_ERROR
    driver.recover(slot, OUT)
    assert driver.endpoint_context(slot, OUT)[0] & 7 == 3
    driver.control(slot, bytes((0x21, 0xFF, 0, 0, 0, 0, 0, 0)))
    driver.control(slot, bytes((0x02, 1, 0, 0, 2, 0, 0, 0)))
    assert guest.scsi(slot, bytes(6))[0] == 0
    assert driver.endpoint_context(slot, OUT)[0] & 7 == 1
    # On the control pipe the next request is a new beginning.
    assert driver.descriptor(slot, 2, 7) is None
    assert driver.descriptor(slot, 1) is not None


def test_events_of_a_keyboard_end_the_wait(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-kbd", port="1", id="keys")
    slot = guest.begin(HIGH_PORT, INPUT)
    buffer = driver.memory.take(64)
    places = [driver.rings[slot, IN].put(buffer + 8 * n, 8, ring.NORMAL << 10 | ring.ON_COMPLETION) for n in range(3)]
    driver.ring(slot, IN)
    assert driver.event() is None
    guest.send(key_event("a", True))
    guest.send(key_event("a", False))
    events = driver.all_events()
    assert [e.pointer for e in events] == places[:2] and {e.code for e in events} == {ring.SUCCESS}
    assert guest.access.read(buffer, 16).hex() == "00000400000000000000000000000000"
    # An idle rate has the keyboard say again and again how things stand.
    assert driver.control(slot, bytes((0x21, 0x0A, 0, 1, 0, 0, 0, 0)))[0] == ring.SUCCESS
    driver.ring(slot, IN)
    guest.access.step(5 * _MS)
    assert [e.pointer for e in driver.all_events()] == places[2:]
    # What waits is given back when the endpoint is stopped, and begun again when it goes on.
    driver.control(slot, bytes((0x21, 0x0A, 0, 0, 0, 0, 0, 0)))
    place = driver.rings[slot, IN].put(buffer, 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
    driver.ring(slot, IN)
    assert driver.endpoint_command(xhci.STOP_ENDPOINT, slot, IN).code == ring.SUCCESS
    (stopped,) = driver.others
    assert (stopped.code, stopped.pointer, stopped.length) == (ring.STOPPED, place, 8)
    guest.send(key_event("b", True))
    assert driver.event() is None
    driver.ring(slot, IN)
    assert [e.pointer for e in driver.all_events()] == [place]


# -- ports


def test_devices_that_come_and_go(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-kbd", port="2", id="keys")
    assert [(e.kind, e.pointer >> 24) for e in driver.all_events()] == [(ring.PORT_STATUS_CHANGE, 6)]
    assert driver.port(6) & 0x20FFF == 0x20EE1 and driver.operational(4) & 0x10
    slot = guest.begin(6, INPUT)
    assert driver.port(6) & 0x3FF == 0x203
    driver.rings[slot, IN].put(driver.memory.take(8), 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
    driver.ring(slot, IN)
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
    driver.recover(slot, IN)
    assert driver.send(slot, 1, b"").code == ring.TRB_ERROR
    driver.rings[slot, IN].put(driver.memory.take(8), 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
    driver.ring(slot, IN)
    assert driver.wait(ring.TRANSFER_EVENT).code == ring.TRANSACTION_ERROR
    assert driver.command(xhci.DISABLE_SLOT, control=slot << 24).code == ring.SUCCESS
    again = driver.enable_slot()
    assert again == slot and driver.address(again, 6).code == ring.SUCCESS


def test_a_port_sleeps_and_is_woken(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-kbd", port="1")
    slot = guest.begin(HIGH_PORT, INPUT)
    buffer = driver.memory.take(8)
    assert driver.control(slot, bytes((0x00, 3, 1, 0, 0, 0, 0, 0)))[0] == ring.SUCCESS  # it may wake
    driver.rings[slot, IN].put(buffer, 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
    driver.ring(slot, IN)
    assert driver.port(HIGH_PORT, 0x10200 | 3 << 5) >> 5 & 0xF == 3
    guest.send(key_event("c", True))
    assert [(e.kind, e.pointer >> 24) for e in driver.all_events()] == [(ring.PORT_STATUS_CHANGE, HIGH_PORT)]
    assert driver.port(HIGH_PORT) & 0x4001E0 == 0x4001E0
    driver.port(HIGH_PORT, 0x400200)
    assert driver.port(HIGH_PORT, 0x10200) & 0x4001E0 == 0x400000
    events = driver.all_events()
    assert [e.kind for e in events] == [ring.PORT_STATUS_CHANGE, ring.TRANSFER_EVENT]
    assert guest.access.read(buffer, 3) == b"\0\0\x06"


def test_a_port_that_is_switched_off(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(SUPER_PORT, DISK)
    driver.port(SUPER_PORT, 0x202)
    assert driver.port(SUPER_PORT) & 0x1FF == 0x81
    assert driver.send(slot, OUT, bytes(31)).code == ring.TRANSACTION_ERROR
    driver.port(SUPER_PORT, 0x10200 | 5 << 5)
    assert driver.port(SUPER_PORT) & 0x1FF == 0x03
    driver.port(SUPER_PORT, 0x80000200)
    assert driver.port(SUPER_PORT) & 0x280000 == 0x280000


# -- slots and commands


def test_slots(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-kbd", port="1")
    driver.reset_port(HIGH_PORT)
    slots = [driver.enable_slot() for _ in range(64)]
    assert slots == list(range(1, 65)) and driver.command(xhci.ENABLE_SLOT).code == ring.NO_SLOTS
    assert driver.command(xhci.DISABLE_SLOT, control=7 << 24).code == ring.SUCCESS
    assert driver.command(xhci.DISABLE_SLOT, control=7 << 24).code == ring.SLOT_NOT_ENABLED
    assert driver.address(1, 8, speed=3).code == ring.TRANSACTION_ERROR  # nothing is there
    assert driver.address(1, 9, speed=3).code == ring.PARAMETER_ERROR
    assert driver.address(1, HIGH_PORT, blocked=True).code == ring.SUCCESS
    assert driver.endpoint_context(1, 0)[3] == 1 << 27
    assert driver.address(2, HIGH_PORT).code == ring.TRB_ERROR  # it is the other's
    assert driver.address(1, HIGH_PORT).code == ring.SUCCESS
    assert driver.endpoint_context(1, 0)[3] == 2 << 27 | 1
    assert driver.address(1, HIGH_PORT).code == ring.CONTEXT_STATE_ERROR
    assert driver.command(xhci.RESET_DEVICE, control=3 << 24).code == ring.CONTEXT_STATE_ERROR
    assert driver.command(99 & 0x3F).code == ring.TRB_ERROR
    assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS


def test_configurations(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(SUPER_PORT, DISK)
    assert driver.endpoint_context(slot, 0)[3] >> 27 == 3 and driver.endpoint_context(slot, 0)[0] >> 27 == 4
    assert driver.configure(slot, {5: (BULK_OUT, 64)}).code == ring.PARAMETER_ERROR  # an IN endpoint
    assert driver.configure(slot, {}, drop=1 << OUT).code == ring.SUCCESS
    assert driver.endpoint_context(slot, OUT)[0] & 7 == 0
    driver.ring(slot, OUT)
    assert driver.endpoint_command(xhci.STOP_ENDPOINT, slot, OUT).code == ring.ENDPOINT_NOT_ENABLED
    assert driver.command(xhci.CONFIGURE, control=slot << 24 | 0x200).code == ring.SUCCESS
    assert driver.endpoint_context(slot, 0)[3] >> 27 == 2 and driver.endpoint_context(slot, IN)[0] & 7 == 0
    assert driver.configure(slot, DISK).code == ring.SUCCESS
    assert driver.command(xhci.RESET_DEVICE, control=slot << 24).code == ring.SUCCESS
    assert driver.endpoint_context(slot, 0)[3] == 1 << 27 and driver.endpoint_context(slot, IN)[0] & 7 == 0
    at = driver.memory.take(16)
    assert driver.command(xhci.PORT_BANDWIDTH, parameter=at).code == ring.SUCCESS
    assert guest.access.read(at, 9) == bytes((0, *(80,) * 8))


def test_the_command_ring_stops(guest: XhciPc) -> None:
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
    guest = XhciPc(tmp_path)
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


def test_links_in_circles(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(SUPER_PORT, DISK)
    position = driver.rings[slot, OUT].position & ~1
    guest.access.write(position, Struct("<QII").pack(position, 0, ring.LINK << 10 | 1))
    driver.ring(slot, OUT)
    assert driver.wait(ring.TRANSFER_EVENT).code == ring.TRB_ERROR
    assert driver.endpoint_context(slot, OUT)[0] & 7 == 4
    position = driver.commands.position & ~1
    guest.access.write(position, Struct("<QII").pack(position, 0, ring.LINK << 10 | 1))
    driver.ring(0, 0)
    assert driver.operational(4) & 0x1001 == 0x1001  # only a reset helps
    driver.start()
    assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS


def test_a_ring_without_end_leaves_time_to_others(guest: XhciPc) -> None:
    driver = guest.driver
    guest.plug("usb-storage", drive="disk", port="1")
    slot = guest.begin(SUPER_PORT, DISK)
    at = driver.rings[slot, OUT].position & ~1
    guest.access.write(at, Struct("<QIIQII").pack(0, 0, ring.NO_OP << 10 | 1, at, 0, ring.LINK << 10 | 1))
    driver.ring(slot, OUT)
    assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS
    assert driver.endpoint_command(xhci.STOP_ENDPOINT, slot, OUT).code == ring.SUCCESS


def test_transfers_without_end_leave_time_to_others(guest: XhciPc, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = guest.driver
    device = guest.plug("usb-mouse", port="1")
    slot = guest.begin(HIGH_PORT, INPUT)
    taken = 0

    def take(pid: int, _endpoint: int, data: bytes, *_others: Any) -> bytes:
        nonlocal taken
        taken += len(data)
        return b""

    monkeypatch.setattr(device, "packet", take)
    buffer, start = driver.memory.take(0x10000), driver.memory.take(0x1000)
    requests = [(buffer, 0x10000, ring.DATA << 10 | ring.CHAIN | ring.CYCLE)]
    requests += [(buffer, 0x10000, ring.NORMAL << 10 | ring.CHAIN | ring.CYCLE)] * 126
    requests += [(buffer, 0x10000, ring.NORMAL << 10 | ring.CYCLE), (start, 0, ring.LINK << 10 | ring.CYCLE)]
    guest.access.write(start, b"".join(Struct("<QII").pack(*each) for each in requests))
    driver.endpoint_command(xhci.STOP_ENDPOINT, slot, 1)
    driver.endpoint_command(xhci.SET_DEQUEUE, slot, 1, parameter=start | 1)
    with guest.machine.control:
        driver.ring(slot, 1)
        assert BYTES_AT_ONCE <= taken < BYTES_AT_ONCE + (16 << 20)
    assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS

"""Realtek's card from its driver's side: both modes, filters, offloads, the EEPROM and the timer."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.machine.rtl8139 import offload
from qobra.migration import machine_state
from qobra.testing.pci_guest import CardGuest

_RING, _TX, _RX, _BUFFERS = 0x100000, 0x120000, 0x130000, 0x200000
_MAC = bytes.fromhex("525400123456")
_TSD, _TSAD, _RBSTART, _CR, _CAPR, _CBR, _IMR, _ISR, _TCR, _RCR = (
    0x10,
    0x20,
    0x30,
    0x37,
    0x38,
    0x3A,
    0x3C,
    0x3E,
    0x40,
    0x44,
)
_OWN, _EOR, _FS, _LS = 1 << 31, 1 << 30, 1 << 29, 1 << 28


class Guest(CardGuest):
    def __init__(self) -> None:
        super().__init__("rtl8139", 1)

    def read(self, offset: int, width: int) -> int:
        return self.access.load(self.base + offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        self.access.store(self.base + offset, width, value)

    def listen(self, control: int = 0x8A) -> None:
        self.write(_RBSTART, 4, _RING)
        self.write(_CR, 1, 0x0C)
        self.write(_RCR, 4, control)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def test_four_descriptors_send_in_turn(guest: Guest) -> None:
    guest.write(_CR, 1, 0x04)
    guest.write(_IMR, 2, 0x4)
    for number in range(5):
        guest.access.write(_BUFFERS, bytes([number]) * 60)
        guest.write(_TSAD + 4 * (number % 4), 4, _BUFFERS)
        guest.write(_TSD + 4 * (number % 4), 4, 60)
        assert guest.read(_TSD + 4 * (number % 4), 4) & 0xA000 == 0xA000
    assert guest.wire.sent == [bytes([number]) * 60 for number in range(5)]
    assert guest.read(0x60, 2) == 0xF00F
    assert guest.function.config(6, 2) & 8
    guest.write(_ISR, 2, 0x4)
    assert not guest.function.config(6, 2) & 8


def test_packets_lie_in_the_ring(guest: Guest) -> None:
    guest.listen()
    assert guest.read(_CR, 1) & 1
    guest.card.receive_packet(_MAC + b"a" * 87)
    guest.card.receive_packet(b"\xff" * 6 + b"b" * 54)
    assert not guest.read(_CR, 1) & 1
    status, length = unpack("<HH", guest.access.read(_RING, 4))
    assert (status, length) == (0x4001, 97)
    assert guest.access.read(_RING + 4, 93) == _MAC + b"a" * 87
    second = 4 + 97 + 3
    assert unpack("<HH", guest.access.read(_RING + second, 4)) == (0x2001, 64)
    assert guest.read(_CBR, 2) == second + 68
    guest.write(_CAPR, 2, second + 68 - 16)
    assert guest.read(_CR, 1) & 1
    assert guest.read(_ISR, 2) & 1


@pytest.mark.parametrize("no_wrap", [False, True])
def test_the_ring_at_its_end(guest: Guest, no_wrap: bool) -> None:
    guest.listen(0x0A | (0x80 if no_wrap else 0))
    for _ in range(5):
        guest.card.receive_packet(_MAC + b"x" * 1500)
    at = guest.read(_CBR, 2)
    guest.write(_CAPR, 2, at - 16)
    guest.card.receive_packet(_MAC + b"y" * 1500)
    straight = 8192 - at - 4
    data = guest.access.read(_RING + at + 4, 1506 if no_wrap else straight)
    if not no_wrap:
        data += guest.access.read(_RING, 1506 - straight)
    assert data == _MAC + b"y" * 1500
    for _ in range(6):
        guest.card.receive_packet(_MAC + b"z" * 1500)
    assert not guest.read(_ISR, 2) & 0x10  # what does not fit waits
    guest.write(_IMR, 2, 0x10)
    assert guest.read(_ISR, 2) & 0x10  # or is lost, if the driver wants to know


def test_packets_wait_for_room_in_the_ring(guest: Guest) -> None:
    guest.listen()
    for number in range(7):
        guest.card.receive_packet(_MAC + bytes((number,)) * 1500)
    at = guest.read(_CBR, 2)
    assert at == 5 * 1516
    guest.write(_CAPR, 2, at - 16)
    assert guest.read(_CBR, 2) == 7 * 1516 % 8192
    place = (6 * 1516 + 4 + 6) % 8192
    assert guest.access.read(_RING + place, 4) == b"\6" * 4


def test_packets_wait_while_the_guest_stands_still(guest: Guest) -> None:
    """Its memory may be on its way to another machine."""
    guest.listen()
    with guest.machine.control:
        guest.machine.run_state.stop()
    guest.card.receive_packet(_MAC + bytes(1500))
    assert guest.read(_CBR, 2) == 0
    with guest.machine.control:
        guest.machine.run_state.start()
    assert guest.read(_CBR, 2) == 1516


def test_filters(guest: Guest) -> None:
    def arrives(target: bytes) -> bool:
        before = guest.read(_CBR, 2)
        guest.card.receive_packet(target + bytes(60))
        return guest.read(_CBR, 2) != before

    other, group = b"\x52\0\0\0\0\x01", bytes.fromhex("01005e000001")
    guest.listen(0x82)
    assert [arrives(each) for each in (_MAC, other, group, b"\xff" * 6)] == [True, False, False, False]
    guest.write(_RCR, 4, 0x8E)
    assert not arrives(group)
    guest.write(0x08, 4, 0xFFFFFFFF)
    guest.write(0x0C, 4, 0xFFFFFFFF)
    assert arrives(group) and arrives(b"\xff" * 6)
    guest.write(_RCR, 4, 0x81)
    assert arrives(other)


def test_the_hash_of_a_group(guest: Guest) -> None:
    # The example of IEEE 802.3's polynomial that drivers use: 01:00:5e:00:00:01 has bit 31.
    guest.listen(0x84)
    guest.write(0x08, 4, 1 << 31)
    guest.card.receive_packet(bytes.fromhex("01005e000001") + bytes(60))
    assert guest.read(_CBR, 2)


def _plus(guest: Guest) -> None:
    guest.write(0xE0, 2, 0x23)
    guest.write(_CR, 1, 0x0C)
    guest.write(0x20, 4, _TX)
    guest.write(0xE4, 4, _RX)
    guest.write(_RCR, 4, 0x0A)


def test_rings_of_descriptors(guest: Guest) -> None:
    _plus(guest)
    guest.access.write(_BUFFERS, b"first half, " + b"second half" * 10)
    guest.access.write(_TX, pack("<IIQ", _OWN | _FS | 12, 0, _BUFFERS))
    guest.access.write(_TX + 16, pack("<IIQ", _OWN | _EOR | _LS | 110, 1 << 17 | 0x0500, _BUFFERS + 12))
    guest.write(0xD9, 1, 0x40)
    assert guest.wire.sent == [b"first half, " + b"second half" * 10]
    assert guest.access.load(_TX, 4) == _FS | 12 and guest.access.load(_TX + 16, 4) == _EOR | _LS | 110
    guest.access.write(_RX, pack("<IIQ", _OWN | _EOR | 1600, 0, _BUFFERS + 0x1000))
    guest.card.receive_packet(_MAC + b"r" * 94)
    assert guest.access.load(_RX, 4) == _EOR | _FS | _LS | 1 << 25 | 104
    assert guest.access.read(_BUFFERS + 0x1000, 100) == _MAC + b"r" * 94
    guest.card.receive_packet(_MAC + b"r" * 94)  # the descriptor is the driver's now
    assert guest.read(_ISR, 2) & 0x10


def test_tags_go_in_and_come_off(guest: Guest) -> None:
    _plus(guest)
    guest.write(0xE0, 2, 0x63)
    guest.access.write(_BUFFERS, _MAC + b"s" * 6 + b"\x08\x00" + bytes(50))
    guest.access.write(_TX, pack("<IIQ", _OWN | _EOR | _FS | _LS | 64, 1 << 17 | 0x0500, _BUFFERS))
    guest.write(0xD9, 1, 0x40)
    assert guest.wire.sent[0][12:18] == b"\x81\x00\x00\x05\x08\x00"
    guest.access.write(_RX, pack("<IIQ", _OWN | _EOR | 1600, 0, _BUFFERS))
    guest.card.receive_packet(guest.wire.sent[0])
    assert guest.access.load(_RX + 4, 4) == 1 << 16 | 0x0500
    assert guest.access.read(_BUFFERS, 14) == _MAC + b"s" * 6 + b"\x08\x00"


def _tcp(payload: bytes) -> bytes:
    ip = bytes.fromhex("45000000abcd00004006ffff0a0000010a000002")
    return _MAC + b"s" * 6 + b"\x08\x00" + ip[:2] + (40 + len(payload)).to_bytes(2, "big") + ip[4:] + bytes.fromhex(
        "00500051000003e8000000005019ffffeeee0000"
    ) + payload  # fmt: skip


def _folded(data: bytes) -> int:
    data += b"\0" * (len(data) & 1)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_checksums_and_cutting() -> None:
    packet = _tcp(b"q" * 2501)
    pieces = offload.cut(packet, 1000)
    assert [len(piece) - 54 for piece in pieces] == [1000, 1000, 501]
    for number, piece in enumerate(pieces):
        assert _folded(piece[14:34]) == 0xFFFF
        assert _folded(piece[26:34] + b"\0\x06" + (len(piece) - 34).to_bytes(2, "big") + piece[34:]) == 0xFFFF
        assert int.from_bytes(piece[38:42], "big") == 1000 + 1000 * number
        assert int.from_bytes(piece[18:20], "big") == 0xABCD + number
        assert piece[47] == (0x19 if number == 2 else 0x10)
    assert offload.cut(packet[:40], 1000) == [packet[:40]]
    assert offload.with_checksums(b"\0" * 10, ip=True, payload=True) == b"\0" * 10


def test_the_eeprom(guest: Guest) -> None:
    def clock(bit: int) -> int:
        guest.write(0x50, 1, 0x88 | bit << 1)
        guest.write(0x50, 1, 0x8C | bit << 1)
        return guest.read(0x50, 1) & 1

    words = []
    for address in (0, 1, 7, 8, 9):
        guest.write(0x50, 1, 0x80)
        for bit in f"110{address:06b}":
            clock(int(bit))
        words.append(int("".join(str(clock(0)) for _ in range(16)), 2))
    assert words[:2] == [0x8129, 0x10EC]
    assert b"".join(word.to_bytes(2, "little") for word in words[2:]) == _MAC


def test_the_counters_are_written_into_memory(guest: Guest) -> None:
    _plus(guest)
    guest.access.write(_RX, pack("<IIQ", _OWN | _EOR | 1600, 0, _BUFFERS))
    guest.card.receive_packet(_MAC + bytes(60))
    guest.card.receive_packet(_MAC + bytes(60))
    guest.write(0x14, 4, 0)
    guest.write(0x10, 4, _BUFFERS | 8)
    assert not guest.read(0x10, 4) & 8
    assert guest.access.load(_BUFFERS + 8, 8) == 1 and guest.access.load(_BUFFERS + 0x1C, 2) == 1


def test_its_state_moves(guest: Guest) -> None:
    guest.listen()
    guest.card.receive_packet(_MAC + bytes(60))
    guest.write(0x54, 4, 1000)
    there = Guest()
    with guest.machine.control:
        guest.machine.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(guest.machine, "paused")
    with there.machine.control:
        machine_state.load_devices(there.machine, bytes(head), [bytes(payload) for _kind, payload in sections])
    assert (there.read(_CBR, 2), there.read(0x54, 4)) == (guest.read(_CBR, 2), 1000)
    there.access.step(40_000)
    assert there.read(_ISR, 2) & 0x4000
    there.close()


@given(
    st.lists(st.tuples(st.integers(0, 255), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)), max_size=40),
    st.binary(min_size=64, max_size=64),
    st.binary(min_size=14, max_size=3000),
)
def test_the_driver_may_write_anything(writes: list[tuple[int, int, int]], ring: bytes, packet: bytes) -> None:
    guest = Guest()
    _plus(guest)
    guest.access.write(_TX, ring)
    guest.access.write(_RX, ring)
    for offset, width, value in writes:
        guest.write(offset, width, value & ((1 << 8 * width) - 1))
        guest.card.receive_packet(packet)
        guest.read(offset, width)
    guest.close()

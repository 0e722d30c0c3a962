"""The gigabit Ethernet card from its driver's side: rings, filters, checksums, cutting, EEPROM and transceiver."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.machine.nic import MAX_WAITING
from qobra.testing.pci_guest import CardGuest

_CTRL, _EECD, _EERD, _MDIC, _ICR, _IMS, _RCTL, _TCTL = 0x00, 0x10, 0x14, 0x20, 0xC0, 0xD0, 0x100, 0x400
_TX, _RX, _BUFFERS, _COUNT = 0x100000, 0x110000, 0x200000, 8
_MAC = bytes.fromhex("525400123456")
_EOP, _IFCS, _RS, _DEXT = 0x01000000, 0x02000000, 0x08000000, 0x20000000


class Guest(CardGuest):
    def __init__(self) -> None:
        super().__init__("e1000", 0)
        self.tail = 0
        for ring, registers in ((_TX, 0x3800), (_RX, 0x2800)):
            self.write(registers, ring)
            self.write(registers + 8, 16 * _COUNT)
        self.write(_TCTL, 2)

    def read(self, offset: int) -> int:
        return self.access.load(self.base + offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.access.store(self.base + offset, 4, value)

    def queue(self, *descriptors: bytes) -> None:
        for descriptor in descriptors:
            self.access.write(_TX + 16 * self.tail, descriptor)
            self.tail = (self.tail + 1) % _COUNT
        self.write(0x3818, self.tail)

    def send(self, packet: bytes, command: int = _EOP | _IFCS | _RS, upper: int = 0) -> None:
        self.access.write(_BUFFERS, packet)
        self.queue(pack("<QII", _BUFFERS, len(packet) | command, upper))

    def listen(self, control: int = 0x04008002, buffers: int = _COUNT - 1) -> None:
        for number in range(_COUNT):
            self.access.write(_RX + 16 * number, pack("<QQ", _BUFFERS + 0x1000 * (number + 1), 0))
        self.write(0x2818, buffers)
        self.write(_RCTL, control)

    def arrive(self, packet: bytes) -> None:
        self.card.receive_packet(packet)

    def received(self, number: int = 0) -> tuple[bytes, int, int]:
        """Data, status and tag of a descriptor."""
        address, length, _sum, status, _errors, tag = unpack("<QHHBBH", self.access.read(_RX + 16 * number, 16))
        return self.access.read(address, length), status, tag


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def _frame(target: bytes, body: bytes = b"x" * 60) -> bytes:
    return target + _MAC + b"\x08\x00" + body


def test_a_packet_goes_out(guest: Guest) -> None:
    packet = _frame(b"\xff" * 6)
    guest.write(_IMS, 1)
    guest.send(packet)
    assert guest.wire.sent == [packet]
    assert guest.access.read(_TX + 12, 1) == b"\1"
    assert guest.read(0x3810) == guest.read(0x3818) == 1
    assert guest.card._pin_level == 1
    assert guest.read(_ICR) & 3 == 3
    assert (guest.card._pin_level, guest.read(_ICR)) == (0, 0)
    assert (guest.read(0x40D4), guest.read(0x40D4)) == (1, 0)  # statistics are cleared by reading


def test_a_packet_in_pieces_with_tag_and_checksum(guest: Guest) -> None:
    packet = bytearray(_frame(b"\xff" * 6, bytes(range(50))))
    guest.access.write(_BUFFERS, bytes(packet))
    guest.write(_CTRL, 0x40000000)
    half = 30
    command = _IFCS | 0x40000000 | 0x04000000 | 24 << 16
    guest.queue(
        pack("<QII", _BUFFERS, half | command, 0x0123_0000 | 14 << 8),
        pack("<QII", _BUFFERS + half, len(packet) - half | command | _EOP, 0x0123_0000 | 14 << 8),
    )
    (sent,) = guest.wire.sent
    assert sent[12:16] == b"\x81\x00\x01\x23"
    untagged = sent[:12] + sent[16:]
    total = sum(int.from_bytes(untagged[n : n + 2], "big") for n in range(14, len(untagged), 2))
    plain = int.from_bytes(packet[24:26], "big")
    # What was in the field before counts, too: the sum with the checksum in its place comes out as that.
    assert (total + plain) % 0xFFFF == 0


def _checksum(data: bytes) -> int:
    return sum(int.from_bytes(data.ljust(len(data) + 1 & ~1, b"\0")[n : n + 2], "big") for n in range(0, len(data), 2))


def test_long_packets_are_cut(guest: Guest) -> None:
    payload = bytes(n % 251 for n in range(2500))
    ip = pack(">BBHHHBBH4s4s", 0x45, 0, 0, 100, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    pseudo = _checksum(ip[12:20]) + 6
    pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    tcp = pack(">HHIIBBHHH", 1, 2, 1000, 0, 0x50, 0x19, 512, pseudo, 0)
    packet = _frame(b"\x52\x54\0\0\0\1", ip + tcp + payload)
    header = 54
    guest.access.write(_BUFFERS, packet)
    guest.queue(
        pack("<BBHBBHII", 14, 24, 33, 34, 50, 0, len(payload) | _DEXT | 0x07000000, header << 8 | 1000 << 16),
        pack("<QII", _BUFFERS, len(packet) | 1 << 20 | _DEXT | 0x04000000 | _EOP | _RS, 3 << 8),
    )
    assert [len(each) - header for each in guest.wire.sent] == [1000, 1000, 500]
    assert b"".join(each[header:] for each in guest.wire.sent) == payload
    for number, each in enumerate(guest.wire.sent):
        assert _checksum(each[14:34]) % 0xFFFF == 0
        segment = each[34:]
        assert (_checksum(segment) + _checksum(each[26:34]) + 6 + len(segment)) % 0xFFFF == 0
        length, id = unpack(">HH", each[16:20])
        assert (length, id) == (len(each) - 14, 100 + number)
        assert int.from_bytes(each[38:42], "big") == 1000 + 1000 * number
        assert each[47] == (0x19 if number == 2 else 0x10)


def test_packets_come_in(guest: Guest) -> None:
    guest.listen()
    guest.write(_IMS, 0x80)
    guest.arrive(_frame(_MAC))
    assert guest.received() == (_frame(_MAC), 0x07, 0)
    assert guest.card._pin_level == 1
    guest.arrive(b"\xff" * 6 + _MAC + b"\x08\x00")
    assert len(guest.received(1)[0]) == 60
    guest.listen(0x00008002)
    guest.arrive(_frame(_MAC))
    data = guest.received(2)[0]
    assert data[-4:] == zlib.crc32(data[:-4]).to_bytes(4, "little")


def test_long_packets_take_several_buffers(guest: Guest) -> None:
    guest.listen(0x04008022 | 3 << 16)  # 256 bytes each
    packet = _frame(_MAC, bytes(n % 256 for n in range(600)))
    guest.arrive(packet)
    parts = [guest.received(n) for n in range(3)]
    assert b"".join(part[0] for part in parts) == packet
    assert [part[1] for part in parts] == [1, 1, 7]


def test_filters(guest: Guest) -> None:
    guest.listen(0x04000002)

    def arrives(target: bytes) -> bool:
        before = guest.read(0x2810)
        guest.arrive(_frame(target))
        return guest.read(0x2810) != before

    other, group = bytes.fromhex("525400999999"), bytes.fromhex("01005e000001")
    assert arrives(_MAC)
    assert not arrives(other)
    assert not arrives(group)
    assert not arrives(b"\xff" * 6)
    index = (group[5] << 8 | group[4]) >> 4
    guest.write(0x5200 + 4 * (index >> 5), 1 << (index & 31))
    assert arrives(group)
    guest.write(_RCTL, 0x0400001A)
    assert arrives(other)


def test_tags_are_filtered_and_taken_off(guest: Guest) -> None:
    guest.write(_CTRL, 0x40000000)
    guest.listen(0x04048002)
    tagged = _MAC + _MAC + b"\x81\x00\x00\x05\x08\x00" + b"y" * 60
    guest.arrive(tagged)
    assert guest.read(0x2810) == 0
    guest.write(0x5600, 1 << 5)
    guest.arrive(tagged)
    assert guest.received() == (_MAC + _MAC + b"\x08\x00" + b"y" * 60, 0x0F, 5)


def test_packets_wait_for_buffers_in_order(guest: Guest) -> None:
    guest.listen(buffers=1)
    for number in range(3):
        guest.arrive(_frame(_MAC, bytes((number,)) * 60))
    assert guest.read(0x2810) == 1 and not guest.read(_ICR) & 0x40
    guest.write(0x2818, 3)
    assert [guest.received(number)[0][14] for number in range(3)] == [0, 1, 2]
    assert guest.read(0x4010) == 0


def test_no_more_packets_wait_than_the_card_keeps(guest: Guest) -> None:
    guest.listen(buffers=0)
    for _ in range(MAX_WAITING + 10):
        guest.arrive(_frame(_MAC))
    assert len(guest.card._waiting) == MAX_WAITING
    guest.write(_RCTL, 0)  # a receiver that is off loses what comes
    guest.listen(buffers=1)
    assert guest.read(0x2810) == 0


def test_a_packet_that_needs_more_buffers_than_there_are_is_lost(guest: Guest) -> None:
    guest.listen(0x04008022, buffers=1)  # long packets are taken
    guest.arrive(_frame(_MAC, bytes(3000)))
    assert guest.read(_ICR) & 0x40
    assert guest.read(0x4010) == 1


def test_the_eeprom(guest: Guest) -> None:
    words = []
    for number in range(64):
        guest.write(_EERD, number << 8 | 1)
        words.append(guest.read(_EERD) >> 16)
    assert b"".join(word.to_bytes(2, "little") for word in words[:3]) == _MAC
    assert sum(words) & 0xFFFF == 0xBABA

    def clock(bit: int) -> int:
        guest.write(_EECD, 0x42 | bit << 2)
        guest.write(_EECD, 0x43 | bit << 2)
        guest.write(_EECD, 0x42 | bit << 2)
        return guest.read(_EECD) >> 3 & 1

    guest.write(_EECD, 0x42)
    for bit in (1, 1, 0, 0, 0, 0, 0, 0, 1):
        last = clock(bit)
    value = last
    for _ in range(15):
        value = value << 1 | clock(0)
    assert value == words[1]


def test_the_transceiver(guest: Guest) -> None:
    guest.write(_MDIC, 2 << 26 | 1 << 21 | 2 << 16)
    assert guest.read(_MDIC) & 0x1000FFFF == 0x10000141
    guest.write(_MDIC, 2 << 26 | 2 << 21)
    assert guest.read(_MDIC) & 0x40000000
    guest.write(_MDIC, 2 << 26 | 1 << 21 | 22 << 16 | 0x66B)  # a register that is not there
    assert guest.read(_MDIC) == 0x50000000 | 2 << 26 | 1 << 21 | 22 << 16 | 0x66B
    guest.write(_MDIC, 1 << 26 | 1 << 21 | 2 << 16)  # the identity is not to be written
    assert guest.read(_MDIC) & 0x40000000
    with guest.machine.control:
        guest.card.link_forced_down = True
        guest.card.link_changed()
    assert guest.read(0x08) & 2 == 0
    assert guest.read(_ICR) & 4
    guest.write(_MDIC, 2 << 26 | 1 << 21 | 1 << 16)
    assert guest.read(_MDIC) & 4 == 0
    guest.send(_frame(_MAC))
    assert guest.wire.sent == []


def test_loopback_and_reset(guest: Guest) -> None:
    guest.listen(0x040080C2)
    guest.send(_frame(_MAC))
    assert guest.received()[0] == _frame(_MAC)
    assert guest.wire.sent == []
    guest.write(_CTRL, 0x04000000)
    assert (guest.read(_RCTL), guest.read(0x5400)) == (0, 0x12005452)


_REGISTERS = st.one_of(
    st.sampled_from((_CTRL, _EECD, _EERD, _MDIC, _ICR, _IMS, _RCTL, _TCTL, 0xC8, 0xD8)),
    st.sampled_from([base + 4 * n for base in (0x2800, 0x3800) for n in range(8)]),
    st.integers(0, 0x1FFFC),
)
_VALUES = st.one_of(st.sampled_from((0, 1, 2, 0x80, _TX, _RX, _BUFFERS, 0xFFFFFFFF)), st.integers(0, 0xFFFFFFFF))


@given(st.lists(st.tuples(_REGISTERS, _VALUES), max_size=40), st.binary(max_size=128), st.binary(max_size=300))
def test_the_driver_may_write_anything(writes: list[tuple[int, int]], ring: bytes, packet: bytes) -> None:
    guest = Guest()
    guest.access.write(_TX, ring)
    guest.listen()
    for offset, value in writes:
        guest.write(offset & ~3, value)
        guest.read(offset & ~3)
        guest.arrive(packet)
    guest.close()

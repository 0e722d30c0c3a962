"""The gigabit card on PCI Express, from its driver's side: where it differs from its predecessors."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.migration import machine_state
from qobra.testing.pci_guest import CardGuest

_TX, _RX, _BUFFERS, _COUNT = 0x100000, 0x110000, 0x200000, 8
_MAC = bytes.fromhex("525400123456")
_CTRL_EXT, _ICR, _IMS, _IMC, _IAM, _EIAC, _IVAR = 0x18, 0xC0, 0xD0, 0xD8, 0xE0, 0xDC, 0xE4
_RCTL, _TCTL, _RFCTL, _PSRCTL = 0x100, 0x400, 0x5008, 0x2170
_RXQ0, _TXQ0, _OTHER, _ASSERTED = 1 << 20, 1 << 22, 1 << 24, 1 << 31


class Guest(CardGuest):
    def __init__(self) -> None:
        super().__init__("e1000e", 0)
        self.messages = self.function.bars[3]
        self.tail = 0
        for ring, at in ((_TX, 0x3800), (_TX + 0x1000, 0x3900), (_RX, 0x2800)):
            self.write(at, ring)
            self.write(at + 8, 32 * _COUNT)
        self.write(_TCTL, 2)

    def read(self, offset: int) -> int:
        return self.access.load(self.base + offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.access.store(self.base + offset, 4, value)

    def send(self, packet: bytes, ring: int = 0) -> None:
        self.access.write(_BUFFERS, packet)
        self.access.write(_TX + 0x10 * ring, pack("<QII", _BUFFERS, len(packet) | 0x0B000000, 0))
        self.write(0x3818 + ring, self.read(0x3818 + ring) + 1)

    def enable_messages(self) -> None:
        """Vectors 0 to 4 for the causes in their order, each masked, so that they are pending."""
        control = self.function.config(0xA2, 2)
        self.function.set_config(0xA2, 2, control | 0x8000)
        self.write(_IVAR, sum((8 | n) << 4 * n for n in range(5)))

    def pending(self) -> int:
        return self.access.load(self.messages + 0x2000, 4)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def test_both_rings_send(guest: Guest) -> None:
    guest.enable_messages()
    guest.write(_IMS, 0xFFFFFFFF)
    guest.send(b"\x01" * 60)
    assert guest.pending() == 1 << 2
    guest.send(b"\x02" * 60, ring=0x100)
    assert guest.pending() == 1 << 2 | 1 << 3
    assert guest.wire.sent == [b"\x01" * 60, b"\x02" * 60]
    assert guest.access.load(_TX + 12, 1) & 1 and guest.access.load(_TX + 0x1000 + 12, 1) & 1


def _buffers(guest: Guest, size: int) -> None:
    for number in range(_COUNT):
        addresses = [_BUFFERS + 0x8000 * number + 0x2000 * n for n in range(size // 8)]
        guest.access.write(_RX + size * number, b"".join(pack("<Q", each) for each in addresses))
    guest.write(0x2808, 16 * _COUNT if size == 16 else 32 * _COUNT)


def _told(guest: Guest, number: int, size: int) -> tuple[int, int]:
    _mrq, _hash, status, length, _tag = unpack("<IIIHH", guest.access.read(_RX + size * number, 16))
    return status, length


def test_extended_descriptors(guest: Guest) -> None:
    _buffers(guest, 16)
    guest.write(_RFCTL, 0x8000)
    guest.write(_RCTL, 0x04008002)
    packet = _MAC + b"\xaa" * 100
    guest.card.receive_packet(packet)  # waits for buffers
    assert _told(guest, 0, 16)[0] != 7
    guest.write(0x2818, 4)
    assert _told(guest, 0, 16) == (7, 106)
    guest.card.receive_packet(_MAC + b"\xbb" * 100)
    assert guest.access.read(_BUFFERS, 106) == packet
    assert guest.access.read(_BUFFERS + 0x8000, 7) == _MAC + b"\xbb"
    assert guest.read(0x2810) == 2
    assert guest.read(_ICR) & (_RXQ0 | 0x80) == _RXQ0 | 0x80


def test_descriptors_with_four_buffers(guest: Guest) -> None:
    _buffers(guest, 32)
    guest.write(_PSRCTL, 4 << 16 | 1 << 8 | 1)  # 128, 1024 and 4096 bytes
    guest.write(_RFCTL, 0x8000)
    guest.write(_RCTL, 0x04008422)
    guest.write(0x2818, 4)
    packet = _MAC + bytes(n & 0xFF for n in range(2000))
    guest.card.receive_packet(packet)
    assert _told(guest, 0, 32) == (7, 128)
    assert unpack("<HHHH", guest.access.read(_RX + 16, 8)) == (0, 1024, len(packet) - 1152, 0)
    pieces = [guest.access.read(_BUFFERS + 0x2000 * n, size) for n, size in enumerate((128, 1024, len(packet) - 1152))]
    assert b"".join(pieces) == packet


def test_the_pin_and_what_clears_the_causes(guest: Guest) -> None:
    guest.read(_ICR)
    guest.write(0xC8, 0x4)
    assert guest.read(_ICR) == _ASSERTED | 0x4  # reading clears
    assert guest.read(_ICR) == 0
    guest.write(_IAM, 0x4)
    guest.write(_CTRL_EXT, 0x08000000)
    guest.write(_IMS, 0x80)
    with guest.machine.control:
        guest.card.link_changed()
    assert not guest.function.config(6, 2) & 8
    guest.write(_IMS, 0x4)
    assert guest.function.config(6, 2) & 8
    assert guest.read(_ICR) == _ASSERTED | _OTHER | 0x4
    assert (guest.read(_IMS), guest.read(_ICR)) == (0x80, 0)
    assert not guest.function.config(6, 2) & 8


def test_messages_clear_and_mask_by_themselves(guest: Guest) -> None:
    guest.enable_messages()
    guest.write(_EIAC, _TXQ0)
    guest.write(_IAM, _TXQ0)
    guest.write(_CTRL_EXT, 0x01000000)
    guest.write(_IMS, _TXQ0 | _OTHER)
    guest.send(b"\x01" * 60)
    assert guest.pending() == 1 << 2
    assert guest.read(0xC8) & _TXQ0 == 0 and guest.read(_IMS) == _OTHER
    with guest.machine.control:
        guest.card.link_changed()
    assert guest.pending() == 1 << 2 | 1 << 4


def test_what_drivers_read_of_the_card(guest: Guest) -> None:
    words = []
    for number in range(64):
        guest.write(0x14, number << 2 | 1)
        value = guest.read(0x14)
        assert value & 2
        words.append(value >> 16)
    assert b"".join(word.to_bytes(2, "little") for word in words[:3]) == _MAC
    assert sum(words) & 0xFFFF == 0xBABA and words[0x0D] == 0x10D3
    guest.write(0x20, 2 << 26 | 1 << 21 | 3 << 16)
    assert guest.read(0x20) & 0x1000FFFF == 0x10000CB1
    guest.write(0x5B50, 0)
    assert (guest.read(0x5B50), guest.read(0x5B50)) == (0, 1)  # who comes first has the semaphore
    guest.write(0x110, 0x12345670)
    assert guest.read(0x2800) == 0x12345670
    assert guest.read(0x40) == int.from_bytes(_MAC[:4], "little")


def test_its_state_moves(guest: Guest) -> None:
    guest.write(_IMS, 0x4)
    guest.write(0x2800, 0x4440)
    there = Guest()
    with guest.machine.control:
        guest.machine.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(guest.machine, "paused")
    with there.machine.control:
        machine_state.load_devices(there.machine, bytes(head), [bytes(payload) for _kind, payload in sections])
    assert (there.read(_IMS), there.read(0x2800)) == (0x4, 0x4440)
    there.close()


@given(
    st.lists(st.tuples(st.integers(0, 0x17000), st.integers(0, 0xFFFFFFFF)), max_size=30),
    st.binary(min_size=128, max_size=128),
    st.binary(min_size=14, max_size=2000),
)
def test_the_driver_may_write_anything(writes: list[tuple[int, int]], ring: bytes, packet: bytes) -> None:
    guest = Guest()
    guest.access.write(_TX, ring)
    guest.access.write(_RX, ring)
    for offset, value in writes:
        guest.write(offset, value)
        guest.card.receive_packet(packet)
        guest.read(offset)
    guest.close()

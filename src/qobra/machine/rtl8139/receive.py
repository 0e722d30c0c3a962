"""What the card takes off the wire: filters, the ring buffer (section 6.1), and descriptors of the C+ mode (6.4)."""

from __future__ import annotations

import zlib
from struct import pack
from typing import TYPE_CHECKING

from qobra.machine.rtl8139 import regs

if TYPE_CHECKING:
    from qobra.machine.rtl8139.card import RealtekCard

_BROADCAST = b"\xff" * 6
_MIN_PACKET, _MAX_PACKET, _CRC, _HEADER = 60, 4096, 4, 4
_OK, _IS_BROADCAST, _IS_MINE, _IS_MULTICAST = 0x0001, 0x2000, 0x4000, 0x8000
_OWN, _END_OF_RING, _FIRST, _LAST = 1 << 31, 1 << 30, 1 << 29, 1 << 28
_CP_MULTICAST, _CP_MINE, _CP_BROADCAST, _CP_TAGGED = 1 << 26, 1 << 25, 1 << 24, 1 << 16
_CP_SIZE = 0x1FFF
DESCRIPTOR_SIZE, MAX_DESCRIPTORS = 16, 64


def kind(card: RealtekCard, packet: bytes) -> int:
    """Why the filters let ``packet`` through, as the status tells it; 0 if they do not."""
    control, target = card.register(regs.RCR, 4), packet[:6]
    if target == _BROADCAST:
        return _IS_BROADCAST if control & (regs.RX_BROADCAST | regs.RX_ALL) else 0
    if target[0] & 1:
        bit = _hash(target)
        wanted = control & regs.RX_ALL or (
            control & regs.RX_MULTICAST and card.register(regs.MAR + (bit >> 3), 1) >> (bit & 7) & 1
        )
        return _IS_MULTICAST if wanted else 0
    mine = target == card.raw(regs.IDR, 6)
    return _IS_MINE if (mine and control & regs.RX_MINE) or control & regs.RX_ALL else 0


def _hash(target: bytes) -> int:
    # The highest six bits of the CRC, whose bits go out the other way round.
    crc = ~zlib.crc32(target) & 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2) >> 26


def receive(card: RealtekCard, packet: bytes) -> bool:
    """A packet came in: put it where the driver wants it, or drop it; False if it can wait for room in the ring.

    It is dropped where the driver wants to be told of an overflow, and in the C+ mode, whose descriptors a driver
    gives without telling the card.
    """
    packet = packet.ljust(_MIN_PACKET, b"\0")
    if not card.register(regs.CR, 1) & regs.CR_RX or len(packet) > _MAX_PACKET:
        return True
    why = kind(card, packet)
    if not why:
        return True
    plus = card.register(regs.CPCR, 2)
    done = _fill_descriptor(card, packet, why, plus) if plus & regs.CP_RX else _fill_ring(card, packet, why)
    if done:
        card.tally.received(why == _IS_BROADCAST, why == _IS_MULTICAST)
        card.interrupt(regs.ROK)
    elif not plus & regs.CP_RX and not card.register(regs.IMR, 2) & regs.OVERFLOW:
        return False
    else:
        card.tally.missed()
        card.interrupt(regs.OVERFLOW)
    return True


def ring_size(control: int) -> int:
    """Bytes of the ring buffer."""
    return 8192 << (control >> 11 & 3)


def _fill_ring(card: RealtekCard, packet: bytes, why: int) -> bool:
    control, base = card.register(regs.RCR, 4), card.register(regs.RBSTART, 4)
    size = ring_size(control)
    data = pack("<HH", _OK | why, len(packet) + _CRC) + packet + zlib.crc32(packet).to_bytes(4, "little")
    data = data.ljust((len(data) + 3) & ~3, b"\0")
    at, read = card.ring_at % size, card.ring_read % size
    free = (read - at - 1) % size
    if free < len(data):
        return False
    straight = size - at
    if control & regs.RX_NO_WRAP and control >> 11 & 3 != 3:
        straight = len(data)  # it runs on beyond the end, where the driver has left room
    card.dma.write(base + at, data[:straight])
    if straight < len(data):
        card.dma.write(base, data[straight:])
    card.ring_at = (at + len(data)) % size
    return True


def _fill_descriptor(card: RealtekCard, packet: bytes, why: int, plus: int) -> bool:
    place = card.wide(regs.RDSAR) + DESCRIPTOR_SIZE * card.rx_at
    command, tag = card.dma.number(place, 4), card.dma.number(place + 4, 4)
    if not command & _OWN:
        return False
    tag &= ~(_CP_TAGGED | 0xFFFF)
    if plus & regs.CP_VLAN and packet[12:14] == b"\x81\x00":
        tag |= _CP_TAGGED | int.from_bytes(packet[14:16], "little")
        packet = packet[:12] + packet[16:]
    if len(packet) + _CRC > command & _CP_SIZE:
        return False
    address = card.dma.number(place + 8, 8)
    card.dma.write(address, packet + zlib.crc32(packet).to_bytes(4, "little"))
    told = {_IS_BROADCAST: _CP_BROADCAST, _IS_MULTICAST: _CP_MULTICAST, _IS_MINE: _CP_MINE}[why]
    status = command & _END_OF_RING | _FIRST | _LAST | told | len(packet) + _CRC
    card.dma.write(place, pack("<II", status, tag))
    card.rx_at = 0 if command & _END_OF_RING else (card.rx_at + 1) % MAX_DESCRIPTORS
    return True

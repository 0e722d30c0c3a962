"""What the card takes off the wire: filters, and the receive ring (sections 3.2 and 13.4.22 to 13.5)."""

from __future__ import annotations

import zlib
from struct import Struct
from typing import TYPE_CHECKING

from qobra.machine.e1000 import regs

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.machine.e1000.core import GigabitCard

    Fill = Callable[[GigabitCard, bytes, int, int], bool]

_DESCRIPTOR_SIZE = 16
_WRITE_BACK = Struct("<HHBBH")
DONE, END_OF_PACKET, IGNORE_CHECKSUM, _VLAN_PACKET = 0x01, 0x02, 0x04, 0x08
_VALID = 0x80000000
_ADDRESSES = 16
_HASH_SHIFTS = (4, 3, 2, 0)
_MIN_PACKET, _MAX_PACKET, _MAX_LONG = 60, 1522, 16384
_BROADCAST = b"\xff" * 6


def wanted(card: GigabitCard, packet: bytes) -> bool:
    """Whether the filters let ``packet`` through."""
    control, target = card.register(regs.RCTL), packet[:6]
    if control & regs.RX_VLAN_FILTER and _is_tagged(card, packet):
        vlan = int.from_bytes(packet[14:16], "big") & 0xFFF
        if not card.register(regs.VFTA + 4 * (vlan >> 5)) >> (vlan & 31) & 1:
            return False
    if target == _BROADCAST:
        return bool(control & (regs.RX_BROADCAST | regs.RX_ALL_MULTICAST)) or _in_table(card, target)
    multicast = target[0] & 1
    if control & (regs.RX_ALL_MULTICAST if multicast else regs.RX_ALL_UNICAST):
        return True
    for number in range(_ADDRESSES):
        high = card.register(regs.RA + 8 * number + 4)
        if high & _VALID:
            address = card.register(regs.RA + 8 * number).to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little")
            if address == target:
                return True
    return bool(multicast) and _in_table(card, target)


def _in_table(card: GigabitCard, target: bytes) -> bool:
    shift = _HASH_SHIFTS[card.register(regs.RCTL) >> 12 & 3]
    index = (target[5] << 8 | target[4]) >> shift & 0xFFF
    return bool(card.register(regs.MTA + 4 * (index >> 5)) >> (index & 31) & 1)


def _is_tagged(card: GigabitCard, packet: bytes) -> bool:
    return len(packet) >= 16 and int.from_bytes(packet[12:14], "big") == card.register(regs.VET) & 0xFFFF


def receive(card: GigabitCard, packet: bytes, fill: Fill | None = None) -> None:
    """A packet came in: put it into the ring, or drop it.

    ``fill`` does it for descriptors of other forms than the card has had from the beginning.
    """
    control = card.register(regs.RCTL)
    packet = packet.ljust(_MIN_PACKET, b"\0")
    limit = _MAX_LONG if control & regs.RX_LONG else _MAX_PACKET
    if not control & regs.RX_ENABLED or len(packet) > limit or not wanted(card, packet):
        return
    status = tag = 0
    if card.register(regs.CTRL) & regs.CTRL_VLAN and _is_tagged(card, packet):
        tag, status = int.from_bytes(packet[14:16], "big"), _VLAN_PACKET
        packet = packet[:12] + packet[16:]
    data = packet
    if not control & regs.RX_STRIP_CRC:
        data += zlib.crc32(packet).to_bytes(4, "little")
    if not (fill or fill_plain)(card, data, status, tag):
        card.count(regs.MPC, 1)
        card.interrupt(regs.RXO)
        return
    card.count(regs.TPR, 1)
    card.count(regs.GPRC, 1)
    if packet[:6] == _BROADCAST:
        card.count(regs.BPRC, 1)
    elif packet[0] & 1:
        card.count(regs.MPRC, 1)
    for register in (regs.TORL, regs.GORCL):
        card.count_wide(register, len(packet) + 4)
    reasons = regs.RXT
    count = card.register(regs.RDLEN) // _DESCRIPTOR_SIZE
    free = (card.register(regs.RDT) - card.register(regs.RDH)) % count
    if free <= count >> ((control & regs.RX_THRESHOLD) >> 8) + 1:
        reasons |= regs.RXDMT
    card.interrupt(reasons)


def buffer_size(control: int) -> int:
    """Bytes of each buffer of the ring."""
    return (2048, 1024, 512, 256)[control >> 16 & 3] * (16 if control >> 25 & 1 and control >> 16 & 3 else 1)


def fill_plain(card: GigabitCard, data: bytes, status: int, tag: int) -> bool:
    """Put ``data`` into buffers of descriptors of the oldest form; False where there are not enough."""
    count = card.register(regs.RDLEN) // _DESCRIPTOR_SIZE
    head, tail, size = card.register(regs.RDH), card.register(regs.RDT), buffer_size(card.register(regs.RCTL))
    needed = -(-len(data) // size)
    if not count or head >= count or (tail - head) % count < needed:
        return False
    base = card.ring_base(regs.RDBAL)
    for at in range(0, len(data), size):
        place = base + head * _DESCRIPTOR_SIZE
        address, piece = card.dma.number(place, 8), data[at : at + size]
        if address:  # a null address is skipped
            card.dma.write(address, piece)
        last = END_OF_PACKET | IGNORE_CHECKSUM if at + size >= len(data) else 0
        card.dma.write(place + 8, _WRITE_BACK.pack(len(piece), 0, status | DONE | last, 0, tag))
        head = (head + 1) % count
    card.set_register(regs.RDH, head)
    return True

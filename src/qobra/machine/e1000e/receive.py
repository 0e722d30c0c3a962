"""Receive descriptors of the later forms: extended ones, and those with four buffers (sections 7.1.5 and 7.1.7)."""

from __future__ import annotations

from struct import Struct

from qobra.machine.e1000 import receive
from qobra.machine.e1000 import regs as old
from qobra.machine.e1000.core import GigabitCard
from qobra.machine.e1000e import regs

_EXTENDED = Struct("<IIIHH")
_SPLIT = Struct("<IIIHHHHHHQ")


def put_into_ring(card: GigabitCard, packet: bytes) -> None:
    """A packet came in: put it into the first ring, or drop it."""
    fill = None
    if card.register(regs.RFCTL) & regs.RX_EXTENDED:
        fill = fill_split if card.register(old.RCTL) & regs.RX_PACKET_SPLIT else fill_extended
    receive.receive(card, packet, fill)


def fill_extended(card: GigabitCard, data: bytes, status: int, tag: int) -> bool:
    """Descriptors with an address that gives way to what is told of the packet; False where there are not enough."""
    return _fill(card, data, status, tag, [receive.buffer_size(card.register(old.RCTL))], 16)


def fill_split(card: GigabitCard, data: bytes, status: int, tag: int) -> bool:
    """Descriptors with four buffers, which are filled one after another: headers have none of their own."""
    sizes = card.register(regs.PSRCTL)
    buffers = [(sizes & 0x7F) << 7, (sizes >> 8 & 0x3F) << 10, (sizes >> 16 & 0x3F) << 10, (sizes >> 24 & 0x3F) << 10]
    return _fill(card, data, status, tag, buffers, 32)


def _fill(card: GigabitCard, data: bytes, status: int, tag: int, buffers: list[int], size: int) -> bool:
    count, room = card.register(old.RDLEN) // size, sum(buffers)
    head, tail = card.register(old.RDH), card.register(old.RDT)
    if not count or not room or head >= count or (tail - head) % count < -(-len(data) // room):
        return False
    base = card.ring_base(old.RDBAL)
    for at in range(0, len(data), room):
        place, lengths, position = base + head * size, [], at
        for number, length in enumerate(buffers):
            piece = data[position : min(position + length, at + room)]
            address = card.dma.number(place + 8 * number, 8)
            if piece and address:  # a null address is skipped
                card.dma.write(address, piece)
            lengths.append(len(piece))
            position += len(piece)
        told = status | receive.DONE
        if at + room >= len(data):
            told |= receive.END_OF_PACKET | receive.IGNORE_CHECKSUM
        if size == _EXTENDED.size:
            card.dma.write(place, _EXTENDED.pack(0, 0, told, lengths[0], tag))
        else:
            card.dma.write(place, _SPLIT.pack(0, 0, told, lengths[0], tag, 0, *lengths[1:], 0))
        head = (head + 1) % count
    card.set_register(old.RDH, head)
    return True

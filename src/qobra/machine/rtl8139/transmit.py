"""What the card sends: by four descriptors in registers (section 6.2), or by rings of them in C+ mode (6.3)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from qobra.machine.rtl8139 import offload, regs
from qobra.machine.rtl8139.receive import DESCRIPTOR_SIZE, MAX_DESCRIPTORS

if TYPE_CHECKING:
    from qobra.machine.rtl8139.card import RealtekCard

_DESCRIPTOR = Struct("<IIQ")
_OWN, _END_OF_RING, _LAST, _LARGE = 1 << 31, 1 << 30, 1 << 28, 1 << 27
_IP_CHECKSUM, _UDP_CHECKSUM, _TCP_CHECKSUM = 1 << 18, 1 << 17, 1 << 16
_INSERT_TAG = 1 << 17
_MAX_PACKET = 64 << 10


def send_from_registers(card: RealtekCard) -> None:
    """Send what the four descriptors hold, from the one whose turn it is on."""
    for _ in range(4):
        number = card.tx_turn
        status = card.register(regs.TSD + 4 * number, 4)
        if status & regs.TSD_OWN or not card.register(regs.CR, 1) & regs.CR_TX:
            return
        address = card.register(regs.TSAD + 4 * number, 4)
        card.send(card.dma.read(address, status & regs.TSD_SIZE))
        card.set_register(regs.TSD + 4 * number, 4, status | regs.TSD_OWN | regs.TSD_OK)
        card.tx_turn = (number + 1) % 4
        card.interrupt(regs.TOK)


def send_from_ring(card: RealtekCard) -> None:
    """Send what the ring of normal priority holds."""
    if not card.register(regs.CR, 1) & regs.CR_TX or not card.register(regs.CPCR, 2) & regs.CP_TX:
        return
    base, packet = card.wide(regs.TSAD), bytearray()
    first_tag = None
    for _ in range(MAX_DESCRIPTORS):
        place = base + DESCRIPTOR_SIZE * card.tx_at
        command, tag, address = _DESCRIPTOR.unpack(card.dma.read(place, DESCRIPTOR_SIZE))
        if not command & _OWN:
            card.interrupt(regs.TX_UNAVAILABLE)
            return
        packet += card.dma.read(address, min(command & 0xFFFF, _MAX_PACKET - len(packet)))
        if first_tag is None:
            first_tag = tag
        card.tx_at = 0 if command & _END_OF_RING else (card.tx_at + 1) % MAX_DESCRIPTORS
        card.dma.write(place, (command & ~_OWN).to_bytes(4, "little"))
        if command & _LAST:
            _send(card, bytes(packet), command, first_tag)
            packet, first_tag = bytearray(), None
            card.interrupt(regs.TOK)


def _send(card: RealtekCard, packet: bytes, command: int, tag: int) -> None:
    if command & _LARGE:
        pieces = offload.cut(packet, command >> 16 & 0x7FF)
    else:
        pieces = [
            offload.with_checksums(
                packet, ip=bool(command & _IP_CHECKSUM), payload=bool(command & (_TCP_CHECKSUM | _UDP_CHECKSUM))
            )
        ]
    for piece in pieces:
        if tag & _INSERT_TAG:
            piece = piece[:12] + b"\x81\x00" + (tag & 0xFFFF).to_bytes(2, "little") + piece[12:]
        card.send(piece)

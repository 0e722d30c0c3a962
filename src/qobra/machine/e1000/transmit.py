"""The transmit ring: descriptors, checksums, and the cutting of long TCP and UDP packets (sections 3.3 to 3.5)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from qobra.machine.e1000 import regs
from qobra.machine.vmstate import Number, VmState, flag, listed, part, raw, u32

if TYPE_CHECKING:
    from qobra.machine.e1000.core import GigabitCard

_DESCRIPTOR = Struct("<QII")
_SIZE = 16
_CONTEXT = Struct("<BBHBBHII")
_END_OF_PACKET, _OLD_CHECKSUM, _SEGMENT, _REPORT, _REPORT_SENT = 0x01, 0x04, 0x04, 0x08, 0x10
_EXTENDED, _VLAN = 0x20, 0x40
_TCP, _IPV4 = 0x01, 0x02
_INSERT_IP, _INSERT_TCP = 0x01, 0x02
_DONE = 0x01
_MAX_PACKET = 64 << 10
_PUSH_FINISH = 0x09


class Context:
    """What a context descriptor says: where the headers begin, where their checksums go, how to cut."""

    vmstate = VmState(listed("_values", kind=Number(4)))

    def __init__(self, values: tuple[int, ...] = (0,) * 8) -> None:
        self._values = list(values)

    @property
    def ip(self) -> tuple[int, int, int]:
        """Start of the IP header, place of its checksum, last byte that counts (0: all)."""
        start, place, end = self._values[0:3]
        return start, place, end

    @property
    def payload(self) -> tuple[int, int, int]:
        """The same for the TCP or UDP header."""
        start, place, end = self._values[3:6]
        return start, place, end

    @property
    def is_tcp(self) -> bool:
        """Whether that is TCP, not UDP."""
        return bool(self._values[6] >> 24 & _TCP)

    @property
    def is_ipv4(self) -> bool:
        """Whether below it is IPv4, not IPv6."""
        return bool(self._values[6] >> 24 & _IPV4)

    @property
    def length(self) -> int:
        """Bytes of payload that are to be cut."""
        return self._values[6] & 0xFFFFF

    @property
    def header_length(self) -> int:
        """Bytes of headers before it."""
        return self._values[7] >> 8 & 0xFF

    @property
    def segment(self) -> int:
        """Bytes of payload in each packet."""
        return self._values[7] >> 16


class Transmitter:
    """A ring of ``card``, whose registers are ``ring`` bytes after the first one's, and the packet that is being put
    together, which is never longer than 64 KiB.
    """

    vmstate = VmState(
        raw("_packet", maximum=_MAX_PACKET), u32("_options", "_tag"), flag("_cut"), part("context", "cutting")
    )

    def __init__(self, card: GigabitCard, ring: int = 0) -> None:
        self._card = card
        self._ring = ring
        self.reset()

    def reset(self) -> None:
        """Nothing is under way."""
        self._packet = bytearray()
        self._options = self._tag = 0
        self._cut = False
        self.context = Context()
        """For packets that only have checksums."""
        self.cutting = Context()
        """For those that are cut."""

    def run(self) -> None:
        """Send what the driver has put into the ring."""
        card, ring = self._card, self._ring
        count = card.register(regs.TDLEN + ring) // _SIZE
        head, tail = card.register(regs.TDH + ring), card.register(regs.TDT + ring)
        if not card.register(regs.TCTL) & regs.TX_ENABLED or not count or head >= count:
            return
        base, reasons = card.ring_base(regs.TDBAL + ring), 0
        for _ in range(count):
            if head == tail:
                break
            place = base + head * _SIZE
            reasons |= self._descriptor(place, card.dma.read(place, _SIZE))
            head = (head + 1) % count
        card.set_register(regs.TDH + ring, head)
        card.transmitted(ring, reasons)

    def _descriptor(self, place: int, raw: bytes) -> int:
        address, lower, upper = _DESCRIPTOR.unpack(raw)
        command = lower >> 24
        if command & _EXTENDED and not lower >> 20 & 15:
            context = Context(_CONTEXT.unpack(raw))
            if command & _SEGMENT:
                self.cutting = context
            else:
                self.context = context
        elif command & _EXTENDED:
            if not self._packet:
                self._options = upper >> 8 & 0xFF
            self._cut = bool(command & _SEGMENT)
            self._gather(address, lower & 0xFFFFF, command, upper)
        else:
            self._cut, self._options = False, 0
            self._gather(address, lower & 0xFFFF, command, upper, checksum=(upper >> 8 & 0xFF, lower >> 16 & 0xFF))
        if not command & (_REPORT | _REPORT_SENT):
            return 0
        self._card.dma.write(place + 12, (upper & ~0x0E | _DONE).to_bytes(4, "little"))
        return regs.TXDW

    def _gather(
        self, address: int, length: int, command: int, upper: int, *, checksum: tuple[int, int] | None = None
    ) -> None:
        room = _MAX_PACKET - len(self._packet)
        self._packet += self._card.dma.read(address, min(length, room))
        if command & _VLAN and self._card.register(regs.CTRL) & regs.CTRL_VLAN:
            self._tag = 1 << 16 | upper >> 16
        if not command & _END_OF_PACKET:
            return
        packet, self._packet = self._packet, bytearray()
        if checksum is not None:
            if command & _OLD_CHECKSUM:
                insert_checksum(packet, checksum[0], checksum[1], 0)
            self._send(packet)
        elif self._cut:
            self._send_in_pieces(packet)
        else:
            self._send_with_checksums(packet, self.context)
        self._tag = 0

    def _send_in_pieces(self, packet: bytearray) -> None:
        context = self.cutting
        header, size = context.header_length, context.segment
        if not header or not size or len(packet) <= header:
            self._send_with_checksums(packet, context)
            return
        payload = memoryview(packet)[header : header + context.length] if context.length else packet[header:]
        for number, at in enumerate(range(0, len(payload), size)):
            piece = packet[:header] + payload[at : at + size]
            self._renumber(piece, context, number, at, last=at + size >= len(payload))
            self._send_with_checksums(piece, context)
        self._card.count(regs.TSCTC, 1)

    def _renumber(self, piece: bytearray, context: Context, number: int, at: int, *, last: bool) -> None:
        start = context.ip[0]
        if context.is_ipv4:
            _set(piece, start + 2, 2, len(piece) - start)
            _set(piece, start + 4, 2, _get(piece, start + 4, 2) + number)
        else:
            _set(piece, start + 4, 2, len(piece) - start - 40)
        start, place, _end = context.payload
        length = len(piece) - start
        if context.is_tcp:
            _set(piece, start + 4, 4, _get(piece, start + 4, 4) + at)
            if not last and start + 13 < len(piece):
                piece[start + 13] &= ~_PUSH_FINISH & 0xFF
        else:
            _set(piece, start + 4, 2, length)
        # The driver has put the sum of the pseudo header there, without the length, which it does not know.
        sum = _get(piece, place, 2) + (length & 0xFFFF)
        _set(piece, place, 2, (sum & 0xFFFF) + (sum >> 16))

    def _send_with_checksums(self, packet: bytearray, context: Context) -> None:
        if self._options & _INSERT_TCP:
            start, place, end = context.payload
            insert_checksum(packet, start, place, end)
        if self._options & _INSERT_IP:
            start, place, end = context.ip
            insert_checksum(packet, start, place, end)
        self._send(packet)

    def _send(self, packet: bytearray) -> None:
        if self._tag:
            tag = self._card.register(regs.VET).to_bytes(4, "big")[2:] + (self._tag & 0xFFFF).to_bytes(2, "big")
            packet = packet[:12] + tag + packet[12:]
        if len(packet) > 14:
            self._card.send_packet(bytes(packet))


def insert_checksum(packet: bytearray, start: int, place: int, end: int) -> None:
    """Put the Internet checksum of ``start`` to ``end`` (the last byte; 0: all) at ``place``."""
    stop = min(end + 1, len(packet)) if end else len(packet)
    if start >= stop or place + 1 >= stop:
        return
    data = bytes(packet[start:stop])
    if len(data) & 1:
        data += b"\0"
    total = int.from_bytes(data, "big") % 0xFFFF if any(data) else 0
    _set(packet, place, 2, 0xFFFF - total)


def _get(packet: bytearray, at: int, width: int) -> int:
    return int.from_bytes(packet[at : at + width], "big")


def _set(packet: bytearray, at: int, width: int, value: int) -> None:
    if at + width <= len(packet):
        packet[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "big")

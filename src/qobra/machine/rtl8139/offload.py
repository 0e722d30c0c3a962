"""Checksums of IPv4, TCP and UDP that the card puts in, and long TCP packets that it cuts (RFC 791, 793, 768, 1071)."""

from __future__ import annotations

_ETHERNET, _IPV4 = 14, b"\x08\x00"
_TCP, _UDP = 6, 17
_CHECKSUM_AT = {_TCP: 16, _UDP: 6}
_PUSH_FINISH = 0x09
_MIN_IP, _MIN_TCP = 20, 20


def _sum(data: bytes) -> int:
    if len(data) & 1:
        data += b"\0"
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF if any(data) else 0xFFFF


def _header_length(packet: bytes) -> int:
    """Bytes of the IPv4 header; 0 if there is none that is whole."""
    if packet[12:14] != _IPV4 or len(packet) < _ETHERNET + _MIN_IP or packet[_ETHERNET] >> 4 != 4:
        return 0
    length = (packet[_ETHERNET] & 15) * 4
    return length if _MIN_IP <= length <= len(packet) - _ETHERNET else 0


def with_checksums(packet: bytes, *, ip: bool, payload: bool) -> bytes:
    """``packet`` with the checksum of its IPv4 header and of what that carries."""
    length = _header_length(packet)
    if not length or not (ip or payload):
        return packet
    made = bytearray(packet)
    end = min(_ETHERNET + int.from_bytes(made[16:18], "big"), len(made))
    start, protocol = _ETHERNET + length, made[23]
    place = start + _CHECKSUM_AT.get(protocol, len(made))
    if payload and place + 2 <= end:
        made[place : place + 2] = bytes(2)
        pseudo = bytes(made[26:34]) + bytes((0, protocol)) + (end - start).to_bytes(2, "big")
        value = _sum(pseudo + bytes(made[start:end]))
        made[place : place + 2] = (value or (0xFFFF if protocol == _UDP else 0)).to_bytes(2, "big")
    if ip:
        made[24:26] = bytes(2)
        made[24:26] = _sum(bytes(made[_ETHERNET:start])).to_bytes(2, "big")
    return bytes(made)


def cut(packet: bytes, size: int) -> list[bytes]:
    """A TCP packet as several with ``size`` bytes of payload each; as it is, if it is none."""
    length = _header_length(packet)
    start = _ETHERNET + length
    if not length or not size or packet[23] != _TCP or len(packet) < start + _MIN_TCP:
        return [packet]
    begin = start + (packet[start + 12] >> 4) * 4
    if begin < start + _MIN_TCP or begin >= len(packet):
        return [packet]
    pieces = []
    sequence, identity = int.from_bytes(packet[start + 4 : start + 8], "big"), int.from_bytes(packet[18:20], "big")
    for number, at in enumerate(range(begin, len(packet), size)):
        piece = bytearray(packet[:begin] + packet[at : at + size])
        piece[16:18] = (len(piece) - _ETHERNET).to_bytes(2, "big")
        piece[18:20] = (identity + number & 0xFFFF).to_bytes(2, "big")
        piece[start + 4 : start + 8] = (sequence + at - begin & 0xFFFFFFFF).to_bytes(4, "big")
        if at + size < len(packet):
            piece[start + 13] &= ~_PUSH_FINISH & 0xFF
        pieces.append(with_checksums(bytes(piece), ip=True, payload=True))
    return pieces

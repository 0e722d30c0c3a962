"""The registers that say what an SD card is: CID, CSD, SCR, and its status (Physical Layer 6.00, chapter 5)."""

from __future__ import annotations

_MAX_STANDARD = 2 << 30
_MULTIPLIER = 7


def is_high_capacity(length: int) -> bool:
    """Whether a card of so many bytes counts its addresses in blocks."""
    return length > _MAX_STANDARD


def cid() -> bytes:
    """Who made the card, without regard to this one: what drivers know of QEMU's."""
    return _with_crc(b"\xaaXYQEMU!\x01\xde\xad\xbe\xef\x00\x62")


def csd(length: int, *, read_only: bool) -> bytes:
    """How large the card is, and what it can do."""
    protected = 0x10 if read_only else 0
    if is_high_capacity(length):
        size = max(length // (512 << 10) - 1, 0)
        return _with_crc(
            b"\x40\x0e\x00\x32\x5b\x59\x00" + size.to_bytes(3, "big") + b"\x7f\x80\x0a\x40" + bytes((protected,))
        )
    block = 10 if length > 1 << 30 else 9
    # The size is (c_size + 1) << (multiplier + 2 + block).
    c_size = max((length >> _MULTIPLIER + 2 + block) - 1, 0) & 0xFFF
    value = 0
    for high, field in (
        (119, 0x26), (103, 0x32), (95, 0x5F5), (83, block), (79, 1), (78, 1), (77, 1), (73, c_size), (61, 0xFFF),
        (49, _MULTIPLIER), (46, 1), (45, 0x3F), (38, 0x7F), (31, 1), (28, 4), (25, block), (21, 1),
    ):  # fmt: skip
        value |= field << high - _WIDTHS.get(high, 1) + 1
    data = bytearray(value.to_bytes(16, "big")[:15])
    data[14] |= protected
    return _with_crc(bytes(data))


_WIDTHS = {119: 8, 103: 8, 95: 12, 83: 4, 73: 12, 61: 12, 49: 3, 45: 7, 38: 7, 28: 3, 25: 4}
"""Widths of the fields by their highest bit; the others are flags."""

SCR = b"\x02\x25\x00\x00\x00\x00\x00\x00"
"""Version 2, one and four data lines."""


def status(*, wide: bool) -> bytes:
    """The 64 bytes of SD status."""
    return bytes((0x80 if wide else 0,)) + bytes(63)


def functions(argument: int) -> bytes:
    """What CMD6 tells of the functions that could be switched to, and the ones that ``argument`` asks for."""
    supported = (0x8001, 0x8001, 0x8001, 0x8001, 0x8043, 0x8003)  # from group 6 on
    data = (1).to_bytes(2, "big") + b"".join(each.to_bytes(2, "big") for each in supported)
    return (data + (argument & 0xFFFFFF).to_bytes(3, "big")).ljust(64, b"\0")


def _with_crc(data: bytes) -> bytes:
    crc = 0
    for byte in data:
        for bit in range(7, -1, -1):
            carry = (crc >> 6 ^ byte >> bit) & 1
            crc = crc << 1 & 0x7F ^ (0x09 if carry else 0)
    return data + bytes((crc << 1 | 1,))

"""The registers that say what an SD card is: CID, CSD, SCR, and its status (Physical Layer 6.00, chapter 5)."""

from __future__ import annotations

_MAX_STANDARD = 2 << 30


def is_high_capacity(length: int) -> bool:
    """Whether a card of so many bytes counts its addresses in blocks."""
    return length > _MAX_STANDARD


def cid() -> bytes:
    """Who made the card, without regard to this one."""
    return _with_crc(b"\xaaXYQOBRA\x01\x00\x00\x00\x01\x01\x6a")


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
    multiplier = 7
    while multiplier and length < 4096 << multiplier + 2 + block:
        multiplier -= 1
    c_size = max((length >> multiplier + 2 + block) - 1, 0) & 0xFFF
    value = 0
    for high, field in (
        (119, 0x26 << 0), (103, 0x32), (95, 0x5B5), (83, block), (79, 1), (73, c_size), (61, 0xFFF),
        (49, multiplier), (46, 1), (45, 0x7F), (38, 0x1F), (28, 2), (25, block),
    ):  # fmt: skip
        value |= field << high - _WIDTHS[high] + 1
    data = bytearray(value.to_bytes(16, "big")[:15])
    data[14] |= protected
    return _with_crc(bytes(data))


_WIDTHS = {119: 8, 103: 8, 95: 12, 83: 4, 79: 1, 73: 12, 61: 12, 49: 3, 46: 1, 45: 7, 38: 7, 28: 3, 25: 4}

SCR = b"\x02\x25\x00\x00\x00\x00\x00\x00"
"""Version 2, one and four data lines."""


def status(*, wide: bool) -> bytes:
    """The 64 bytes of SD status."""
    return bytes((0x80 if wide else 0,)) + bytes(63)


def functions() -> bytes:
    """What CMD6 can switch: nothing but the default of each group."""
    data = bytearray(64)
    data[0:2] = b"\x00\x64"  # mA
    for group in range(6):
        data[2 + 2 * group : 4 + 2 * group] = b"\x00\x01"
    return bytes(data)


def _with_crc(data: bytes) -> bytes:
    crc = 0
    for byte in data:
        for bit in range(7, -1, -1):
            carry = (crc >> 6 ^ byte >> bit) & 1
            crc = crc << 1 & 0x7F ^ (0x09 if carry else 0)
    return data + bytes((crc << 1 | 1,))

"""From what is in memory to blue, green, red: palettes as tables for :meth:`bytes.translate`, and deeper pixels."""

from __future__ import annotations

from functools import lru_cache

from qobra.machine.vga import registers as vga
from qobra.machine.vga.registers import VgaRegisters

Tables = tuple[bytes, bytes, bytes]
"""Blue, green and red of each of 256 values."""

_NIBBLE_PALETTE = 0x80


def palette(dac: bytes, *, wide: bool) -> Tables:
    """The 256 colours of the converter, whose channels have eight bits if ``wide``, else six."""
    channels = dac if wide else bytes(map(_SIX_BITS.__getitem__, dac))
    return channels[2::3], channels[1::3], channels[0::3]


_SIX_BITS = bytes((value & 0x3F) << 2 | (3 if value & 1 else 0) for value in range(256))


def sixteen(registers: VgaRegisters) -> Tables:
    """The colours of values of four bits, by the attribute controller; the tables repeat them. They have six bits."""
    attr = registers.attr
    if attr[vga.ATTR_MODE] & _NIBBLE_PALETTE:
        table = bytes((attr[vga.ATTR_PAGE] & 0xF) << 4 | (attr[i] & 0xF) for i in range(16))
    else:
        table = bytes((attr[vga.ATTR_PAGE] & 0xC) << 4 | (attr[i] & 0x3F) for i in range(16))
    blue, green, red = ((table * 16).translate(each) for each in palette(bytes(registers.dac), wide=False))
    return blue, green, red


def pixels(values: bytes, colours: Tables) -> bytes:
    """Pixels of four bytes for values of one."""
    out = bytearray(4 * len(values))
    out[0::4], out[1::4], out[2::4] = (values.translate(each) for each in colours)
    return bytes(out)


# -- pixels without a palette


@lru_cache(maxsize=3)
def _high_colour(green_bits: int, *, full: bool) -> tuple[Tables, Tables]:
    """What the low and the high byte of a pixel of 15 or 16 bits add to blue, green and red.

    Channels of fewer than eight bits reach white if ``full``; else their low bits are zero.
    """
    red_shift = 5 + green_bits

    def widen(value: int, bits: int) -> int:
        return value << 8 - bits | (value << 8 - bits >> bits if full else 0)

    sides: list[Tables] = []
    for shift in (0, 8):
        words = [byte << shift for byte in range(256)]
        sides.append(
            (
                bytes(widen(word & 0x1F, 5) for word in words),
                bytes(widen(word >> 5 & (1 << green_bits) - 1, green_bits) for word in words),
                bytes(widen(word >> red_shift & 0x1F, 5) for word in words),
            )
        )
    return sides[0], sides[1]


def direct(data: bytes, depth: int, *, big_endian: bool) -> bytes:
    """Pixels of four bytes for those in memory, of ``depth`` 15, 16, 24 or 32 bits."""
    if depth == 32 and not big_endian:
        return data
    if depth in (24, 32):
        step = depth // 8
        order = (step - 1, step - 2, step - 3) if big_endian else (0, 1, 2)
        out = bytearray(len(data) // step * 4)
        for channel, place in enumerate(order):
            out[channel::4] = data[place::step]
        return bytes(out)
    low, high = (data[1::2], data[0::2]) if big_endian else (data[0::2], data[1::2])
    out = bytearray(2 * len(data))
    tables = _high_colour(depth - 10, full=depth == 16 and not big_endian)
    for channel, (of_low, of_high) in enumerate(zip(*tables, strict=True)):
        out[channel::4] = _either(low.translate(of_low), high.translate(of_high))
    return bytes(out)


def _either(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") | int.from_bytes(other, "little")).to_bytes(len(one), "little")

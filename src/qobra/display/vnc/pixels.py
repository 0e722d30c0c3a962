"""Pixels as a client wants them (RFC 6143, section 7.4)."""

from __future__ import annotations

import sys
from array import array
from struct import Struct

from qobra.display.surface import BGRX, Surface
from qobra.errors import QobraError

_FORMAT = Struct(">BBBBHHHBBB3x")
_CODES = {8: "B", 16: "H", 32: "I"}
_CHANNELS = 3


class ClientFormat:
    """How many ``bits`` a pixel has, in which order of bytes, and the largest value and the place of each channel."""

    def __init__(self, packed: bytes) -> None:
        """From the 16 bytes of a message. Raises QobraError for what no client may ask for."""
        bits, _depth, big_endian, true_colour, *rest = _FORMAT.unpack(packed)
        if bits not in _CODES:
            raise QobraError(f"{bits} bits per pixel")
        self.mapped = not true_colour
        if self.mapped:
            bits, rest = 8, [7, 7, 3, 0, 3, 6]
        self.bits, self.big_endian = bits, bool(big_endian)
        self.maxima, self.shifts = rest[:_CHANNELS], rest[_CHANNELS:]
        if any(shift >= bits for shift in self.shifts):
            raise QobraError("a channel lies outside of the pixel")
        mask = (1 << bits) - 1
        self._tables = [
            [(value * most // 255 << shift) & mask for value in range(256)]
            for most, shift in zip(self.maxima, self.shifts, strict=True)
        ]
        self._places = self._whole_bytes()

    def _whole_bytes(self) -> list[int] | None:
        """At which byte red, green and blue are, if each has one."""
        if self.bits != 32 or self.maxima != [255] * _CHANNELS or any(shift % 8 for shift in self.shifts):
            return None
        return [3 - shift // 8 if self.big_endian else shift // 8 for shift in self.shifts]

    def convert(self, surface: Surface, x: int, y: int, width: int, height: int) -> bytes:
        """The pixels of a rectangle that lies in ``surface``, row by row."""
        return b"".join(self._row(surface, x, row, width) for row in range(y, y + height))

    def _row(self, surface: Surface, x: int, y: int, width: int) -> bytes:
        start = surface.offset + y * surface.stride + 4 * x
        pixels = bytes(surface.data[start : start + 4 * width])
        order = (surface.format.red, surface.format.green, surface.format.blue)
        if self._places is not None:
            if list(order) == self._places:
                return pixels
            shuffled = bytearray(4 * width)
            for place, channel in zip(self._places, order, strict=True):
                shuffled[place::4] = pixels[channel::4]
            return bytes(shuffled)
        red, green, blue = self._tables
        channels = zip(*(pixels[channel::4] for channel in order), strict=True)
        values = array(_CODES[self.bits], [red[r] | green[g] | blue[b] for r, g, b in channels])
        if self.big_endian != (sys.byteorder == "big"):
            values.byteswap()
        return values.tobytes()

    def colour_map(self) -> bytes:
        """The message that says what the values of a mapped pixel look like."""
        entries = bytearray()
        for value in range(256):
            for most, shift in zip(self.maxima, self.shifts, strict=True):
                entries += ((value >> shift & most) * 65535 // most).to_bytes(2, "big")
        return b"\x01\0\0\0\x01\0" + bytes(entries)


NATIVE = _FORMAT.pack(32, 24, 0, 1, 255, 255, 255, 8 * BGRX.red, 8 * BGRX.green, 8 * BGRX.blue)
"""What a client gets that asks for nothing else."""

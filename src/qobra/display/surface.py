"""Pictures in memory: rows of 32-bit pixels, in one of the orders that graphics cards know."""

from __future__ import annotations

WIDTH_MAX = HEIGHT_MAX = 16384


class PixelFormat:
    """Where red, green and blue are in the four bytes of a pixel; the fourth byte is not shown."""

    __slots__ = ("blue", "green", "red")

    def __init__(self, red: int, green: int, blue: int) -> None:
        self.red = red
        self.green = green
        self.blue = blue


BGRX = PixelFormat(2, 1, 0)
"""Blue first: what PCs call 32 bits per pixel."""


class Surface:
    """A rectangle of pixels in ``data``: ``height`` rows, ``stride`` bytes apart, from ``offset`` on.

    The bytes are those of the device: what it draws is seen at once.
    """

    __slots__ = ("data", "format", "height", "offset", "stride", "width")

    def __init__(
        self, width: int, height: int, data: bytearray, *, format: PixelFormat = BGRX, offset: int = 0, stride: int = 0
    ) -> None:
        self.width = width
        self.height = height
        self.data = data
        self.format = format
        self.offset = offset
        self.stride = stride or 4 * width

    @classmethod
    def blank(cls, width: int, height: int) -> Surface:
        """A black picture."""
        return cls(width, height, bytearray(4 * width * height))

    def row(self, y: int) -> bytes:
        """Row ``y`` as red, green and blue, a byte each."""
        start = self.offset + y * self.stride
        pixels = bytes(self.data[start : start + 4 * self.width])
        row = bytearray(3 * self.width)
        for place, channel in enumerate((self.format.red, self.format.green, self.format.blue)):
            row[place::3] = pixels[channel::4]
        return bytes(row)

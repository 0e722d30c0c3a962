"""Pictures as files: portable pixmap (netpbm's ppm(5), P6) and PNG (W3C, second edition)."""

from __future__ import annotations

import zlib
from struct import pack

from qobra.display.surface import Surface

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRUE_COLOUR = 2


def ppm(surface: Surface) -> bytes:
    """The picture as a portable pixmap."""
    rows = b"".join(surface.row(y) for y in range(surface.height))
    return b"P6\n%d %d\n255\n" % (surface.width, surface.height) + rows


def png(surface: Surface) -> bytes:
    """The picture as a PNG file."""
    header = pack(">IIBBBBB", surface.width, surface.height, 8, _TRUE_COLOUR, 0, 0, 0)
    rows = b"".join(b"\0" + surface.row(y) for y in range(surface.height))
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


WRITERS = {"ppm": ppm, "png": png}
"""How a picture becomes a file, by ImageFormat of the reference."""

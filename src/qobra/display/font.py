"""The characters of text consoles: the 95 of ASCII, drawn for this, in cells of 8 x 16 dots.

Each is drawn on a grid of 5 x 9, whose last two rows lie below the line of writing; every second row is made twice as
high, so that strokes across stay thin.
"""

from __future__ import annotations

WIDTH, HEIGHT = 8, 16
_FIRST, _LAST = 0x20, 0x7E
_ROWS = 9
_ABOVE = 2
_HEIGHTS = (1, 2, 1, 2, 1, 2, 1, 2, 1)

# Nine rows a character, each a digit to the base of 32: its five bits are the dots from left to right.
_DRAWN = (
    "000000000444440400aaa000000aavavaa004fke5u400op248j300cik8lid0044800000024888420084222480004lel4000044v44000"
    "000004480000v0000000000cc0011248gg00ehjlphe004c4444e00eh1248v00v2421he0026aiv2200vgu11he0068guhhe00v12444400"
    "ehhehhe00ehhf12c0000cc0cc0000cc0c480248g8420000v0v0000842124800eh1240400eh1dlle004ahhvhh00uhhuhhu00ehggghe00"
    "sihhhis00vgguggv00vgguggg00ehgnhhf00hhhvhhh00e44444e0072222ic00hikokih00ggggggv00hrllhhh00hhpljhh00ehhhhhe00"
    "uhhuggg00ehhhlid00uhhukih00fgge11u00v44444400hhhhhhe00hhhhha400hhhllrh00hha4ahh00hha444400v1248gv00e88888e00"
    "gg8421100e22222e004ah00000000000000v84200000000e1fhf00gguhhhu0000ehghe0011fhhhf0000ehvge00698s8880000fhhhf1e"
    "ggmphhh0040c444e002062222icggikoki00c44444e0000qllll0000mphhh0000ehhhe0000uhhhugg00fhhhf1100mpggg0000fge1u00"
    "88s88960000hhhjd0000hhha40000hhlla0000ha4ah0000hhhhf1e00v248v00244844200444444400844244800008l20000"
)
_UNKNOWN = "vhhhhhv00"
"""What stands for a byte that is no character of ASCII."""


def _drawn(code: int) -> str:
    at = _ROWS * (code - _FIRST)
    return _DRAWN[at : at + _ROWS] if _FIRST <= code <= _LAST else _UNKNOWN


def _glyph(rows: str) -> bytes:
    lines = bytes(_ABOVE) + b"".join(
        bytes((int(row, 32),)) * height for row, height in zip(rows, _HEIGHTS, strict=True)
    )
    return lines.ljust(HEIGHT, b"\0")


def lines() -> list[bytes]:
    """For each line of a cell a table of 256: the five dots of each character there, as a number below 32."""
    glyphs = [_glyph(_drawn(code)) for code in range(256)]
    return [bytes(glyph[line] for glyph in glyphs) for line in range(HEIGHT)]

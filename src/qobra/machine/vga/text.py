"""Text modes: characters from planes 0 and 1, their shapes from plane 2, and the cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine.vga import colours
from qobra.machine.vga import registers as vga
from qobra.machine.vga.frame import Frame

if TYPE_CHECKING:
    from qobra.machine.vga.core import VgaCore

_EIGHT_DOTS, _HALF_DOTS = 0x01, 0x08
_NINTH_DOT, _NINTH_DOT_FROM, _NINTH_DOT_TO = 0x04, 0xB0, 0xDF
_CURSOR_OFF, _SCAN_LINE = 0x20, 0x1F
_BLINK_NS = 16 * 10**9 // 70
"""A cursor is there for 16 frames and gone for as many, of 70 a second."""
_GLYPH = 32
_FONT = 256 * _GLYPH
_CELLS_MAX = 160 * 100
_WHOLE = b"\xff"
_DOTS = {8: tuple(bytes(0xFF * (value >> 7 - bit & 1) for bit in range(8)) for value in range(256))}
"""The dots of a scan line of a character, 0xff where it is set, by the width of a cell."""
_DOTS[9] = tuple(dots + b"\0" for dots in _DOTS[8])
_DOTS[16] = tuple(b"".join(dots[i : i + 1] * 2 for i in range(8)) for dots in _DOTS[8])
_JOINED = tuple(dots + dots[-1:] for dots in _DOTS[8])

Row = tuple[bytes, bytes, int]
"""Characters, attributes, and the column of the cursor (-1: none)."""


def frame(core: VgaCore) -> Frame | None:
    """The text that the registers show, or None where they make no picture."""
    registers, crtc = core.registers, core.registers.crtc
    cell_height = (crtc[vga.CRTC_ROW_SCAN] & _SCAN_LINE) + 1
    columns = crtc[vga.CRTC_WIDTH] + 1
    rows = registers.lines // cell_height
    if not 1 < columns * rows <= _CELLS_MAX:
        return None
    clocking = registers.seq[vga.SEQ_CLOCKING]
    cell_width = 16 if clocking & _HALF_DOTS else 8 if clocking & _EIGHT_DOTS else 9
    step, begins = crtc[vga.CRTC_OFFSET] << 3, 4 * registers.start
    cursor = _cursor(core)
    bands: list[Row] = []
    at, split = begins, registers.line_compare
    for number in range(rows):
        cells = core.bytes_at(at, 4 * columns)
        column = (cursor - at) // 4
        bands.append((cells[0::4], cells[1::4], column if cursor >= 0 and 0 <= column < columns else -1))
        at = 0 if number == split // cell_height else at + step
    drawing = _Drawing(core, cell_width, cell_height)
    size = columns * cell_width, rows * cell_height
    return Frame(*size, bands, drawing.row, look=drawing.look, band_height=cell_height)


def _cursor(core: VgaCore) -> int:
    """Where in memory the cell with the cursor is; -1 while none is shown."""
    crtc = core.registers.crtc
    if crtc[vga.CRTC_CURSOR_START] & _CURSOR_OFF or core.now_ns() // _BLINK_NS & 1:
        return -1
    return 4 * (crtc[vga.CRTC_CURSOR_HIGH] << 8 | crtc[vga.CRTC_CURSOR_LOW])


class _Drawing:
    """The fonts and colours of one frame. ``look`` tells it from others."""

    def __init__(self, core: VgaCore, cell_width: int, cell_height: int) -> None:
        registers, crtc = core.registers, core.registers.crtc
        self._width, self._height = cell_width, cell_height
        chosen = registers.seq[vga.SEQ_FONTS]
        banks = (chosen >> 4 & 1) | (chosen << 1 & 6), (chosen >> 5 & 1) | (chosen >> 1 & 6)
        # Each font by scan line: the shapes of all characters there.
        fonts = [core.bytes_at(4 * _FONT * bank, 4 * _FONT)[2::4] for bank in banks]
        self._fonts = [[font[line::_GLYPH] for line in range(cell_height)] for font in fonts]
        self._one_font = banks[0] == banks[1]
        self._joins = cell_width == 9 and bool(registers.attr[vga.ATTR_MODE] & _NINTH_DOT)
        self._colours = colours.sixteen(registers)
        first, last = crtc[vga.CRTC_CURSOR_START] & _SCAN_LINE, crtc[vga.CRTC_CURSOR_END] & _SCAN_LINE
        self._cursor_lines = range(first, min(last + 1, cell_height))
        self.look = (cell_width, cell_height, *fonts, self._joins, self._colours, self._cursor_lines)

    def row(self, row: Any) -> bytes:
        """The scan lines of a row of text."""
        characters, attributes, cursor = row
        width = self._width
        ink = self._across(bytes(each & 15 for each in attributes))
        paper = self._across(bytes(each >> 4 for each in attributes))
        change = ink ^ paper
        lines: list[bytes] = []
        for number in range(self._height):
            dots = bytearray(self._dots(number, characters, attributes))
            if cursor >= 0 and number in self._cursor_lines:
                dots[cursor * width : (cursor + 1) * width] = _WHOLE * width
            values = paper ^ (change & int.from_bytes(dots, "little"))
            lines.append(colours.pixels(values.to_bytes(len(dots), "little"), self._colours))
        return b"".join(lines)

    def _across(self, values: bytes) -> int:
        """A value for each cell, for each dot of it."""
        out = bytearray(self._width * len(values))
        for i in range(self._width):
            out[i :: self._width] = values
        return int.from_bytes(out, "little")

    def _dots(self, number: int, characters: bytes, attributes: bytes) -> bytes:
        first, second = (font[number] for font in self._fonts)
        shapes = characters.translate(first)
        if not self._one_font:
            others = characters.translate(second)
            shapes = bytes(
                other if attribute & 8 else shape
                for shape, other, attribute in zip(shapes, others, attributes, strict=True)
            )
        plain = _DOTS[self._width]
        if not self._joins:
            return b"".join(map(plain.__getitem__, shapes))
        return b"".join(
            (_JOINED if _NINTH_DOT_FROM <= character <= _NINTH_DOT_TO else plain)[shape]
            for shape, character in zip(shapes, characters, strict=True)
        )

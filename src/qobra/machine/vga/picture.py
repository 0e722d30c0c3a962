"""Which picture the registers and the memory make, in the order in which the beam would draw it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from qobra.machine.vga import colours, text
from qobra.machine.vga import registers as vga
from qobra.machine.vga.dispi import DEPTH, HEIGHT, WIDTH
from qobra.machine.vga.frame import Frame

if TYPE_CHECKING:
    from qobra.machine.vga.core import VgaCore

_GRAPHICS = 0x01
_SHIFT_MASK, _PLANES_TO_PIXELS, _PAIRS = 0x60, 0x00, 0x20
_HALF_DOTS = 0x08
_DOUBLE_SCAN, _SCAN_LINES = 0x80, 0x1F

_SPREAD = tuple(bytes(value >> 7 - bit & 1 for bit in range(8)) for value in range(256))
"""The eight bits of a byte, the highest first, a byte each."""
_SPREAD_PAIRS = tuple(bytes(value >> 6 - 2 * pair & 3 for pair in range(4)) for value in range(256))


def frame(core: VgaCore) -> Frame | None:
    """What is shown now; None while the card is dark."""
    registers = core.registers
    if not registers.shows:
        return None
    if core.dispi.on:
        return _bochs(core)
    if registers.gfx[vga.GFX_MISC] & _GRAPHICS:
        return _graphics(core)
    return text.frame(core)


def _bochs(core: VgaCore) -> Frame:
    dispi = core.dispi
    width, height, depth = dispi.registers[WIDTH], dispi.registers[HEIGHT], dispi.registers[DEPTH]
    length = width * dispi.bits // 8
    view = core.memory.view
    begins, step = dispi.start & ~3, dispi.line_length  # the beam starts at whole words
    rows = [bytes(view[at : at + length]).ljust(length, b"\0") for at in range(begins, begins + height * step, step)]
    if depth in (15, 16, 24, 32):
        big = core.order.big_endian
        return Frame(width, height, rows, lambda row: colours.direct(row, depth, big_endian=big), look=(depth, big))
    table = colours.palette(bytes(core.registers.dac), wide=dispi.wide_colours)
    if depth == 8:
        return Frame(width, height, rows, lambda row: colours.pixels(row, table), look=table)
    mask, table = core.registers.attr[vga.ATTR_PLANES], _sixteen(core)
    return Frame(width, height, rows, lambda row: colours.pixels(_from_planes(row, mask), table), look=(mask, table))


def _graphics(core: VgaCore) -> Frame:
    registers = core.registers
    shift = registers.gfx[vga.GFX_MODE] & _SHIFT_MASK
    groups = registers.crtc[vga.CRTC_WIDTH] + 1
    height = registers.lines
    doubled = bool(registers.seq[vga.SEQ_CLOCKING] & _HALF_DOTS)
    draw, look = _pixels_of(core, shift, doubled)
    width = 8 * groups * (2 if doubled and shift in (_PLANES_TO_PIXELS, _PAIRS) else 1)
    return Frame(width, height, _rows(core, height, 4 * groups), draw, look=look)


def _sixteen(core: VgaCore) -> colours.Tables:
    return colours.sixteen(core.registers)


def _pixels_of(core: VgaCore, shift: int, doubled: bool) -> tuple[Any, Hashable]:
    """How a row of memory becomes pixels, and what that depends on."""
    mask = core.registers.attr[vga.ATTR_PLANES]
    if shift not in (_PLANES_TO_PIXELS, _PAIRS):
        palette = colours.palette(bytes(core.registers.dac), wide=core.dispi.wide_colours)
        return (lambda row: colours.pixels(_twice(row), palette)), palette
    table = _sixteen(core)
    spread = _from_planes if shift == _PLANES_TO_PIXELS else _from_pairs

    def draw(row: bytes) -> bytes:
        values = spread(row, mask)
        return colours.pixels(_twice(values) if doubled else values, table)

    return draw, (shift, doubled, mask, table)


def _rows(core: VgaCore, height: int, length: int) -> list[bytes]:
    """The memory that each line shows."""
    registers, crtc = core.registers, core.registers.crtc
    step, mode = crtc[vga.CRTC_OFFSET] << 3, crtc[vga.CRTC_MODE]
    row_scan = crtc[vga.CRTC_ROW_SCAN]
    repeat = 2 if row_scan & _DOUBLE_SCAN else 1
    if mode & 1:  # else the row's scan lines lie apart, as on a CGA
        repeat *= (row_scan & _SCAN_LINES) + 1
    at, number, split = 4 * registers.start, 0, registers.line_compare
    rows: list[bytes] = []
    found: dict[int, bytes] = {}
    waits = repeat
    interleaved = ~mode & 3
    for line in range(height):
        place = at
        if not mode & 1:
            shift = 14 + (mode >> 6 & 1)
            place = (place & ~(1 << shift)) | (number & 1) << shift
        if not mode & 2:
            place = (place & ~0x8000) | (number & 2) << 14
        row = found.get(place)
        if row is None:
            row = found[place] = core.bytes_at(place, length)
        rows.append(row)
        waits -= 1
        if not waits:
            waits = repeat
            if number & interleaved == interleaved:
                at += step
            number += 1
        if line == split:
            at = 0
    return rows


def _twice(values: bytes) -> bytes:
    out = bytearray(2 * len(values))
    out[0::2] = out[1::2] = values
    return bytes(out)


def _from_planes(row: bytes, mask: int) -> bytes:
    """Values of four bits, a bit from each plane."""
    total = 0
    for plane in range(4):
        if mask >> plane & 1:
            bits = b"".join(map(_SPREAD.__getitem__, row[plane::4]))
            total |= int.from_bytes(bits, "little") << plane
    return total.to_bytes(2 * len(row), "little")


def _from_pairs(row: bytes, mask: int) -> bytes:
    """Values of four bits: two from planes 0 and 1 in turn, two from planes 2 and 3."""
    total = 0
    for plane in range(4):
        if mask >> plane & 1:
            four = b"".join(map(_SPREAD_PAIRS.__getitem__, row[plane::4]))
            # Four pixels of every eight are from the even planes, the other four from the odd ones.
            placed = bytearray(2 * len(row))
            for i in range(4):
                placed[4 * (plane & 1) + i :: 8] = four[i::4]
            total |= int.from_bytes(placed, "little") << (plane & 2)
    return total.to_bytes(2 * len(row), "little")

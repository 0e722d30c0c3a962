"""What the guest's CPU sees of the card's memory at 0xa0000: planes, latches, and the arithmetic between both.

The memory is kept as the picture needs it: byte ``4 * n + p`` is byte ``n`` of plane ``p``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.memory import Region
from qobra.machine.vga import registers as vga

if TYPE_CHECKING:
    from qobra.machine.vga.core import VgaCore

BASE, SIZE = 0xA0000, 0x20000
BANKED = 0x10000
_PLACES = ((0, SIZE), (0, BANKED), (0x10000, 0x8000), (0x18000, 0x8000))
"""Start and length of the part of the window that shows memory, by the map bits of the graphics controller."""
_BANKED_MAP = 1
_CHAIN_4 = 0x08
_ODD_EVEN, _COMPARES, _WRITE_MODE = 0x10, 0x08, 0x03

PLANES = tuple(sum(0xFF << 8 * plane for plane in range(4) if bits >> plane & 1) for bits in range(16))
"""A mask of four planes' bytes by a mask of planes."""
_EVERY = 0x01010101


class Window(Region):
    """The window; accesses are taken apart into bytes."""

    __slots__ = ("_core",)

    def __init__(self, core: VgaCore) -> None:
        super().__init__("vga-lowmem", SIZE)
        self._core = core

    def chunk(self, address: int, length: int) -> int:
        return min(length, 8)

    def load(self, offset: int, width: int) -> int:
        return sum(self._read(offset + i) << 8 * i for i in range(width))

    def store(self, offset: int, width: int, value: int) -> None:
        for i in range(width):
            self._write(offset + i, value >> 8 * i & 0xFF)

    @property
    def is_linear(self) -> bool:
        """Whether each byte of the first 64 KiB is the byte of the memory, from the bank's start on."""
        core = self._core
        return bool(core.memory_mode & _CHAIN_4 and core.write_planes == 15 and core.window_map == _BANKED_MAP)

    def _place(self, offset: int) -> int | None:
        map_bits = self._core.window_map
        start, length = _PLACES[map_bits]
        if not start <= offset < start + length:
            return None
        return offset - start + (self._core.dispi.bank_offset if map_bits == _BANKED_MAP else 0)

    # -- reading

    def _read(self, offset: int) -> int:
        core, gfx = self._core, self._core.registers.gfx
        place = self._place(offset)
        if place is None:
            return 0xFF
        view = core.memory.view
        if core.memory_mode & _CHAIN_4:
            return view[place] if place < len(view) else 0xFF
        if gfx[vga.GFX_MODE] & _ODD_EVEN:
            at = (place & ~1) << 1 | (gfx[vga.GFX_READ_PLANE] & 2) | (place & 1)
            return view[at] if at < len(view) else 0xFF
        if 4 * place >= len(view):
            return 0xFF
        latch = core.registers.latch = int.from_bytes(view[4 * place : 4 * place + 4], "little")
        if not gfx[vga.GFX_MODE] & _COMPARES:
            return latch >> 8 * gfx[vga.GFX_READ_PLANE] & 0xFF
        differs = (latch ^ PLANES[gfx[vga.GFX_COMPARE]]) & PLANES[gfx[vga.GFX_CARE]]
        return ~(differs | differs >> 8 | differs >> 16 | differs >> 24) & 0xFF

    # -- writing

    def _write(self, offset: int, value: int) -> None:
        core, gfx = self._core, self._core.registers.gfx
        place = self._place(offset)
        if place is None:
            return
        view = core.memory.view
        if core.memory_mode & _CHAIN_4:
            if core.write_planes >> (place & 3) & 1 and place < len(view):
                view[place] = value
        elif gfx[vga.GFX_MODE] & _ODD_EVEN:
            plane = (gfx[vga.GFX_READ_PLANE] & 2) | (place & 1)
            at = (place & ~1) << 1 | plane
            if core.write_planes >> plane & 1 and at < len(view):
                view[at] = value
        elif 4 * place < len(view):
            written, mask = self._mixed(value), PLANES[core.write_planes]
            there = int.from_bytes(view[4 * place : 4 * place + 4], "little")
            view[4 * place : 4 * place + 4] = ((there & ~mask) | (written & mask)).to_bytes(4, "little")

    def _mixed(self, value: int) -> int:
        """What a write of ``value`` gives in the four planes: by the write mode, of it and of the latches."""
        gfx, latch = self._core.registers.gfx, self._core.registers.latch
        mode = gfx[vga.GFX_MODE] & _WRITE_MODE
        if mode == 1:
            return latch
        bits = gfx[vga.GFX_BIT_MASK]
        if mode == 2:
            value = PLANES[value & 15]
        else:
            turn = gfx[vga.GFX_ROTATE] & 7
            value = (value >> turn | value << 8 - turn) & 0xFF
            colour = PLANES[gfx[vga.GFX_SET_RESET]]
            if mode == 3:
                bits &= value
                value = colour
            else:
                fixed = PLANES[gfx[vga.GFX_ENABLE_SET_RESET]]
                value = (value * _EVERY & ~fixed) | (colour & fixed)
        operation = gfx[vga.GFX_ROTATE] >> 3 & 3
        if operation == 1:
            value &= latch
        elif operation == 2:
            value |= latch
        elif operation == 3:
            value ^= latch
        mask = bits * _EVERY
        return (value & mask) | (latch & ~mask)

"""The registers of a VGA at ports 0x3b0 to 0x3df (IBM, "Video Subsystem" in the PS/2 Hardware Interface Technical
Reference): sequencer, graphics controller, CRT controller, attribute controller and the converter of colours.

Nothing moves a beam here: each look at the input status finds display and retrace the other way round, so that
who waits for either goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from qobra.machine.vmstate import VmState, flag, raw, u8, u32

SEQ_CLOCKING, SEQ_MASK, SEQ_FONTS, SEQ_MEMORY = 1, 2, 3, 4
GFX_SET_RESET, GFX_ENABLE_SET_RESET, GFX_COMPARE, GFX_ROTATE, GFX_READ_PLANE = 0, 1, 2, 3, 4
GFX_MODE, GFX_MISC, GFX_CARE, GFX_BIT_MASK = 5, 6, 7, 8
CRTC_WIDTH, CRTC_OVERFLOW, CRTC_ROW_SCAN, CRTC_CURSOR_START, CRTC_CURSOR_END = 0x01, 0x07, 0x09, 0x0A, 0x0B
CRTC_START_HIGH, CRTC_START_LOW, CRTC_CURSOR_HIGH, CRTC_CURSOR_LOW = 0x0C, 0x0D, 0x0E, 0x0F
CRTC_RETRACE_END, CRTC_HEIGHT, CRTC_OFFSET, CRTC_MODE, CRTC_LINE_COMPARE = 0x11, 0x12, 0x13, 0x17, 0x18
ATTR_MODE, ATTR_OVERSCAN, ATTR_PLANES, ATTR_PAN, ATTR_PAGE = 0x10, 0x11, 0x12, 0x13, 0x14

_COLOUR = 0x01  # of the miscellaneous output: the CRTC is at 0x3d4 rather than at 0x3b4
_PALETTE_ON = 0x20  # of the attribute index: the attribute controller shows the picture
_PROTECTED = 0x80
_DISPLAY_OR_RETRACE = 0x09
_READING, _WRITING = 3, 0

_SEQ_BITS = bytes((0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0x00, 0x00, 0xFF))
_GFX_BITS = bytes((0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF)) + bytes(7)
_ATTR_BITS = bytes(16 * [0x3F] + [0xEF, 0xFF, 0x3F, 0x0F, 0x0F])


class VgaRegisters:
    """The registers as bytes. ``changed`` is called after writes to sequencer, graphics and CRT controller."""

    vmstate = VmState(
        u8("misc", "feature", "status", "crtc_index", "attr_index"),
        u8("seq_index", maximum=7),
        u8("gfx_index", maximum=15),
        flag("attr_takes_data"),
        u8("dac_state", "dac_mask", "dac_read", "dac_write"),
        u8("_dac_part", maximum=2),
        u32("latch"),
        raw("seq", "gfx", "crtc", "attr", "dac", "_dac_pending"),
    )

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.seq, self.gfx, self.crtc = bytearray(8), bytearray(16), bytearray(256)
        self.attr, self.dac, self._dac_pending = bytearray(21), bytearray(768), bytearray(3)
        self.reset()

    def reset(self) -> None:
        """As after power-on: all dark."""
        self.misc = self.feature = self.status = 0
        self.seq_index = self.gfx_index = self.crtc_index = self.attr_index = 0
        self.attr_takes_data = False
        self.dac_state = self.dac_mask = self.dac_read = self.dac_write = self._dac_part = 0
        self.latch = 0
        for each in (self.seq, self.gfx, self.crtc, self.attr, self.dac, self._dac_pending):
            each[:] = bytes(len(each))

    @property
    def shows(self) -> bool:
        """Whether the attribute controller shows the picture rather than nothing."""
        return bool(self.attr_index & _PALETTE_ON)

    @property
    def lines(self) -> int:
        """Lines of the picture."""
        overflow = self.crtc[CRTC_OVERFLOW]
        return (self.crtc[CRTC_HEIGHT] | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1

    @property
    def line_compare(self) -> int:
        """The line after which the picture goes on with what is at the start of memory."""
        high = (self.crtc[CRTC_OVERFLOW] & 0x10) << 4 | (self.crtc[CRTC_ROW_SCAN] & 0x40) << 3
        return self.crtc[CRTC_LINE_COMPARE] | high

    @property
    def start(self) -> int:
        """Where in each plane the picture begins."""
        return self.crtc[CRTC_START_HIGH] << 8 | self.crtc[CRTC_START_LOW]

    def _is_absent(self, port: int) -> bool:
        """Whether ``port`` is that of the other kind of monitor, monochrome or colour."""
        return 0x3B0 <= port < 0x3C0 if self.misc & _COLOUR else 0x3D0 <= port < 0x3E0

    # -- reading

    def read(self, port: int) -> int:
        """The byte at ``port``."""
        if self._is_absent(port):
            return 0xFF
        if port == 0x3C9:
            return self._read_dac()
        if port in (0x3BA, 0x3DA):
            self.status ^= _DISPLAY_OR_RETRACE
            self.attr_takes_data = False
            return self.status
        if port == 0x3C0:
            return 0 if self.attr_takes_data else self.attr_index
        if port == 0x3C1:
            number = self.attr_index & 0x1F
            return self.attr[number] if number < len(self.attr) else 0
        if port in (0x3B5, 0x3D5):
            return self.crtc[self.crtc_index]
        found = {
            0x3C4: self.seq_index,
            0x3C5: self.seq[self.seq_index],
            0x3C7: self.dac_state,
            0x3C8: self.dac_write,
            0x3CA: self.feature,
            0x3CC: self.misc,
            0x3CE: self.gfx_index,
            0x3CF: self.gfx[self.gfx_index],
            0x3B4: self.crtc_index,
            0x3D4: self.crtc_index,
        }
        return found.get(port, 0)

    def _read_dac(self) -> int:
        value = self.dac[3 * self.dac_read + self._dac_part]
        self._dac_part += 1
        if self._dac_part == 3:
            self._dac_part = 0
            self.dac_read = (self.dac_read + 1) & 0xFF
        return value

    # -- writing

    def write(self, port: int, value: int) -> None:
        """Write a byte to ``port``."""
        if self._is_absent(port):
            return
        if port == 0x3C0:
            self._write_attribute(value)
        elif port == 0x3C2:
            self.misc = value & ~0x10
        elif port == 0x3C4:
            self.seq_index = value & 7
        elif port == 0x3C5:
            self.seq[self.seq_index] = value & _SEQ_BITS[self.seq_index]
            self._changed()
        elif port == 0x3C7:
            self.dac_read, self._dac_part, self.dac_state = value, 0, _READING
        elif port == 0x3C8:
            self.dac_write, self._dac_part, self.dac_state = value, 0, _WRITING
        elif port == 0x3C9:
            self._write_dac(value)
        elif port == 0x3CE:
            self.gfx_index = value & 0x0F
        elif port == 0x3CF:
            self.gfx[self.gfx_index] = value & _GFX_BITS[self.gfx_index]
            self._changed()
        elif port in (0x3B4, 0x3D4):
            self.crtc_index = value
        elif port in (0x3B5, 0x3D5):
            self._write_crtc(value)
        elif port in (0x3BA, 0x3DA):
            self.feature = value & 0x10

    def _write_attribute(self, value: int) -> None:
        if not self.attr_takes_data:
            self.attr_index = value & 0x3F
        else:
            number = self.attr_index & 0x1F
            if number < len(self.attr):
                self.attr[number] = value & _ATTR_BITS[number]
        self.attr_takes_data = not self.attr_takes_data

    def _write_dac(self, value: int) -> None:
        self._dac_pending[self._dac_part] = value
        self._dac_part += 1
        if self._dac_part == 3:  # a colour changes as a whole
            self.dac[3 * self.dac_write : 3 * self.dac_write + 3] = self._dac_pending
            self._dac_part = 0
            self.dac_write = (self.dac_write + 1) & 0xFF

    def _write_crtc(self, value: int) -> None:
        number = self.crtc_index
        if self.crtc[CRTC_RETRACE_END] & _PROTECTED and number <= CRTC_OVERFLOW:
            if number == CRTC_OVERFLOW:  # of which one bit belongs to the line compare
                self.crtc[number] = (self.crtc[number] & ~0x10) | (value & 0x10)
        else:
            self.crtc[number] = value
        self._changed()

"""What a monitor says of itself: VESA E-EDID 1.4, the extension block of CTA-861, and where a mode is too large for
both a block of DisplayID 1.3. It is a monitor that takes many modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack

SIZE = 1024
_BLOCK = 128
_DPI, _REFRESH_MHZ = 100, 75_000
_WIDTH_MAX = _HEIGHT_MAX = 4095
_CLOCK_MAX = 0xFFFF
_UNUSED_MODE = b"\x01\x01"

# Modes, and the bits by which the blocks say that there are such.
_ESTABLISHED = ((640, 480, 0, 0x20), (800, 600, 0, 0x01), (1024, 768, 1, 0x08))
_STANDARD = (
    (2048, 1152),
    (1920, 1080),
    (1920, 1200),
    (1600, 1200),
    (1680, 1050),
    (1440, 900),
    (1280, 1024),
    (1280, 960),
)
_ESTABLISHED_3 = (
    (1280, 768, 1, 0x40),
    (1920, 1440, 5, 0x20),
    (1856, 1392, 4, 0x08),
    (1792, 1344, 4, 0x20),
    (1400, 1050, 2, 0x02),
    (1360, 768, 2, 0x80),
)
_STANDARD_TOO = _ESTABLISHED_3[1:4]
"""Those that take the place of a standard mode that is too large."""
_VIDEO_CODES = (
    (5120, 2160, 125),
    (4096, 2160, 101),
    (3840, 2160, 96),
    (2560, 1080, 89),
    (1920, 1080, 31),
    (3840, 2160, 97),
)


def edid(
    width: int, height: int, *, max_width: int = 0, max_height: int = 0, refresh_mhz: int = 0, size: int = SIZE
) -> bytes:
    """The blocks of a monitor that likes ``width`` x ``height`` best, ``size`` bytes with zeroes at the end.

    ``max_width`` and ``max_height`` are those of the other modes, ``refresh_mhz`` is in thousandths of a hertz; 0 is
    what is usual.
    """

    def fits(mode_width: int, mode_height: int) -> bool:
        return mode_width <= (max_width or mode_width) and mode_height <= (max_height or mode_height)

    timing = _Timing(width, height, refresh_mhz or _REFRESH_MHZ)
    block = bytearray(_BLOCK)
    block[0:8] = b"\x00\xff\xff\xff\xff\xff\xff\x00"
    block[8:18] = _vendor("RHT") + (0x1234).to_bytes(2, "little") + bytes(4) + bytes((42, 2014 - 1990))
    block[18:20] = b"\x01\x04"
    block[20:25] = bytes((0xA5, _millimetres(width) // 10 & 0xFF, _millimetres(height) // 10 & 0xFF, 220 - 100, 0x06))
    block[25:35] = bytes.fromhex("ee91a3544c99260f5054")  # the colours of sRGB
    block[35:38] = _bits(3, _ESTABLISHED, fits)
    standard = [_standard(*mode) for mode in _STANDARD if fits(*mode)]
    others: list[tuple[int, int, int, int]] = []
    for mode in _ESTABLISHED_3:
        if len(standard) == len(_STANDARD):
            others.append(mode)
        elif mode in _STANDARD_TOO and fits(*mode[:2]):
            standard.append(_standard(*mode[:2]))
    block[38:54] = b"".join(standard) + _UNUSED_MODE * (len(_STANDARD) - len(standard))
    descriptors = [timing.detailed()] if timing.is_small else []
    descriptors.append(b"\0\0\0\xf7\0\x0a" + _bits(6, others, fits) + bytes(6))
    descriptors.append(b"\0\0\0\xfd\0" + bytes((50, 125, 30, 160, 0xFF, 1)) + b"\n" + b" " * 6)
    descriptors.append(b"\0\0\0\xfc\0" + b"QEMU Monitor\n")
    descriptors.append(b"\0\0\0\x10".ljust(18, b"\0"))
    block[54:126] = b"".join(descriptors)[:72]
    blocks = [block, _extension([code for *mode, code in _VIDEO_CODES if fits(*mode)])]
    if not timing.is_small:
        blocks.append(timing.display_id())
    block[126] = len(blocks) - 1
    return b"".join(map(_summed, blocks)).ljust(size, b"\0")


def _vendor(letters: str) -> bytes:
    first, second, third = (ord(letter) - 64 for letter in letters)
    return (first << 10 | second << 5 | third).to_bytes(2, "big")


def _millimetres(pixels: int) -> int:
    return pixels * 254 // 10 // _DPI


def _bits(length: int, modes: Sequence[tuple[int, int, int, int]], fits: Callable[[int, int], bool]) -> bytes:
    found = bytearray(length)
    for width, height, place, bit in modes:
        if fits(width, height):
            found[place] |= bit
    return bytes(found)


def _standard(width: int, height: int) -> bytes:
    ratios = {(16, 10): 0x00, (4, 3): 0x40, (5, 4): 0x80, (16, 9): 0xC0}
    ratio = next(bits for (w, h), bits in ratios.items() if width * h == height * w)
    return bytes((width // 8 - 31, ratio))


class _Timing:
    """The mode that is liked best; the blanking is a share of the picture."""

    def __init__(self, width: int, height: int, refresh_mhz: int) -> None:
        self._width, self._height = width, height
        self._front_x, self._sync_x, self._blank_x = width * 25 // 100, width * 3 // 100, width * 35 // 100
        self._front_y, self._sync_y, self._blank_y = height * 5 // 1000, height * 5 // 1000, height * 35 // 1000
        self._clock = refresh_mhz * (width + self._blank_x) * (height + self._blank_y) // 10**7
        self.is_small = width <= _WIDTH_MAX and height <= _HEIGHT_MAX and self._clock <= _CLOCK_MAX

    def detailed(self) -> bytes:
        """A detailed timing descriptor (E-EDID, 3.10.2)."""
        width, height = self._width, self._height
        blank_x, front_x, sync_x = self._blank_x, self._front_x, self._sync_x
        blank_y, front_y, sync_y = self._blank_y, self._front_y, self._sync_y
        mm_x, mm_y = _millimetres(width), _millimetres(height)
        return self._clock.to_bytes(2, "little") + bytes(
            (
                width & 0xFF, blank_x & 0xFF, (width >> 4 & 0xF0) | (blank_x >> 8 & 0xF),
                height & 0xFF, blank_y & 0xFF, (height >> 4 & 0xF0) | (blank_y >> 8 & 0xF),
                front_x & 0xFF, sync_x & 0xFF, (front_y & 0xF) << 4 | (sync_y & 0xF),
                (front_x >> 2 & 0xC0) | (sync_x >> 4 & 0x30) | (front_y >> 2 & 0x0C) | (sync_y >> 4 & 0x03),
                mm_x & 0xFF, mm_y & 0xFF, (mm_x >> 4 & 0xF0) | (mm_y >> 8 & 0xF), 0, 0, 0x18,
            )
        )  # fmt: skip

    def display_id(self) -> bytearray:
        """A block with a section of DisplayID: one detailed timing of type I (DisplayID 1.3, 4.4)."""
        numbers = (
            self._width, self._blank_x, self._front_x, self._sync_x,
            self._height, self._blank_y, self._front_y, self._sync_y,
        )  # fmt: skip
        clock = (self._clock & 0xFFFFFF).to_bytes(3, "little")
        timing = clock + b"\x88" + pack("<8H", *(number - 1 & 0xFFFF for number in numbers))
        section = b"\x13\x17\x03\0" + b"\x03\0" + bytes((len(timing),)) + timing
        block = bytearray(_BLOCK)
        block[0] = 0x70
        block[1 : 1 + len(section)] = section
        block[1 + len(section)] = -sum(section) & 0xFF
        return block


def _extension(codes: list[int]) -> bytearray:
    """A CTA-861 block with one list of modes by their codes; no further timings."""
    block = bytearray(_BLOCK)
    modes = bytes((2 << 5 | len(codes), *codes))
    block[0:4] = bytes((2, 3, 4 + len(modes), 0))
    block[4 : 4 + len(modes)] = modes
    for start in range(4 + len(modes), _BLOCK - 18, 18):
        block[start + 3] = 0x10  # a descriptor that says nothing
    return block


def _summed(block: bytearray) -> bytes:
    block[-1] = -sum(block[:-1]) & 0xFF
    return bytes(block)

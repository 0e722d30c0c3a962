"""What a monitor says of itself (VESA E-EDID 1.4, and the extension block of CTA-861): one that takes many modes."""

from __future__ import annotations

SIZE = 1024
_BLOCK = 128
_DPI, _REFRESH = 100, 75
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
_VIDEO_CODES = (125, 101, 96, 89, 31, 97)


def edid(width: int, height: int) -> bytes:
    """The blocks of a monitor that likes ``width`` x ``height`` best, :data:`SIZE` bytes with zeroes at the end."""
    block = bytearray(_BLOCK)
    block[0:8] = b"\x00\xff\xff\xff\xff\xff\xff\x00"
    block[8:18] = _vendor("RHT") + (0x1234).to_bytes(2, "little") + bytes(4) + bytes((42, 2014 - 1990))
    block[18:20] = b"\x01\x04"
    block[20:25] = bytes((0xA5, _millimetres(width) // 10 & 0xFF, _millimetres(height) // 10 & 0xFF, 220 - 100, 0x06))
    block[25:35] = bytes.fromhex("ee91a3544c99260f5054")  # the colours of sRGB
    block[35:38] = b"\x21\x08\x00"
    for number, mode in enumerate(_STANDARD):
        block[38 + 2 * number : 40 + 2 * number] = _standard(*mode)
    block[54:72] = _detailed(width, height)
    block[72:90] = bytes.fromhex("000000f7000a004082002820") + bytes(6)
    block[90:108] = bytes.fromhex("000000fd00") + bytes((50, 125, 30, 160, 0xFF, 1)) + b"\n" + b" " * 6
    block[108:126] = b"\0\0\0\xfc\0" + b"QEMU Monitor\n"
    block[126] = 1
    return (_summed(block) + _summed(_extension())).ljust(SIZE, b"\0")


def _vendor(letters: str) -> bytes:
    first, second, third = (ord(letter) - 64 for letter in letters)
    return (first << 10 | second << 5 | third).to_bytes(2, "big")


def _millimetres(pixels: int) -> int:
    return pixels * 254 // 10 // _DPI


def _standard(width: int, height: int) -> bytes:
    ratios = {(16, 10): 0x00, (4, 3): 0x40, (5, 4): 0x80, (16, 9): 0xC0}
    ratio = next(bits for (w, h), bits in ratios.items() if width * h == height * w)
    return bytes((width // 8 - 31, ratio))


def _detailed(width: int, height: int) -> bytes:
    """A detailed timing descriptor (3.10.2); the blanking is a share of the picture."""
    front_x, sync_x, blank_x = width * 25 // 100, width * 3 // 100, width * 35 // 100
    front_y, sync_y, blank_y = height * 5 // 1000, height * 5 // 1000, height * 35 // 1000
    clock = min(_REFRESH * (width + blank_x) * (height + blank_y) // 10000, 0xFFFF)
    mm_x, mm_y = _millimetres(width), _millimetres(height)
    return clock.to_bytes(2, "little") + bytes(
        (
            width & 0xFF, blank_x & 0xFF, (width >> 4 & 0xF0) | (blank_x >> 8 & 0xF),
            height & 0xFF, blank_y & 0xFF, (height >> 4 & 0xF0) | (blank_y >> 8 & 0xF),
            front_x & 0xFF, sync_x & 0xFF, (front_y & 0xF) << 4 | (sync_y & 0xF),
            (front_x >> 2 & 0xC0) | (sync_x >> 4 & 0x30) | (front_y >> 2 & 0x0C) | (sync_y >> 4 & 0x03),
            mm_x & 0xFF, mm_y & 0xFF, (mm_x >> 4 & 0xF0) | (mm_y >> 8 & 0xF), 0, 0, 0x18,
        )
    )  # fmt: skip


def _extension() -> bytearray:
    """A CTA-861 block with one list of modes by their codes; no further timings."""
    block = bytearray(_BLOCK)
    modes = bytes((2 << 5 | len(_VIDEO_CODES), *_VIDEO_CODES))
    block[0:4] = bytes((2, 3, 4 + len(modes), 0))
    block[4 : 4 + len(modes)] = modes
    for start in range(4 + len(modes), _BLOCK - 18, 18):
        block[start + 3] = 0x10  # a descriptor that says nothing
    return block


def _summed(block: bytearray) -> bytes:
    block[-1] = -sum(block[:-1]) & 0xFF
    return bytes(block)

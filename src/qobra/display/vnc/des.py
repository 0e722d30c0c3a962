"""DES (FIPS 46-3) of single blocks, which VNC authentication is made of (RFC 6143, section 7.2.2)."""

from __future__ import annotations

_INITIAL = (
    *(58, 50, 42, 34, 26, 18, 10, 2, 60, 52, 44, 36, 28, 20, 12, 4, 62, 54, 46, 38, 30, 22, 14, 6),
    *(64, 56, 48, 40, 32, 24, 16, 8, 57, 49, 41, 33, 25, 17, 9, 1, 59, 51, 43, 35, 27, 19, 11, 3),
    *(61, 53, 45, 37, 29, 21, 13, 5, 63, 55, 47, 39, 31, 23, 15, 7),
)
_FINAL = tuple(_INITIAL.index(place) + 1 for place in range(1, 65))
_EXPANSION = tuple((4 * group + place - 1) % 32 + 1 for group in range(8) for place in range(6))
_PERMUTATION = (
    *(16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10),
    *(2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25),
)
_CHOICE_1 = (
    *(57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36),
    *(63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20, 12, 4),
)
_CHOICE_2 = (
    *(14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2),
    *(41, 52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32),
)
_SHIFTS = (1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1)
_HALF = (1 << 28) - 1
# The boxes, each of four rows of 16 values, a digit each.
_BOXES = tuple(
    [int(digit, 16) for digit in box]
    for box in (
        "e4d12fb83a6c59070f74e2d1a6cb953841e8d62bfc973a50fc8249175b3ea06d",
        "f18e6b34972dc05a3d47f28ec01a69b50e7ba4d158c6932fd8a13f42b67c05e9",
        "a09e63f51dc7b428d709346a285ecbf1d6498f30b12c5ae71ad069874fe3b52c",
        "7de3069a1285bc4fd8b56f03472c1ae9a690cb7df13e52843f06a1d8945bc72e",
        "2c417ab6853fd0e9eb2c47d150fa3986421bad78f9c5630eb8c71e2d6f09a453",
        "c1af92680d34e75baf427c9561de0b389ef528c3704a1db6432c95fabe17608d",
        "4b2ef08d3c975a61d0b7491ae35c2f8614bdc37eaf6805926bd814a7950fe23c",
        "d2846fb1a93e50c71fd8a374c56b0e927b419ce206adf35821e74a8dfc90356b",
    )
)


def encrypt(key: bytes, data: bytes) -> bytes:
    """``data``, a multiple of 8 bytes, block by block under ``key``, 8 bytes whose lowest bits do not matter."""
    keys = _schedule(int.from_bytes(key, "big"))
    blocks = (int.from_bytes(data[at : at + 8], "big") for at in range(0, len(data), 8))
    return b"".join(_encrypt(keys, block).to_bytes(8, "big") for block in blocks)


def _schedule(key: int) -> list[int]:
    mixed = _pick(key, 64, _CHOICE_1)
    left, right = mixed >> 28, mixed & _HALF
    keys = []
    for shift in _SHIFTS:
        left = (left << shift | left >> 28 - shift) & _HALF
        right = (right << shift | right >> 28 - shift) & _HALF
        keys.append(_pick(left << 28 | right, 56, _CHOICE_2))
    return keys


def _encrypt(keys: list[int], block: int) -> int:
    mixed = _pick(block, 64, _INITIAL)
    left, right = mixed >> 32, mixed & 0xFFFFFFFF
    for key in keys:
        left, right = right, left ^ _round(right, key)
    return _pick(right << 32 | left, 64, _FINAL)


def _round(half: int, key: int) -> int:
    wide = _pick(half, 32, _EXPANSION) ^ key
    chosen = 0
    for number, box in enumerate(_BOXES):
        bits = wide >> 42 - 6 * number & 0x3F
        row, column = (bits >> 4 & 2) | bits & 1, bits >> 1 & 0xF
        chosen = chosen << 4 | box[16 * row + column]
    return _pick(chosen, 32, _PERMUTATION)


def _pick(value: int, width: int, places: tuple[int, ...]) -> int:
    """The bits of ``value`` at ``places``, counted from 1 at the highest of ``width``, one after the other."""
    result = 0
    for place in places:
        result = result << 1 | value >> width - place & 1
    return result

"""CPUID as a CPU with given features answers it: the words that tell of features, and the highest leaves.

Intel's Software Developer's Manual, volume 2A (CPUID); volume 1, 13.1 to 13.2 (the components of XSAVE's area).
"""

from __future__ import annotations

from collections.abc import Callable

from qobra.machine.cpu_features import WORDS

Has = Callable[[str], bool]
"""Whether the CPU has a feature, by its name."""

_BASIC = (
    (1, None, "EDX"),
    (1, None, "ECX"),
    (6, None, "EAX"),
    (7, 0, "EBX"),
    (7, 0, "ECX"),
    (7, 1, "EAX"),
    (0xD, 1, "EAX"),
)
_EXTENDED = ((0x80000001, None, "EDX"), (0x80000001, None, "ECX"), (0x80000007, None, "EDX"), (0x80000008, None, "EBX"))
_CENTAUR = ((0xC0000001, None, "EDX"),)

_AMD_COPIES = 0x0183F3FF
"""The bits of leaf 1's EDX that AMD's processors show again in leaf 80000001h."""

_XCR0 = (("avx", 1 << 2), ("mpx", 3 << 3), ("avx512f", 7 << 5), ("pku", 1 << 9), ("amx-tile", 3 << 17))
_XSS = (("arch-lbr", 1 << 15),)


def feature_words(has: Has, vendor: str) -> dict[tuple[int, int | None, str], int]:
    """The words by the values of EAX and ECX that ask for them and the register that has them."""
    words = {place: sum(1 << bit for name, bit in bits.items() if has(name)) for place, bits in WORDS.items()}
    if vendor == "AuthenticAMD":
        words[0x80000001, None, "EDX"] |= words[1, None, "EDX"] & _AMD_COPIES
    if has("xsave"):
        words[0xD, 0, "EAX"] = 3 | sum(mask for name, mask in _XCR0 if has(name))
        if has("xsaves"):
            words[0xD, 1, "ECX"] = sum(mask for name, mask in _XSS if has(name))
    return words


def highest_basic(has: Has, *, full: bool = True) -> int:
    """The highest basic leaf that one of the features needs; if not ``full``, only leaf 7 counts."""
    if not full:
        return _highest(has, ((7, 0, "EBX"),))
    highest = _highest(has, _BASIC)
    if has("sgx"):
        highest = max(highest, 0x12)
    if has("intel-pt"):
        highest = max(highest, 0x14)
    return highest


def highest_of_leaf_7(has: Has) -> int:
    """The highest value of ECX for leaf 7."""
    return int(any(has(name) for name in WORDS[7, 1, "EAX"]))


def highest_extended(has: Has) -> int:
    """The highest leaf from 80000000h up; 0 if none is needed."""
    return 0x8000000A if has("svm") else _highest(has, _EXTENDED)


def highest_centaur(has: Has) -> int:
    """The highest leaf from C0000000h up; 0 if none is needed."""
    return _highest(has, _CENTAUR)


def _highest(has: Has, places: tuple[tuple[int, int | None, str], ...]) -> int:
    return max((place[0] for place in places if any(has(name) for name in WORDS[place])), default=0)

"""Scan codes of the PC's keyboard: set 1 by QKeyCode, and set 2 through the keyboard controller's translation."""

from __future__ import annotations

_PLAIN = (
    "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p bracket_left bracket_right ret ctrl "
    "a s d f g h j k l semicolon apostrophe grave_accent shift backslash z x c v b n m comma dot slash shift_r "
    "kp_multiply alt spc caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num_lock scroll_lock kp_7 kp_8 kp_9 kp_subtract "
    "kp_4 kp_5 kp_6 kp_add kp_1 kp_2 kp_3 kp_0 kp_decimal sysrq"
)
# Codes that follow the prefix 0xe0.
_EXTENDED = {
    "kp_enter": 0x1C, "ctrl_r": 0x1D, "audiomute": 0x20, "calculator": 0x21, "audioplay": 0x22, "audiostop": 0x24,
    "volumedown": 0x2E, "volumeup": 0x30, "ac_home": 0x32, "kp_divide": 0x35, "print": 0x37, "alt_r": 0x38,
    "home": 0x47, "up": 0x48, "pgup": 0x49, "left": 0x4B, "right": 0x4D, "end": 0x4F, "down": 0x50, "pgdn": 0x51,
    "insert": 0x52, "delete": 0x53, "meta_l": 0x5B, "meta_r": 0x5C, "menu": 0x5E, "compose": 0x5D, "power": 0x5E,
    "sleep": 0x5F, "wake": 0x63, "ac_bookmarks": 0x66, "ac_refresh": 0x67, "ac_forward": 0x69, "ac_back": 0x6A,
    "computer": 0x6B, "mail": 0x6C, "mediaselect": 0x6D, "audionext": 0x19, "audioprev": 0x10,
}  # fmt: skip
_MORE = {"less": 0x56, "f11": 0x57, "f12": 0x58, "ro": 0x73, "yen": 0x7D, "henkan": 0x79, "muhenkan": 0x7B}
_MORE |= {"hiragana": 0x70, "kp_comma": 0x7E, "kp_equals": 0x59, "lf": 0x5B, "katakanahiragana": 0x70}

SET1: dict[str, tuple[int, bool]] = {name: (code, False) for code, name in enumerate(_PLAIN.split(), 1)}
"""Code and whether the prefix 0xe0 goes before it."""
SET1 |= {name: (code, False) for name, code in _MORE.items()}
SET1 |= {name: (code, True) for name, code in _EXTENDED.items()}
SET1["asterisk"] = SET1["kp_multiply"]

_PAUSE_SET1 = bytes((0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5))
_PAUSE_SET2 = bytes((0xE1, 0x14, 0x77, 0xE1, 0xF0, 0x14, 0xF0, 0x77))

# What the controller makes of the codes 0 to 0x7f of set 2 (IBM PS/2 technical reference).
_TRANSLATION = bytes.fromhex(
    "ff43413f3d3b3c58644442403e0f2959"
    "65382a701d10025a66712c1f1e11035b"
    "672e2d201205045c68392f211413065d"
    "693130232215075e6a7232241608095f"
    "6b332517180b0a606c34352627190c61"
    "6d7328741a0d626e3a361c1b752b6376"
    "55567778797a0e7b7c4f7d4b477e7f6f"
    "5253504c4d480145574e514a37494654"
)
_TO_SET2 = {code: number for number, code in reversed(list(enumerate(_TRANSLATION)))} | {0x41: 0x83, 0x54: 0x84}


def set1(qcode: str, down: bool) -> bytes:
    """The bytes of set 1 for a key; nothing for one that the keyboard has not."""
    if qcode == "pause":
        return _PAUSE_SET1 if down else b""
    if qcode not in SET1:
        return b""
    code, extended = SET1[qcode]
    return (b"\xe0" if extended else b"") + bytes((code | (0 if down else 0x80),))


def set2(qcode: str, down: bool) -> bytes:
    """The bytes of set 2 for a key."""
    if qcode == "pause":
        return _PAUSE_SET2 if down else b""
    if qcode not in SET1:
        return b""
    code, extended = SET1[qcode]
    return (b"\xe0" if extended else b"") + (b"" if down else b"\xf0") + bytes((_TO_SET2[code],))


def qcode_of(number: int) -> str | None:
    """The key of a number as QEMU's clients send it: set 1, with 0x80 for the prefix."""
    wanted = (number & 0x7F, bool(number & 0x80))
    return next((name for name, entry in SET1.items() if entry == wanted), None)

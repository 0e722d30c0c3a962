"""Numbers of keys on USB keyboards (HID Usage Tables 1.12, chapter 10), by QKeyCode."""

from __future__ import annotations

_ROWS = {
    0x04: "a b c d e f g h i j k l m n o p q r s t u v w x y z 1 2 3 4 5 6 7 8 9 0 ret esc backspace tab spc minus "
    "equal bracket_left bracket_right backslash",
    0x33: "semicolon apostrophe grave_accent comma dot slash caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12 print "
    "scroll_lock pause insert home pgup delete end pgdn right left down up num_lock kp_divide kp_multiply kp_subtract "
    "kp_add kp_enter kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9 kp_0 kp_decimal less compose power kp_equals",
    0x74: "open help props front stop again undo cut copy paste find audiomute volumeup volumedown",
    0x85: "kp_comma",
    0x87: "ro hiragana yen henkan muhenkan",
    0x90: "lang1 lang2",
}
USAGES: dict[str, int] = {name: first + n for first, row in _ROWS.items() for n, name in enumerate(row.split())}
USAGES |= {"sysrq": USAGES["print"], "asterisk": USAGES["kp_multiply"], "katakanahiragana": USAGES["hiragana"]}

MODIFIERS: dict[str, int] = {
    name: 1 << n for n, name in enumerate(("ctrl", "shift", "alt", "meta_l", "ctrl_r", "shift_r", "alt_r", "meta_r"))
}
"""Bits of the keys that a report has beside the others."""

"""Linux's input event codes (linux/input-event-codes.h), which virtio-input speaks."""

from __future__ import annotations

from qobra.machine.scancodes import SET1

EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_LED, EV_REP = 0x00, 0x01, 0x02, 0x03, 0x11, 0x14
REL_X, REL_Y, REL_WHEEL = 0, 1, 8
ABS_X, ABS_Y = 0, 1
BUTTONS = {"left": 0x110, "right": 0x111, "middle": 0x112, "side": 0x113, "extra": 0x114}
WHEEL_BUTTONS = {"wheel-up": (1, 0x151), "wheel-down": (-1, 0x150)}
"""What a turn of the wheel is: a step, and the button that it is let go as."""
BUTTON_CODES = (*BUTTONS.values(), 0x150, 0x151)

# Plain codes of set 1 are Linux's as well; those with a prefix have numbers of their own.
_OTHERS = {
    "kp_enter": 96, "ctrl_r": 97, "kp_divide": 98, "print": 99, "alt_r": 100, "lf": 101, "home": 102, "up": 103,
    "pgup": 104, "left": 105, "right": 106, "end": 107, "down": 108, "pgdn": 109, "insert": 110, "delete": 111,
    "audiomute": 113, "volumedown": 114, "volumeup": 115, "power": 116, "kp_equals": 117, "pause": 119,
    "kp_comma": 121, "yen": 124, "meta_l": 125, "meta_r": 126, "compose": 127, "menu": 139, "calculator": 140,
    "sleep": 142, "wake": 143, "mail": 155, "ac_bookmarks": 156, "computer": 157, "ac_back": 158, "ac_forward": 159,
    "audionext": 163, "audioplay": 164, "audioprev": 165, "audiostop": 166, "ac_home": 172, "ac_refresh": 173,
    "mediaselect": 226, "ro": 89, "hiragana": 91, "sysrq": 99, "lang1": 122, "lang2": 123, "stop": 128,
    "again": 129, "props": 130, "undo": 131, "front": 132, "copy": 133, "open": 134, "paste": 135, "find": 136,
    "cut": 137, "help": 138, "henkan": 92, "katakanahiragana": 93, "muhenkan": 94, "asterisk": 55,
}  # fmt: skip

KEYS: dict[str, int] = {name: code for name, (code, extended) in SET1.items() if not extended} | _OTHERS
"""Key numbers by QKeyCode."""

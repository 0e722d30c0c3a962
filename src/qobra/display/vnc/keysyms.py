"""Keys as X11 names them (keysymdef.h), which is what VNC clients send; as QKeyCodes of a US keyboard; as text."""

from __future__ import annotations

_LATIN = {
    " ": "spc", "!1": "1", "@2": "2", "#3": "3", "$4": "4", "%5": "5", "^6": "6", "&7": "7", "*8": "8", "(9": "9",
    ")0": "0", "-_": "minus", "=+": "equal", "[{": "bracket_left", "]}": "bracket_right", ";:": "semicolon",
    "'\"": "apostrophe", "`~": "grave_accent", "\\|": "backslash", ",<": "comma", ".>": "dot", "/?": "slash",
}  # fmt: skip
_SPECIAL = {
    0xFE03: "alt_r", 0xFE20: "tab", 0xFF08: "backspace", 0xFF09: "tab", 0xFF0A: "lf", 0xFF0D: "ret", 0xFF13: "pause",
    0xFF14: "scroll_lock", 0xFF15: "sysrq", 0xFF1B: "esc", 0xFF22: "muhenkan", 0xFF23: "henkan", 0xFF27: "hiragana",
    0xFF50: "home", 0xFF51: "left", 0xFF52: "up", 0xFF53: "right", 0xFF54: "down", 0xFF55: "pgup", 0xFF56: "pgdn",
    0xFF57: "end", 0xFF61: "print", 0xFF63: "insert", 0xFF67: "compose", 0xFF6B: "pause", 0xFF7E: "alt_r",
    0xFF7F: "num_lock", 0xFF8D: "kp_enter", 0xFF95: "kp_7", 0xFF96: "kp_4", 0xFF97: "kp_8", 0xFF98: "kp_6",
    0xFF99: "kp_2", 0xFF9A: "kp_9", 0xFF9B: "kp_3", 0xFF9C: "kp_1", 0xFF9D: "kp_5", 0xFF9E: "kp_0",
    0xFF9F: "kp_decimal", 0xFFAA: "kp_multiply", 0xFFAB: "kp_add", 0xFFAC: "kp_comma", 0xFFAD: "kp_subtract",
    0xFFAE: "kp_decimal", 0xFFAF: "kp_divide", 0xFFBD: "kp_equals", 0xFFE1: "shift", 0xFFE2: "shift_r",
    0xFFE3: "ctrl", 0xFFE4: "ctrl_r", 0xFFE5: "caps_lock", 0xFFE7: "meta_l", 0xFFE8: "meta_r", 0xFFE9: "alt",
    0xFFEA: "alt_r", 0xFFEB: "meta_l", 0xFFEC: "meta_r", 0xFFFF: "delete",
}  # fmt: skip

QCODES: dict[int, str] = {
    **{ord(character): name for characters, name in _LATIN.items() for character in characters},
    **{ord(letter): letter.lower() for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"},
    **{0xFFB0 + digit: f"kp_{digit}" for digit in range(10)},
    **{0xFFBD + number: f"f{number}" for number in range(1, 13)},
    **_SPECIAL,
}
"""The key of a US keyboard that has a keysym on it."""

_MODIFIERS = {keysym: _SPECIAL[keysym] for keysym in (0xFFE3, 0xFFE4, 0xFFE9, 0xFFEA)}
_SEQUENCES = {
    0xFF08: b"\x7f", 0xFF09: b"\t", 0xFE20: b"\x1b[Z", 0xFF0A: b"\n", 0xFF0D: b"\r", 0xFF1B: b"\x1b",
    0xFF50: b"\x1b[1~", 0xFF51: b"\x1b[D", 0xFF52: b"\x1b[A", 0xFF53: b"\x1b[C", 0xFF54: b"\x1b[B",
    0xFF55: b"\x1b[5~", 0xFF56: b"\x1b[6~", 0xFF57: b"\x1b[4~", 0xFF63: b"\x1b[2~", 0xFF8D: b"\r",
    0xFF95: b"\x1b[1~", 0xFF96: b"\x1b[D", 0xFF97: b"\x1b[A", 0xFF98: b"\x1b[C", 0xFF99: b"\x1b[B",
    0xFF9A: b"\x1b[5~", 0xFF9B: b"\x1b[6~", 0xFF9C: b"\x1b[4~", 0xFF9E: b"\x1b[2~", 0xFF9F: b"\x1b[3~",
    0xFFFF: b"\x1b[3~",
}  # fmt: skip
"""What a terminal sends for keys that are no characters (ECMA-48; the editing keys as the VT220 has them)."""


class Typing:
    """The keyboard of a client, for texts: which modifiers are down, and what a key types."""

    def __init__(self) -> None:
        self._down: set[int] = set()

    def press(self, keysym: int, down: bool) -> int | None:
        """A key goes down or up: the number, from 0 on, of the console that is chosen thereby."""
        if keysym in _MODIFIERS:
            (self._down.add if down else self._down.discard)(keysym)
        names = {_MODIFIERS[each].removesuffix("_r") for each in self._down}
        if down and 0x31 <= keysym <= 0x39 and names == {"ctrl", "alt"}:
            return keysym - 0x31
        return None

    def text(self, keysym: int) -> bytes:
        """What the key types now; nothing for many."""
        if keysym in _SEQUENCES:
            return _SEQUENCES[keysym]
        if 0xFFAA <= keysym <= 0xFFB9:
            keysym -= 0xFF80
        if keysym == 0x20 or 0x40 <= keysym < 0x7F:
            if any(_MODIFIERS[each].startswith("ctrl") for each in self._down):
                return bytes((keysym & 0x1F,))
        return chr(keysym).encode() if 0x20 <= keysym < 0x7F or 0xA0 <= keysym < 0x100 else b""

"""The grammatical half of reading QMP: tokens to values, with QEMU's limits and words for what is wrong."""

from __future__ import annotations

import re
from typing import Any

from qobra.errors import QobraError
from qobra.json_lexer import FLOAT, INTEGER, KEYWORD, MAX_TOKEN_SIZE, STRAY, STRING, TOO_LONG, Token

MAX_TOKEN_COUNT = 2 << 20
MAX_NESTING = 1024
_LONGEST_REASON = 1023
"""Of what is wrong with a value, no more is told: an endless keyword is not sent back whole."""

_KEYWORDS: dict[bytes, Any] = {b"true": True, b"false": False, b"null": None}
_ESCAPES = {
    0x22: '"',
    0x27: "'",
    0x5C: "\\",
    0x2F: "/",
    0x62: "\b",
    0x66: "\f",
    0x6E: "\n",
    0x72: "\r",
    0x74: "\t",
}
_HEX = b"0123456789abcdefABCDEF"

# A character of UTF-8 as it was first defined, whole or cut short, or a byte that begins none.
_SEQUENCE = re.compile(
    rb"[\xc0-\xdf][\x80-\xbf]?|[\xe0-\xef][\x80-\xbf]{0,2}|[\xf0-\xf7][\x80-\xbf]{0,3}"
    rb"|[\xf8-\xfb][\x80-\xbf]{0,4}|[\xfc\xfd][\x80-\xbf]{0,5}|[\x00-\x7f]+|.",
    re.DOTALL,
)

# What is expected next.
_VALUE, _FIRST_ELEMENT, _FIRST_KEY, _KEY, _COLON, _LIST_SEPARATOR, _DICT_SEPARATOR, _DONE = range(8)


class _Bad(Exception):
    """What is wrong with a token, in the words for the user."""


class _Open:
    """A container that is being read: a dict with the key that the next value is for, or a list."""

    __slots__ = ("container", "key")

    def __init__(self, container: dict[str, Any] | list[Any]) -> None:
        self.container = container
        self.key: str | None = None


class Parser:
    """Takes tokens and gives each value, or an error in its place, once its brackets balance.

    An error within brackets is only reported when they close (or when one closes that was never opened), as clients of
    QEMU know it: one bad request gives one error.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._braces = 0
        self._brackets = 0
        self._count = 0
        self._size = 0
        self._stack: list[_Open] = []
        self._expect = _VALUE
        self._result: Any = None
        self._bad: str | None = None

    @property
    def idle(self) -> bool:
        """Whether no value is half read."""
        return self._count == 0

    def feed(self, tokens: list[Token]) -> list[Any]:
        """The values that ``tokens`` complete, each a JSON value or a QobraError."""
        results: list[Any] = []
        for kind, text in tokens:
            error = self._limit(kind, text)
            if error is None:
                self._count += 1
                self._size += len(text) or 1
                if self._bad is None:
                    try:
                        self._take(kind, text)
                    except _Bad as bad:
                        self._bad = str(bad)[:_LONGEST_REASON]
                open_ones = self._braces > 0 or self._brackets > 0
                if open_ones and self._braces >= 0 and self._brackets >= 0:
                    continue
                if self._bad is not None:
                    error = "JSON parse error, " + self._bad
                elif self._expect != _DONE:
                    error = "JSON parse error, premature EOI"
            results.append(self._result if error is None else QobraError(error))
            self._reset()
        return results

    def end(self) -> QobraError | None:
        """What is wrong with a value that the input ends in the middle of; None if it does not."""
        if self.idle:
            return None
        error = QobraError("JSON parse error, " + (self._bad or "premature EOI"))
        self._reset()
        return error

    def _limit(self, kind: str, text: bytes) -> str | None:
        if kind == "{":
            self._braces += 1
        elif kind == "}":
            self._braces -= 1
        elif kind == "[":
            self._brackets += 1
        elif kind == "]":
            self._brackets -= 1
        elif kind == STRAY:
            # As far as the first NUL byte, which is where QEMU ends its strings.
            stray = _for_message(text.split(b"\0", 1)[0])
            return f"JSON parse error, stray '{stray}'"
        if kind == TOO_LONG or self._size + len(text) + 1 > MAX_TOKEN_SIZE:
            return "JSON token size limit exceeded"
        if self._count + 1 > MAX_TOKEN_COUNT:
            return "JSON token count limit exceeded"
        if self._brackets + self._braces > MAX_NESTING:
            return "JSON nesting depth limit exceeded"
        return None

    def _take(self, kind: str, text: bytes) -> None:
        expect = self._expect
        if expect == _COLON:
            if kind != ":":
                raise _Bad("missing : in object pair")
            self._expect = _VALUE
        elif expect in (_LIST_SEPARATOR, _DICT_SEPARATOR):
            listing = expect == _LIST_SEPARATOR
            if kind == ",":
                self._expect = _VALUE if listing else _KEY
            elif kind == ("]" if listing else "}"):
                self._close()
            else:
                raise _Bad("expected separator in " + ("list" if listing else "dict"))
        elif (kind == "]" and expect == _FIRST_ELEMENT) or (kind == "}" and expect == _FIRST_KEY):
            self._close()
        elif kind == "{":
            self._stack.append(_Open({}))
            self._expect = _FIRST_KEY
        elif kind == "[":
            self._stack.append(_Open([]))
            self._expect = _FIRST_ELEMENT
        else:
            self._put(_scalar(kind, text))

    def _close(self) -> None:
        self._put(self._stack.pop().container)

    def _put(self, value: Any) -> None:
        """``value`` is complete: a key, a member, an element, or the whole."""
        if not self._stack:
            self._result = value
            self._expect = _DONE
            return
        top = self._stack[-1]
        container = top.container
        if isinstance(container, list):
            container.append(value)
            self._expect = _LIST_SEPARATOR
        elif top.key is None:
            if not isinstance(value, str):
                raise _Bad("key is not a string in object")
            top.key = value
            self._expect = _COLON
        else:
            if top.key in container:
                raise _Bad("duplicate key")
            container[top.key] = value
            top.key = None
            self._expect = _DICT_SEPARATOR


def _scalar(kind: str, text: bytes) -> Any:
    if kind == STRING:
        return _string(text)
    if kind == INTEGER:
        return integer(text.decode())
    if kind == FLOAT:
        return float(text)
    if kind == KEYWORD:
        if text not in _KEYWORDS:
            raise _Bad(f"invalid keyword '{text.decode()}'")
        return _KEYWORDS[text]
    raise _Bad("expecting value")


def integer(text: str) -> int | float:
    """A JSON number without fraction: an int where 64 bits hold it (signed, or unsigned), else a float."""
    if len(text) > 20:
        return float(text)
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 64 else float(text)


def _string(token: bytes) -> str:
    pieces = token[1:-1].split(b"\\")
    text = _utf8(pieces[0])
    if len(pieces) == 1:
        return text
    parts = [text]
    body = token[1:-1]
    position = len(pieces[0])
    while position < len(body):
        if body[position] != 0x5C:
            end = body.find(b"\\", position)
            end = len(body) if end < 0 else end
            parts.append(_utf8(body[position:end]))
            position = end
            continue
        escape = body[position + 1]
        if escape == 0x75:
            character, position = _unicode_escape(token, position + 1)
            parts.append(character)
            position -= 1
        elif escape in _ESCAPES:
            parts.append(_ESCAPES[escape])
            position += 2
        else:
            raise _Bad("invalid escape sequence in string")
    return "".join(parts)


def _unicode_escape(token: bytes, position: int) -> tuple[str, int]:
    r"""The character of ``\uXXXX`` or of a surrogate pair at ``position``, and the position after it."""
    end = position + 6
    code = _hex4(token, position)
    if code is not None and 0xD800 <= code < 0xDC00:
        low = _hex4(token, end) if token[end : end + 2] == b"\\u" else None
        if low is not None and 0xDC00 <= low < 0xE000:
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
            end += 6
    if code is None or _not_a_character(code):
        raise _Bad(_for_message(token[position:end]) + " is not a valid Unicode character")
    return chr(code), end


def _hex4(token: bytes, position: int) -> int | None:
    digits = token[position + 2 : position + 6]
    if len(digits) < 4 or any(digit not in _HEX for digit in digits):
        return None
    return int(digits, 16)


def _not_a_character(code: int) -> bool:
    return 0xD800 <= code < 0xE000 or 0xFDD0 <= code < 0xFDF0 or code & 0xFFFE == 0xFFFE


def _utf8(data: bytes) -> str:
    if data.isascii():
        return data.decode("ascii")
    try:
        # "Modified" UTF-8 writes U+0000 as two bytes, which strict UTF-8 forbids.
        text = data.replace(b"\xc0\x80", b"\0").decode("utf-8")
    except UnicodeDecodeError:
        raise _Bad("invalid UTF-8 sequence in string") from None
    if any(_not_a_character(ord(character)) for character in text):
        raise _Bad("invalid UTF-8 sequence in string")
    return text


def _for_message(data: bytes) -> str:
    """Bytes as a message shows them: U+FFFD stands for each sequence that is no character."""
    parts = []
    for sequence in _SEQUENCE.findall(data):
        try:
            parts.append(_utf8(sequence))
        except _Bad:
            parts.append("\ufffd")
    return "".join(parts)

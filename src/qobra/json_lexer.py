"""The lexical half of reading QMP: bytes in any pieces to JSON tokens.

QMP input is JSON (RFC 8259) with QEMU's extension of single-quoted strings, on a stream that has no frames. The lexer
is a table-driven automaton, so a token may be split anywhere; runs of ordinary characters are taken with one regular
expression match each, so the cost is per token and not per byte. After a byte that cannot be, it skips to the next
byte that may begin something: a bracket, a separator, a control character, or 0xFF, which is no part of any JSON
text and is what clients send to get a parser of unknown state back to its start.
"""

from __future__ import annotations

import re

MAX_TOKEN_SIZE = 64 << 20
"""Bytes of one token, and of all tokens of one value."""

# Tokens are (kind, text); the structural ones have the character itself for kind.
STRING = "string"
INTEGER = "integer"
FLOAT = "float"
KEYWORD = "keyword"
STRAY = "stray"
TOO_LONG = "too long"

# States. A transition is a state, or one of the actions below it.
(
    _START,
    _RECOVERY,
    _DOUBLE,
    _DOUBLE_ESCAPE,
    _SINGLE,
    _SINGLE_ESCAPE,
    _KEYWORD,
    _SIGN,
    _ZERO,
    _DIGITS,
    _POINT,
    _FRACTION,
    _EXPONENT,
    _EXPONENT_SIGN,
    _EXPONENT_DIGITS,
) = range(15)
_ERROR = 100  # consume the byte, give up the token
_PUNCTUATION = 101  # consume the byte: it is a token
_END_STRING = 102  # consume the byte, which ends the token
_END_KEYWORD = 103  # the token ended before this byte
_END_INTEGER = 104
_END_FLOAT = 105
_RESTART = 106  # back to the start, this byte included

_DIGIT = b"0123456789"
_PRINTABLE = bytes(range(0x20, 0xFE))
_RESETS = bytes(c for c in range(0x20) if c != 0x09) + b"[]{},:\xfe\xff"


def _row(default: int, *cases: tuple[bytes, int]) -> list[int]:
    row = [default] * 256
    for characters, target in cases:
        for character in characters:
            row[character] = target
    return row


_TABLE = [
    _row(
        _ERROR,
        (b" \t\r\n", _START),
        (b"{}[],:", _PUNCTUATION),
        (b'"', _DOUBLE),
        (b"'", _SINGLE),
        (b"-", _SIGN),
        (b"0", _ZERO),
        (b"123456789", _DIGITS),
        (b"abcdefghijklmnopqrstuvwxyz", _KEYWORD),
    ),
    _row(_RECOVERY, (_RESETS, _RESTART)),
    _row(_ERROR, (_PRINTABLE, _DOUBLE), (b"\\", _DOUBLE_ESCAPE), (b'"', _END_STRING)),
    _row(_ERROR, (_PRINTABLE, _DOUBLE)),
    _row(_ERROR, (_PRINTABLE, _SINGLE), (b"\\", _SINGLE_ESCAPE), (b"'", _END_STRING)),
    _row(_ERROR, (_PRINTABLE, _SINGLE)),
    _row(_END_KEYWORD, (b"abcdefghijklmnopqrstuvwxyz", _KEYWORD)),
    _row(_ERROR, (b"0", _ZERO), (b"123456789", _DIGITS)),
    _row(_END_INTEGER, (_DIGIT, _ERROR), (b".", _POINT), (b"eE", _EXPONENT)),
    _row(_END_INTEGER, (_DIGIT, _DIGITS), (b".", _POINT), (b"eE", _EXPONENT)),
    _row(_ERROR, (_DIGIT, _FRACTION)),
    _row(_END_FLOAT, (_DIGIT, _FRACTION), (b"eE", _EXPONENT)),
    _row(_ERROR, (_DIGIT, _EXPONENT_DIGITS), (b"+-", _EXPONENT_SIGN)),
    _row(_ERROR, (_DIGIT, _EXPONENT_DIGITS)),
    _row(_END_FLOAT, (_DIGIT, _EXPONENT_DIGITS)),
]

# What each state takes in one go.
_RUN = {
    _START: re.compile(rb"[ \t\r\n]*"),
    _RECOVERY: re.compile(rb"[\t\x20-\x2b\x2d-\x39\x3b-\x5a\x5c\x5e-\x7a\x7c\x7e-\xfd]*"),
    _DOUBLE: re.compile(rb'[^"\\\x00-\x1f\xfe\xff]*'),
    _SINGLE: re.compile(rb"[^'\\\x00-\x1f\xfe\xff]*"),
    _KEYWORD: re.compile(rb"[a-z]*"),
    _DIGITS: re.compile(rb"[0-9]*"),
    _FRACTION: re.compile(rb"[0-9]*"),
    _EXPONENT_DIGITS: re.compile(rb"[0-9]*"),
}

_ENDS = {_END_KEYWORD: KEYWORD, _END_INTEGER: INTEGER, _END_FLOAT: FLOAT}

Token = tuple[str, bytes]


class Lexer:
    """Turns what :meth:`feed` is given into tokens, keeping an unfinished one for the next call."""

    def __init__(self) -> None:
        self._state = _START
        self._pieces: list[bytes] = []
        self._size = 0

    def end(self) -> list[Token]:
        """The token that is complete because nothing follows, if one is half read."""
        return [] if self.idle else [token for token in self.feed(b"\0") if token[1] != b"\0"]

    @property
    def idle(self) -> bool:
        """Whether nothing is half read."""
        return self._state == _START

    def feed(self, data: bytes) -> list[Token]:
        """The tokens that ``data`` completes. A byte that fits nothing gives a STRAY token with what it spoilt."""
        tokens: list[Token] = []
        state = self._state
        position = 0
        begin = 0  # of the current token, within data
        size = len(data)
        while position < size:
            run = _RUN.get(state)
            if run is not None:
                position = run.match(data, position).end()  # type: ignore[union-attr]
                if position == size:
                    break
            target = _TABLE[state][data[position]]
            if state == _START:
                begin = position
            if target < _ERROR:
                position += 1
            elif target == _RESTART:
                target = _START
            elif target == _PUNCTUATION:
                position += 1
                tokens.append((chr(data[begin]), b""))
                target = _START
            elif target in _ENDS:
                tokens.append((_ENDS[target], self._token(data[begin:position])))
                begin = position
                target = _START
            else:
                position += 1
                text = self._token(data[begin:position])
                begin = position
                if target == _END_STRING:
                    tokens.append((STRING, text))
                    target = _START
                else:
                    tokens.append((STRAY, text))
                    target = _RECOVERY
            state = target
        if state not in (_START, _RECOVERY):
            self._pieces.append(data[begin:])
            self._size += size - begin
            if self._size > MAX_TOKEN_SIZE:
                self._token(b"")
                tokens.append((TOO_LONG, b""))
                state = _START
        self._state = state
        return tokens

    def _token(self, tail: bytes) -> bytes:
        if not self._pieces:
            return tail
        self._pieces.append(tail)
        token = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return token

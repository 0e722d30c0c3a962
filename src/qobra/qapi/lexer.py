"""Tokens of the QAPI schema language.

The language is JSON with comments, where strings have single quotes and are the only scalars besides ``true``
and ``false`` (QEMU, docs/devel/qapi-code-gen, "Schema syntax"). Comments matter to the caller, because
documentation is written in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qobra.qapi.error import Position, QapiError

PUNCTUATION = "{}[]:,"
MAX_SOURCE = 8 << 20
_ESCAPES = {"\\": "\\", "'": "'", '"': '"', "/": "/", "n": "\n", "t": "\t"}


class Token(NamedTuple):
    """``kind`` is a punctuation mark, ``string``, ``bool``, ``comment`` or ``end``."""

    kind: str
    value: str | bool
    position: Position

    def __str__(self) -> str:
        if self.kind == "end":
            return "the end of the file"
        if self.kind == "string":
            return f"the string '{self.value}'"
        if self.kind == "bool":
            return "true" if self.value else "false"
        return f"'{self.kind}'"


def tokenize(text: str, file: str) -> Iterator[Token]:
    """The tokens of ``text``, ending with one of kind ``end``. Raises QapiError on what is no token."""
    if len(text) > MAX_SOURCE:
        raise QapiError(Position(file, 1, 1), f"a schema file has at most {MAX_SOURCE} characters")
    number, line = 0, ""
    for number, line in enumerate(text.split("\n"), 1):
        yield from _line(line, file, number)
    yield Token("end", "", Position(file, number, len(line) + 1))


def _line(line: str, file: str, number: int) -> Iterator[Token]:
    column = 0
    while column < len(line):
        char = line[column]
        position = Position(file, number, column + 1)
        if char in " \t\r\f\ufeff":
            column += 1
        elif char == "#":
            yield Token("comment", line[column:].rstrip(), position)
            return
        elif char in PUNCTUATION:
            yield Token(char, char, position)
            column += 1
        elif char == "'":
            value, column = _string(line, column, position)
            yield Token("string", value, position)
        elif line.startswith(("true", "false"), column):
            word = "true" if char == "t" else "false"
            yield Token("bool", char == "t", position)
            column += len(word)
        else:
            raise QapiError(position, f"expected a string in single quotes, a bracket or a comment, got {char!r}")


def _string(line: str, start: int, position: Position) -> tuple[str, int]:
    """The string that opens at ``start``, and the column after it."""
    value = ""
    column = start + 1
    while column < len(line):
        char = line[column]
        if char == "'":
            return value, column + 1
        if char == "\\":
            column += 1
            escaped = line[column : column + 1]
            if escaped not in _ESCAPES:
                raise QapiError(position, f"expected one of {' '.join(_ESCAPES)} after a backslash, got {escaped!r}")
            char = _ESCAPES[escaped]
        elif not char.isprintable():
            raise QapiError(position, f"expected printable characters in a string, got {char!r}")
        value += char
        column += 1
    raise QapiError(position, "expected a closing single quote before the end of the line")

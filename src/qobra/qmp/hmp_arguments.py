"""The arguments of the human monitor's commands, of the types that :mod:`qobra.qmp.hmp` lists, from a line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from qobra.qmp.hmp_expression import BadExpression, Registers, evaluate, signed
from qobra.units import INT64_MAX, parse_size

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.qmp.hmp import HmpCommand

_TEXT_NAMES = {"s": "string", "F": "filename", "B": "block device name"}
_ESCAPES = {"n": "\n", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_SIZE = re.compile(r"\+?(0[xX][0-9a-fA-F]+(?![.])|[0-9]+(?:\.[0-9]*)?)([bBkKmMgGtTpPeE])?")
_FORMAT = re.compile(r"([0-9]*)(\S*)")
_FORM_LETTERS = "oduxic"
_COUNT_DIGITS = 9
_WIDTHS = {"b": 1, "h": 2, "w": 4, "g": 8, "L": 8}


class BadArguments(Exception):
    """What is wrong with a command's arguments."""


class Format:
    """How numbers are shown: how many, in which form (one of ``oduxic``), each of how many bytes."""

    def __init__(self, count: int, form: str, width: int) -> None:
        self.count = count
        self.form = form
        self.width = width


_last_formats: WeakKeyDictionary[Machine, Format] = WeakKeyDictionary()


class Arguments:
    """Takes typed arguments off a line. ``registers`` are those of the CPU that the monitor looks at."""

    def __init__(self, text: str, machine: Machine, registers: Registers) -> None:
        self._text = text
        self._machine = machine
        self._registers = registers

    def parse(self, entry: HmpCommand) -> dict[str, Any]:
        """The arguments that ``entry`` takes, by name. Raises BadArguments."""
        arguments: dict[str, Any] = {}
        for name, kind in entry.arguments:
            self._text = self._text.lstrip()
            optional = kind.endswith("?")
            kind = kind.rstrip("?")
            if kind.startswith("-"):
                self._flag(entry, name, kind, arguments)
            elif kind == "/":
                arguments[name] = self._format()
            elif not self._text and optional:
                continue
            elif kind == "i.":
                if self._text.startswith("."):
                    self._text = self._text[1:]
                    arguments[name] = self._number(entry, "i")
            elif kind in ("S", "O"):
                if not self._text and kind == "S":
                    raise BadArguments(f"{entry.own_names}: string expected")
                arguments[name], self._text = self._text, ""
            elif kind in _TEXT_NAMES:
                if not self._text:
                    raise BadArguments(f"{entry.own_names}: {_TEXT_NAMES[kind]} expected")
                arguments[name] = self._word()
            elif kind == "b":
                arguments[name] = self._boolean(name)
            elif kind == "o":
                arguments[name] = self._size()
            else:
                arguments[name] = self._number(entry, kind)
        self._text = self._text.lstrip()
        if self._text:
            raise BadArguments(f"{entry.own_names}: extraneous characters at the end of line")
        return arguments

    def _flag(self, entry: HmpCommand, name: str, kind: str, arguments: dict[str, Any]) -> None:
        if not self._text.startswith("-") or self._text[1:2].isdigit():
            return
        letter = self._text[1:2]
        if letter != kind[1]:
            # One that comes later in the description?
            if not any(each.startswith(f"-{letter}") for _, each in entry.arguments if letter):
                raise BadArguments(f"{entry.own_names}: unsupported option -{letter}")
            return
        self._text = self._text[2:].lstrip()
        arguments[name] = self._word() if kind[2:] == "s" else True

    def _format(self) -> Format:
        """What follows a slash; what it leaves out is as it was the last time."""
        last = _last_formats.get(self._machine) or Format(1, "x", 4)
        found = Format(1, last.form, last.width)
        if self._text.startswith("/"):
            match = _FORMAT.match(self._text, 1)
            assert match is not None
            found.count = int(match[1][:_COUNT_DIGITS] or 1)
            for letter in match[2]:
                if letter in _FORM_LETTERS:
                    found.form = letter
                elif letter in _WIDTHS:
                    found.width = _WIDTHS[letter]
                else:
                    raise BadArguments(f"invalid char in format: '{letter}'")
            self._text = self._text[match.end() :].lstrip()
            _last_formats[self._machine] = found
        return found

    def _word(self) -> str:
        text = self._text
        if not text.startswith('"'):
            end = next((i for i, character in enumerate(text) if character.isspace()), len(text))
            self._text = text[end:]
            return text[:end]
        word: list[str] = []
        position = 1
        while position < len(text) and text[position] != '"':
            if text[position] == "\\":
                position += 1
                escape = text[position : position + 1]
                if escape not in _ESCAPES:
                    raise BadArguments(f"unsupported escape code: '\\{escape}'")
                word.append(_ESCAPES[escape])
            else:
                word.append(text[position])
            position += 1
        if position >= len(text):
            raise BadArguments("unterminated string")
        self._text = text[position + 1 :]
        return "".join(word)

    def _boolean(self, name: str) -> bool:
        word = self._word()
        if word not in ("on", "off"):
            raise BadArguments("Expected 'on' or 'off'")
        return word == "on"

    def _number(self, entry: HmpCommand, kind: str) -> int:
        try:
            value, self._text = evaluate(self._text, self._registers)
        except BadExpression as error:
            raise BadArguments(str(error)) from None
        if kind == "i" and not 0 <= value < 1 << 32:
            raise BadArguments(f"'{entry.own_names}' has failed: integer is for 32-bit values")
        if kind == "M":
            if value < 0:
                raise BadArguments("enter a positive value")
            value = signed(value << 20)
        return value

    def _size(self) -> int:
        match = _SIZE.match(self._text)
        if match is None:
            raise BadArguments("invalid size")
        try:
            size = parse_size(match[1] + (match[2] or "M"))
        except ValueError:
            size = INT64_MAX + 1
        if size > INT64_MAX:
            raise BadArguments("invalid size")
        self._text = self._text[match.end() :]
        return size

"""HMP, the monitor for people: commands by line, with typed arguments, answers as text.

A command registers itself with :func:`hmp_command`. ``args`` describes its arguments as ``name:type`` joined with
commas, a ``?`` after the type making one optional:

====  =====================================================
s     a word, or text in double quotes
F, B  the same: a file's name, a block device's name
S     the rest of the line
O     the rest of the line: ``key=value,...`` options
i, l  a number; ``i`` one of 32 bits without a sign
M     a number of mebibytes, or with a suffix; as bytes
o     the same
b     ``on`` or ``off``
-x    the flag ``-x``; ``-xs`` takes a word after it
====  =====================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from qobra.errors import QobraError
from qobra.qmp import registry
from qobra.units import INT64_MAX, parse_size

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

Handler = Callable[["Machine", dict[str, Any]], str | None]
_H = TypeVar("_H", bound=Callable[..., Any])

_TEXT_NAMES = {"s": "string", "F": "filename", "B": "block device name"}
_ESCAPES = {"n": "\n", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_SIZE = re.compile(r"\+?(0[xX][0-9a-fA-F]+(?![.])|[0-9]+(?:\.[0-9]*)?)([bBkKmMgGtTpPeE])?")


class HmpCommand:
    """One command, under all its names (``quit|q``); ``info`` commands have ``info `` before theirs."""

    def __init__(self, names: str, handler: Handler, args: str, params: str, help: str, needs: str | None) -> None:
        self.names = names
        self.handler = handler
        self.params = params
        self.help = help
        self.needs = needs
        self.arguments = [tuple(each.split(":", 1)) for each in args.split(",") if each]

    @property
    def own_names(self) -> str:
        """The names without the table that they are in."""
        return self.names.removeprefix("info ")

    def usage(self) -> str:
        """The line that ``help`` prints."""
        return f"{self.names} {self.params} -- {self.help}\n"


_commands: dict[str, HmpCommand] = {}
_loaded = False


def hmp_command(
    names: str, *, args: str = "", params: str = "", help: str, needs: str | None = None
) -> Callable[[_H], _H]:
    """Decorator: the function ``handler(machine, arguments)`` serves the command ``names`` and returns its output.

    ``params`` shows the arguments to people. ``needs`` is a capability without which there is no such command.
    """

    def decorate(handler: _H) -> _H:
        entry = HmpCommand(names, handler, args, params, help, needs)
        table = "info " if names.startswith("info ") else ""
        for name in entry.own_names.split("|"):
            _commands[table + name] = entry
        return handler

    return decorate


def commands(machine: Machine) -> dict[str, HmpCommand]:
    """The commands that ``machine`` serves, by each of their names."""
    global _loaded
    if not _loaded:
        registry.commands()
        _loaded = True
    return {
        name: entry
        for name, entry in sorted(_commands.items())
        if entry.needs is None or entry.needs in machine.capabilities
    }


def execute(machine: Machine, line: str) -> str:
    """Run ``line`` in the strand and return what it prints, lines ending as on a terminal.

    A machine that could not be set up carries nothing out: its program is about to end.
    """
    try:
        with machine.control:
            if machine.setting_up:
                return ""
            output = _run(machine, line.strip())
    except QobraError as error:
        output = f"Error: {error}\n"
    return output.replace("\r\n", "\n").replace("\n", "\r\n")


def _run(machine: Machine, line: str) -> str:
    if not line:
        return ""
    table = commands(machine)
    word, _, rest = line.partition(" ")
    if word == "info" and not rest.strip():
        return help_text(machine, "info")
    if word == "info":
        word, _, rest = rest.strip().partition(" ")
        word = f"info {word}"
    entry = table.get(word)
    if entry is None:
        return f"unknown command: '{word}'\n"
    try:
        arguments = _Arguments(rest).parse(entry)
    except _BadArguments as error:
        return f'{error}\nTry "help {word}" for more information\n'
    return entry.handler(machine, arguments) or ""


def help_text(machine: Machine, topic: str = "") -> str:
    """What ``help TOPIC`` prints."""
    table = commands(machine)
    topic = " ".join(topic.split())
    if topic and topic not in table and topic != "info":
        return f"unknown command: '{topic if topic.startswith('info ') else topic.split()[0]}'\n"
    if topic and topic != "info":
        return table[topic].usage()
    lines = {}
    for name, entry in table.items():
        if name.startswith("info ") == (topic == "info"):
            lines[entry.names] = entry.usage()
    if not topic:
        lines["info"] = "info [subcommand] -- how things stand; alone, what can be asked for\n"
    return "".join(lines[name] for name in sorted(lines))


class _BadArguments(Exception):
    """What is wrong with a command's arguments."""


class _Arguments:
    """Takes typed arguments off a line."""

    def __init__(self, text: str) -> None:
        self._text = text

    def parse(self, entry: HmpCommand) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for name, kind in entry.arguments:
            self._text = self._text.lstrip()
            optional = kind.endswith("?")
            kind = kind.rstrip("?")
            if kind.startswith("-"):
                self._flag(entry, name, kind, arguments)
            elif not self._text and optional:
                continue
            elif kind in ("S", "O"):
                if not self._text:
                    raise _BadArguments(f"{entry.own_names}: string expected")
                arguments[name], self._text = self._text, ""
            elif kind in _TEXT_NAMES:
                if not self._text:
                    raise _BadArguments(f"{entry.own_names}: {_TEXT_NAMES[kind]} expected")
                arguments[name] = self._word()
            elif kind == "b":
                arguments[name] = self._boolean(name)
            elif kind in ("o", "M"):
                arguments[name] = self._size()
            else:
                arguments[name] = number = self._number()
                if kind == "i" and not 0 <= number < 1 << 32:
                    raise _BadArguments(f"'{entry.own_names}' has failed: integer is for 32-bit values")
        self._text = self._text.lstrip()
        if self._text:
            raise _BadArguments(f"{entry.own_names}: extraneous characters at the end of line")
        return arguments

    def _flag(self, entry: HmpCommand, name: str, kind: str, arguments: dict[str, Any]) -> None:
        if not self._text.startswith("-") or self._text[1:2].isdigit():
            return
        letter = self._text[1:2]
        if letter != kind[1]:
            # One that comes later in the description?
            if not any(each.startswith(f"-{letter}") for _, each in entry.arguments if letter):
                raise _BadArguments(f"{entry.own_names}: unsupported option -{letter}")
            return
        self._text = self._text[2:].lstrip()
        arguments[name] = self._word() if kind[2:] == "s" else True

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
                    raise _BadArguments(f"unsupported escape code: '\\{escape}'")
                word.append(_ESCAPES[escape])
            else:
                word.append(text[position])
            position += 1
        if position >= len(text):
            raise _BadArguments("unterminated string")
        self._text = text[position + 1 :]
        return "".join(word)

    def _boolean(self, name: str) -> bool:
        word = self._word()
        if word not in ("on", "off"):
            raise _BadArguments("Expected 'on' or 'off'")
        return word == "on"

    def _number(self) -> int:
        word = self._word()
        if not word:
            raise _BadArguments("unexpected end of expression")
        try:
            return int(word, 0)
        except ValueError:
            bad = next((c for c in word if not c.isdigit()), word[0])
            raise _BadArguments(f"invalid char '{bad}' in expression") from None

    def _size(self) -> int:
        match = _SIZE.match(self._text)
        if match is None:
            raise _BadArguments("invalid size")
        try:
            size = parse_size(match[1] + (match[2] or "M"))
        except ValueError:
            size = INT64_MAX + 1
        if size > INT64_MAX:
            raise _BadArguments("invalid size")
        self._text = self._text[match.end() :]
        return size

"""``--trace [[enable=]PATTERN][,events=FILE][,file=FILE]``: which trace events to print, and where."""

from __future__ import annotations

import sys

from qobra.cli._tool.report import Program, ToolError, flush_output
from qobra.errors import QobraError, strerror
from qobra.report import print_text

_MAX_LINE = 1023
"""Bytes; what is longer is taken for several lines, as QEMU does."""
MEMBERS = ("enable", "events", "file")


def take(program: Program, text: str) -> bool:
    """Do what the option asks for; False if it only asked for the names of the events. Raises ToolError."""
    if text.removeprefix("enable=") in ("help", "?"):
        from qobra.trace import events

        print_text("".join(f"{each}\n" for each in events()))
        return False
    enable(program, text)
    return True


def enable(program: Program, text: str, *, typed: str = "") -> None:
    """Switch on what ``text`` asks for, and warn of names of no event, with the option as it was ``typed``.

    A pattern may match nothing. Raises ToolError.
    """
    from qobra import trace
    from qobra.qapi.keyval import parse

    try:
        options = parse(text, "enable")
    except QobraError as error:
        raise ToolError(str(error))
    for name in options:
        if name not in MEMBERS:
            raise ToolError(f"Invalid parameter '{name}'")
    _switch(f"{program.name}: {typed}: " if typed else f"{program.name}: ", str(options.get("enable", "")))
    path = options.get("events")
    if path is not None:
        try:
            with open(path, "rb") as stream:
                number = 1
                while line := stream.readline(_MAX_LINE):
                    # What is no text has no names: as in C, a line ends with a zero.
                    name = line.partition(b"\0")[0].decode("utf-8", "replace").strip()
                    _switch(f"{program.name}:{path}:{number}: ", name)
                    number += 1
        except OSError as error:
            sys.stderr.write(f"{program.name}:{path}: {strerror(error)}\n")
            raise ToolError("")
    path = options.get("file")
    if path is not None:
        try:
            trace.write_to(str(path))
        except OSError as error:
            raise ToolError(f"Error opening logfile {path}: {strerror(error)}")


def _switch(place: str, pattern: str) -> None:
    """``PATTERN`` or, to switch off, ``-PATTERN``; comments of a file of events are let by."""
    from qobra.trace import switch

    name = pattern.removeprefix("-")
    if not name or name.startswith("#"):
        return
    if not switch(pattern):
        flush_output()
        sys.stderr.write(f"{place}warning: trace event '{name}' does not exist\n")

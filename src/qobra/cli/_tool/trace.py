"""``--trace``: which trace events to print. Qobra has none, so that every name is one that does not exist."""

from __future__ import annotations

import sys

from qobra.cli._tool.report import Program, ToolError, flush_output
from qobra.errors import QobraError, strerror

MEMBERS = ("enable", "events", "file")


def enable(program: Program, text: str) -> None:
    """See that ``[[enable=]PATTERN][,events=FILE][,file=FILE]`` can be, and warn of names of no event.

    A pattern, with ``*`` in it, may match nothing. Raises ToolError.
    """
    from qobra.qapi.keyval import parse

    try:
        options = parse(text, "enable")
    except QobraError as error:
        raise ToolError(str(error))
    for name in options:
        if name not in MEMBERS:
            raise ToolError(f"Invalid parameter '{name}'")
    _warn(program.name + ": ", str(options.get("enable", "")))
    path = options.get("events")
    if path is not None:
        try:
            with open(path, encoding="utf-8", errors="replace") as stream:
                for number, line in enumerate(stream, 1):
                    _warn(f"{program.name}:{path}:{number}: ", line.strip())
        except OSError as error:
            raise ToolError(f"{path}: {strerror(error)}")


def _warn(place: str, pattern: str) -> None:
    name = pattern.removeprefix("-")
    if name and not name.startswith("#") and "*" not in name:
        flush_output()
        sys.stderr.write(f"{place}warning: trace event '{name}' does not exist\n")

"""What is printed: results, events and errors, for people or for programs."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

from qobra.client.events import Event
from qobra.report import visible

_STYLES = {"key": "\x1b[36m", "string": "\x1b[32m", "other": "\x1b[33m", "error": "\x1b[31m", "event": "\x1b[35m"}
_RESET = "\x1b[0m"


class Printer:
    """Prints to ``out``, in colour if ``color``, and as one JSON object a line if ``as_json``."""

    def __init__(self, *, as_json: bool, color: bool, out: TextIO | None = None) -> None:
        self._json = as_json
        self._color = color
        self._out = out

    def result(self, value: Any) -> None:
        """What a command returned; nothing is printed for people if that is nothing."""
        if self._json:
            self._print(json.dumps({"return": value}))
        elif value != {}:
            self._print(self.pretty(value))

    def text(self, text: str) -> None:
        """Words as they are."""
        self._print(text)

    def event(self, event: Event) -> None:
        """An event, on one line."""
        if self._json:
            self._print(json.dumps({"event": event.name, "data": event.data, "time": event.time}))
            return
        clock = time.strftime("%H:%M:%S", time.localtime(event.time))
        data = " ".join(f"{key}={_short(value)}" for key, value in event.data.items())
        self._print(self._paint("event", f"[{clock}] {event.name}") + (f" {data}" if data else ""))

    def error(self, error_class: str, desc: str) -> None:
        """An error: on standard error for people, in line with the results for programs."""
        if self._json:
            self._print(json.dumps({"error": {"class": error_class, "desc": desc}}))
        else:
            print(self._paint("error", visible(desc, "\n\t")), file=sys.stderr, flush=True)

    def pretty(self, value: Any) -> str:
        """A value as an indented outline, its parts coloured by kind."""
        return "\n".join(self._outline(value, ""))

    def _outline(self, value: Any, indent: str) -> list[str]:
        if isinstance(value, dict) and value:
            lines: list[str] = []
            for key, item in value.items():
                label = f"{indent}{self._paint('key', key)}:"
                if isinstance(item, dict | list) and item:
                    lines += [label, *self._outline(item, indent + "  ")]
                else:
                    lines.append(f"{label} {self._scalar(item)}")
            return lines
        if isinstance(value, list) and value:
            items = [self._outline(item, indent + "  ") for item in value]
            return [line for first, *rest in items for line in [f"{indent}- {first.lstrip()}", *rest]]
        return [indent + self._scalar(value)]

    def _scalar(self, value: Any) -> str:
        if isinstance(value, str):
            # A terminal must not be told what to do by what a server says.
            value = value.replace("\r\n", "\n")  # what people are told in a monitor has the line ends of a terminal
            return self._paint("string", visible(value, "\n\t"))
        return self._paint("other", json.dumps(value))

    def _paint(self, kind: str, text: str) -> str:
        return f"{_STYLES[kind]}{text}{_RESET}" if self._color else text

    def _print(self, text: str) -> None:
        print(text, file=self._out or sys.stdout, flush=True)


def _short(value: Any) -> str:
    return visible(value) if isinstance(value, str) else json.dumps(value)

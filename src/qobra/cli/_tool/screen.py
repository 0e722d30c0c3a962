"""Standard streams where a person reads them: names out of images, and what peers say, cannot control the terminal.

A pipe or a file gets the octets, as from QEMU's tools.
"""

from __future__ import annotations

import io
import sys

from qobra.report import visible


class Screen(io.TextIOWrapper):
    """A stream to a terminal. What would control it is spelled out, but for the ends of lines and tabs.

    A carriage return is kept at the end of what is written at once, where it can hide nothing.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, stream.errors, line_buffering=True)
        self.drawing = stream
        """The same terminal for what draws on it."""

    def write(self, text: str, /) -> int:
        end = "\r" if text.endswith("\r") else ""
        super().write(visible(text.removesuffix("\r"), "\n\t") + end)
        return len(text)


def guard() -> None:
    """Put a :class:`Screen` in the place of each of standard output and error that is a terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and stream.isatty():
            setattr(sys, name, Screen(stream))

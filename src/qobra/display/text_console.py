"""Text consoles: a terminal on a console of its own, drawn when somebody looks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.display import font
from qobra.display.surface import Surface
from qobra.display.terminal import BRIGHT, INK, PAPER, UNDERLINED, Terminal

if TYPE_CHECKING:
    from qobra.display.console import Console, Consoles

COLUMNS, ROWS = 80, 24
SIDE_MAX = 4096
"""Pixels each way, so that a picture takes 64 MiB at most."""
_UNDERLINE_AT = font.HEIGHT - 2
_ALL_DOTS = 31


class TextConsole:
    """A terminal of ``width`` x ``height`` pixels. ``typed`` takes what comes from its keyboard, in any thread.

    The picture is made for the first who looks: until then, a console is as small as its text.
    """

    def __init__(self, consoles: Consoles, width: int, height: int, typed: Callable[[bytes], None]) -> None:
        self._consoles = consoles
        self._width, self._height = width, height
        self._lock = threading.Lock()
        self._terminal = Terminal(max(1, width // font.WIDTH), max(1, height // font.HEIGHT), typed)
        self._cursor: tuple[int, int] | None = None
        self._drawing: _Drawing | None = None
        self._console: Console = consoles.add_text(typed)
        self._console.refresh = self._refresh

    def write(self, data: bytes) -> None:
        """Show ``data``; in any thread."""
        with self._lock:
            self._terminal.write(data)

    def close(self) -> None:
        """Be gone. Call it in the control strand."""
        self._consoles.remove_text(self._console)

    def _refresh(self) -> None:
        if self._drawing is None:
            self._drawing = _Drawing()
            self._console.show(Surface.blank(self._width, self._height))
        with self._lock:
            terminal = self._terminal
            rows = sorted(terminal.changed)
            terminal.changed.clear()
            for y in rows:
                self._draw(terminal, y, self._drawing)
        if rows:
            top, end = font.HEIGHT * rows[0], min(font.HEIGHT * (rows[-1] + 1), self._height)
            self._console.update(0, top, self._width, end - top)

    def _draw(self, terminal: Terminal, y: int, drawing: _Drawing) -> None:
        looks = terminal.looks[y]
        if terminal.cursor_shown and terminal.y == y:
            x = min(terminal.x, terminal.columns - 1)
            look, looks = looks[x], looks[:]
            looks[x] = look & UNDERLINED | (look & INK) << 4 | (look & PAPER) >> 4
        surface = self._console.surface
        for number, line in enumerate(drawing.row(terminal.text[y], looks)):
            at = (y * font.HEIGHT + number) * surface.stride
            if at < len(surface.data):
                pixels = line[: surface.stride]
                surface.data[at : at + len(pixels)] = pixels


class _Drawing:
    """Makes pixels of characters."""

    def __init__(self) -> None:
        self._font = font.lines()
        self._shapes: dict[int, list[bytes]] = {}
        """For each look, the pixels of a line of a cell, by its five dots."""

    def row(self, text: bytearray, looks: bytearray) -> list[bytes]:
        """The lines of a row of text."""
        lines = [bytearray() for _ in self._font]
        start = 0
        while start < len(text):
            look = looks[start]
            end = start + len(looks[start:]) - len(looks[start:].lstrip(bytes((look,))))
            shapes = self._shapes.get(look) or self._make_shapes(look)
            for number, (line, dots) in enumerate(zip(lines, self._font, strict=True)):
                if look & UNDERLINED and number == _UNDERLINE_AT:
                    line += shapes[_ALL_DOTS + 1] * (end - start)
                else:
                    line += b"".join([shapes[each] for each in text[start:end].translate(dots)])
            start = end
        return [bytes(line) for line in lines]

    def _make_shapes(self, look: int) -> list[bytes]:
        value = 0xFF if look & BRIGHT else 0xAA
        ink, paper = _pixel(look & INK, value), _pixel((look & PAPER) >> 4, value)
        shapes = [
            paper + b"".join(ink if dots >> 4 - bit & 1 else paper for bit in range(5)) + 2 * paper
            for dots in range(_ALL_DOTS + 1)
        ]
        shapes.append(font.WIDTH * ink)
        self._shapes[look] = shapes
        return shapes


def _pixel(colour: int, value: int) -> bytes:
    """Bits 0 to 2 are red, green and blue (ECMA-48, SGR)."""
    return bytes((value * (colour >> 2 & 1), value * (colour >> 1 & 1), value * (colour & 1), 0))

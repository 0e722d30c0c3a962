"""Terminals: what bytes do to the rows."""

from __future__ import annotations

import random

import pytest

from qobra.display import font
from qobra.display.terminal import BRIGHT, PLAIN, UNDERLINED, Terminal


def _screen(terminal: Terminal) -> str:
    return "\n".join(row.decode("latin-1").rstrip() for row in terminal.text).rstrip("\n")


@pytest.mark.parametrize(
    ("written", "screen", "place"),
    [
        (b"ab\r\ncd", "ab\ncd", (2, 1)),
        (b"ab\ncd", "ab\n  cd", (4, 1)),
        (b"ab\bc\tx", "ac      x", (9, 0)),
        (b"0123456789", "0123456789", (10, 0)),
        (b"0123456789a", "0123456789\na", (1, 1)),
        (b"0123456789\r\na", "0123456789\na", (1, 1)),
        (b"1\r\n2\r\n3\r\n4\r\n5", "2\n3\n4\n5", (1, 3)),
        (b"\x1b[2;3Hx\x1b[Hy\x1b[3dz", "y\n  x\n z", (2, 2)),
        (b"\x1b[99;99Hx\x1b[A\x1b[Dy", "\n\n        y\n         x", (9, 2)),
        (b"\x1b[2B\x1b[3Cx\x1b[Ey\x1b[Fz\x1b[4Gw", "\n\nz  w\ny", (4, 2)),
        (b"abcdef\x1b[3D\x1b[K", "abc", (3, 0)),
        (b"abcdef\x1b[3D\x1b[1K", "    ef", (3, 0)),
        (b"abcdef\x1b[2K", "", (6, 0)),
        (b"1a\r\n2b\r\n3c\x1b[2;2H\x1b[J", "1a\n2", (1, 1)),
        (b"1a\r\n2b\r\n3c\x1b[2;1H\x1b[1J", "\n b\n3c", (0, 1)),
        (b"1\r\n2\x1b[2J", "", (1, 1)),
        (b"abcdef\x1b[2G\x1b[2P", "adef", (1, 0)),
        (b"abcdef\x1b[2G\x1b[2@", "a  bcdef", (1, 0)),
        (b"abcdef\x1b[2G\x1b[2X", "a  def", (1, 0)),
        (b"1\r\n2\r\n3\r\n4\x1b[2H\x1b[L", "1\n\n2\n3", (0, 1)),
        (b"1\r\n2\r\n3\r\n4\x1b[2H\x1b[M", "1\n3\n4", (0, 1)),
        (b"1\r\n2\r\n3\r\n4\x1b[2;3r\x1b[3H\n", "1\n3\n\n4", (0, 2)),
        (b"1\r\n2\x1b[H\x1bM", "\n1\n2", (0, 0)),
        (b"a\x1b7\x1b[3Hb\x1b8c", "ac\n\nb", (2, 0)),
        (b"a\x1b]0;title\x07b\x1b]0;title\x1b\\c\x1b(Bd", "abcd", (4, 0)),
        (b"a\x1b[12\x18b\x1b[?7lc\x1b[>1md", "abcd", (4, 0)),
        (b"a\x1b[1\rC\x1b[1;2;3;4;5;6;7;8;9;10;11;12;13;14;15;16;17;18Zb", "C", None),
    ],
)
def test_screen(written: bytes, screen: str, place: tuple[int, int] | None) -> None:
    for step in (len(written), 1):
        terminal = Terminal(10, 4, lambda data: None)
        for at in range(0, len(written), step):
            terminal.write(written[at : at + step])
        if place is not None:
            assert (_screen(terminal), (terminal.x, terminal.y)) == (screen, place)


def test_looks() -> None:
    terminal = Terminal(10, 2, lambda data: None)
    terminal.write(b"a\x1b[1;31;44mb\x1b[7mc\x1b[0;4md\x1b[24;8me\x1b[mf\x1b[42m\x1b[K")
    bold = BRIGHT | 1 | 4 << 4
    assert list(terminal.looks[0]) == [
        *(PLAIN, bold, BRIGHT | 4 | 1 << 4, PLAIN | UNDERLINED, 0, PLAIN),
        *(PLAIN for _ in range(4)),
    ]


def test_reports() -> None:
    said: list[bytes] = []
    Terminal(10, 4, said.append).write(b"\x1b[5n\x1b[2;3H\x1b[6n\x1b[99n")
    assert said == [b"\x1b[0n", b"\x1b[2;3R"]


def test_cursor_is_hidden_on_demand() -> None:
    terminal = Terminal(10, 4, lambda data: None)
    terminal.write(b"\x1b[?25l")
    assert not terminal.cursor_shown
    terminal.write(b"\x1b[?25h")
    assert terminal.cursor_shown


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (80, 24)])
def test_whatever_comes_the_screen_stays_one(size: tuple[int, int]) -> None:
    draw = random.Random(size[0])
    terminal = Terminal(*size, lambda data: None)
    pieces = [b"\x1b[", b"\x1b", b";", b"9", b"0", b"99999999", b"\n", b"x", b"\x1b[2;3r", b"?", b"\t", b"\b"]
    finals = [bytes((code,)) for code in range(0x40, 0x7F)]
    for _ in range(4000):
        terminal.write(draw.choice(pieces if draw.random() < 0.6 else finals))
    columns, rows = size
    assert len(terminal.text) == len(terminal.looks) == rows
    assert {len(row) for row in (*terminal.text, *terminal.looks)} == {columns}
    assert 0 <= terminal.x <= columns and 0 <= terminal.y < rows
    assert terminal.changed <= set(range(rows))


def test_characters_are_told_apart() -> None:
    lines = font.lines()
    shapes = [bytes(line[code] for line in lines) for code in range(0x20, 0x80)]
    assert len(set(shapes)) == 96
    assert not any(shapes[0])
    assert len(lines) == font.HEIGHT
    assert max(map(max, lines)) < 32

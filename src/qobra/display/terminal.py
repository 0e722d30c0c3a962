"""A terminal without its picture: what bytes that are written do to rows of characters (ECMA-48, DEC VT100 manual).

Text, the movements of the cursor, erasing, inserting and deleting, scrolling in a region, colours; a report of the
cursor's place and of the state. What else there is in ECMA-48 is read over. There is no memory of what scrolled away.
"""

from __future__ import annotations

from collections.abc import Callable

_ESC, _BEL, _CAN, _SUB, _DEL = 0x1B, 0x07, 0x18, 0x1A, 0x7F
_TAB = 8
_BLANK = 0x20
_PARAMETERS_MAX, _VALUE_MAX = 16, 9999

INK, BRIGHT, PAPER, UNDERLINED = 0x07, 0x08, 0x70, 0x80
"""The parts of a look: the colour of the character, whether colours are bright, the one behind it, a line below."""
PLAIN = 0x07
_BOLD, _UNDERLINE, _REVERSE, _HIDDEN = 1, 4, 7, 8
_RENDITIONS = {22: _BOLD, 24: _UNDERLINE, 27: _REVERSE, 28: _HIDDEN}
"""What ends each of them."""


class Terminal:
    """``rows`` rows of ``columns`` characters in ``text``, and their ``looks``; ``changed`` are the rows to be drawn.

    ``answer`` takes what the terminal says by itself.
    """

    def __init__(self, columns: int, rows: int, answer: Callable[[bytes], None]) -> None:
        self.columns, self.rows = columns, rows
        self._answer = answer
        self._parse: Callable[[int], None] = self._ground
        self._commands: dict[int, Callable[[list[int]], None]] = {
            ord("A"): lambda given: self._move(self.x, self.y - _count(given)),
            ord("B"): lambda given: self._move(self.x, self.y + _count(given)),
            ord("C"): lambda given: self._move(self.x + _count(given), self.y),
            ord("D"): lambda given: self._move(min(self.x, columns - 1) - _count(given), self.y),
            ord("E"): lambda given: self._move(0, self.y + _count(given)),
            ord("F"): lambda given: self._move(0, self.y - _count(given)),
            ord("G"): lambda given: self._move(_count(given) - 1, self.y),
            ord("H"): lambda given: self._move(_count(given, 1) - 1, _count(given) - 1),
            ord("J"): self._erase_display,
            ord("K"): self._erase_line,
            ord("L"): lambda given: self._insert_lines(_count(given)),
            ord("M"): lambda given: self._insert_lines(-_count(given)),
            ord("P"): lambda given: self._shift(-_count(given)),
            ord("@"): lambda given: self._shift(_count(given)),
            ord("X"): lambda given: self._clear(self.y, self.x, self.x + _count(given)),
            ord("d"): lambda given: self._move(self.x, _count(given) - 1),
            ord("f"): lambda given: self._move(_count(given, 1) - 1, _count(given) - 1),
            ord("m"): self._render,
            ord("n"): self._report,
            ord("r"): self._set_region,
            ord("s"): lambda given: self._save(),
            ord("u"): lambda given: self._restore(),
        }
        self.reset()

    def reset(self) -> None:
        """Be empty."""
        self.text = [bytearray((_BLANK,)) * self.columns for _ in range(self.rows)]
        self.looks = [bytearray((PLAIN,)) * self.columns for _ in range(self.rows)]
        self.changed = set(range(self.rows))
        self.x = self.y = 0
        self.cursor_shown = True
        self._top, self._end = 0, self.rows
        self._renditions: set[int] = set()
        self._ink, self._paper = 7, 0
        self._look = PLAIN
        self._save()

    def write(self, data: bytes) -> None:
        """Do what ``data`` says; a sequence may end in a later piece."""
        for byte in data:
            self._parse(byte)

    # -- reading

    def _ground(self, byte: int) -> None:
        if byte >= _BLANK:
            if byte != _DEL:
                self._put(byte)
        else:
            self._control(byte)

    def _control(self, byte: int) -> None:
        x = min(self.x, self.columns - 1)
        if byte == _ESC:
            self._parse = self._escape
        elif byte in b"\n\v\f":
            self._line_feed()
        elif byte == 0x0D:
            self._move(0, self.y)
        elif byte == 0x08:
            self._move(x - 1, self.y)
        elif byte == 0x09:
            self._move(x - x % _TAB + _TAB, self.y)
        elif byte in (_CAN, _SUB):
            self._parse = self._ground

    def _escape(self, byte: int) -> None:
        if byte < _BLANK:
            self._control(byte)
            return
        self._parse = self._ground
        if byte == ord("["):
            self._given: list[int] = [0]
            self._private = False
            self._parse = self._sequence
        elif byte in b"]PX^_":
            self._parse = self._string
        elif byte < 0x30:
            self._parse = self._designation
        elif byte == ord("D"):
            self._line_feed()
        elif byte == ord("E"):
            self._move(0, self.y)
            self._line_feed()
        elif byte == ord("M"):
            self._reverse_line_feed()
        elif byte == ord("7"):
            self._save()
        elif byte == ord("8"):
            self._restore()
        elif byte == ord("c"):
            self.reset()

    def _designation(self, byte: int) -> None:
        """The end of a choice of a character set; there is one only."""
        if byte >= 0x30:
            self._parse = self._ground

    def _string(self, byte: int) -> None:
        """A title or the like, up to its end."""
        if byte == _ESC:
            self._parse = self._escape
        elif byte in (_BEL, _CAN, _SUB):
            self._parse = self._ground

    def _sequence(self, byte: int) -> None:
        if byte < _BLANK:
            self._control(byte)
        elif 0x30 <= byte <= 0x39:
            self._given[-1] = min(10 * self._given[-1] + byte - 0x30, _VALUE_MAX)
        elif byte == ord(";"):
            if len(self._given) < _PARAMETERS_MAX:
                self._given.append(0)
            else:
                self._given[-1] = 0
        elif byte < 0x40:
            self._private = True
        else:
            self._parse = self._ground
            if self._private:
                if byte in b"hl" and self._given == [25]:
                    self.cursor_shown = byte == ord("h")
                    self.changed.add(self.y)
            elif byte in self._commands:
                self._commands[byte](self._given)

    # -- doing

    def _put(self, byte: int) -> None:
        if self.x >= self.columns:  # the last column was filled: only now does the line end
            self._move(0, self.y)
            self._line_feed()
        self.text[self.y][self.x] = byte
        self.looks[self.y][self.x] = self._look
        self.changed.add(self.y)
        self.x += 1

    def _move(self, x: int, y: int) -> None:
        self.changed.add(self.y)
        self.x = max(0, min(x, self.columns - 1))
        self.y = max(0, min(y, self.rows - 1))
        self.changed.add(self.y)

    def _line_feed(self) -> None:
        if self.y == self._end - 1:
            self._scroll(self._top, -1)
        else:
            self.changed.add(self.y)
            self.y = min(self.y + 1, self.rows - 1)
            self.changed.add(self.y)

    def _reverse_line_feed(self) -> None:
        if self.y == self._top:
            self._scroll(self._top, 1)
        else:
            self._move(self.x, self.y - 1)

    def _scroll(self, top: int, count: int) -> None:
        """Move the rows from ``top`` to the end of the region down, or up where ``count`` is negative."""
        end = self._end
        number = min(abs(count), end - top)
        blanks = self.columns * bytes((_BLANK,))
        looks = self.columns * bytes((PLAIN,))
        for rows, blank in ((self.text, blanks), (self.looks, looks)):
            new = [bytearray(blank) for _ in range(number)]
            rows[top:end] = rows[top + number : end] + new if count < 0 else new + rows[top : end - number]
        self.changed.update(range(top, end))

    def _insert_lines(self, count: int) -> None:
        if self._top <= self.y < self._end:
            self._scroll(self.y, count)

    def _shift(self, count: int) -> None:
        """Make room for characters at the cursor, or close the gap of deleted ones where ``count`` is negative."""
        x = min(self.x, self.columns - 1)
        number = min(abs(count), self.columns - x)
        for row, fill in ((self.text[self.y], _BLANK), (self.looks[self.y], PLAIN)):
            blank = bytes((fill,)) * number
            row[x:] = row[x + number :] + blank if count < 0 else blank + row[x : self.columns - number]
        self.changed.add(self.y)

    def _clear(self, y: int, first: int, end: int) -> None:
        first, end = min(first, self.columns - 1), min(end, self.columns)
        self.text[y][first:end] = bytes((_BLANK,)) * (end - first)
        self.looks[y][first:end] = bytes((PLAIN,)) * (end - first)
        self.changed.add(y)

    def _erase_line(self, given: list[int]) -> None:
        if given[0] in (0, 1, 2):
            self._clear(self.y, self.x if given[0] == 0 else 0, self.x + 1 if given[0] == 1 else self.columns)

    def _erase_display(self, given: list[int]) -> None:
        if given[0] not in (0, 1, 2):
            return
        if given[0] < 2:
            self._erase_line(given)
        before, after = range(self.y), range(self.y + 1, self.rows)
        for y in before if given[0] == 1 else after if given[0] == 0 else range(self.rows):
            self._clear(y, 0, self.columns)

    def _render(self, given: list[int]) -> None:
        for value in given:
            if value == 0:
                self._renditions.clear()
                self._ink, self._paper = 7, 0
            elif value in _RENDITIONS:
                self._renditions.discard(_RENDITIONS[value])
            elif value in _RENDITIONS.values():
                self._renditions.add(value)
            elif 30 <= value <= 37:
                self._ink = value - 30
            elif 40 <= value <= 47:
                self._paper = value - 40
            elif value == 39:
                self._ink = 7
            elif value == 49:
                self._paper = 0
        ink, paper = (self._paper, self._ink) if _REVERSE in self._renditions else (self._ink, self._paper)
        bright = BRIGHT if _BOLD in self._renditions else 0
        if _HIDDEN in self._renditions:
            ink, bright = paper, 0
        self._look = ink | bright | paper << 4 | (UNDERLINED if _UNDERLINE in self._renditions else 0)

    def _report(self, given: list[int]) -> None:
        if given[0] == 5:
            self._answer(b"\x1b[0n")
        elif given[0] == 6:
            self._answer(b"\x1b[%d;%dR" % (self.y + 1, min(self.x, self.columns - 1) + 1))

    def _set_region(self, given: list[int]) -> None:
        top, end = _count(given) - 1, min((given[1] if len(given) > 1 else 0) or self.rows, self.rows)
        if top + 1 < end:
            self._top, self._end = top, end
            self._move(0, 0)

    def _save(self) -> None:
        self._saved = (self.x, self.y, set(self._renditions), self._ink, self._paper, self._look)

    def _restore(self) -> None:
        self.changed.add(self.y)
        self.x, self.y, renditions, self._ink, self._paper, self._look = self._saved
        self._renditions = set(renditions)
        self.changed.add(self.y)


def _count(given: list[int], place: int = 0) -> int:
    """A parameter that is at least 1."""
    return max(given[place], 1) if place < len(given) else 1

"""Interrupt lines and other pins: one end sets a level, the other has a handler."""

from __future__ import annotations

from collections.abc import Callable

LevelHandler = Callable[[int], None]


def _nowhere(_level: int) -> None:
    pass


class Line:
    """A line to a handler. A line that is connected to nothing ignores what is set."""

    __slots__ = ("handler",)

    def __init__(self, handler: LevelHandler = _nowhere) -> None:
        self.handler = handler

    def set(self, level: int) -> None:
        """Drive the line; level lines hold it until the next call."""
        self.handler(level)

    def pulse(self) -> None:
        """High and low again: one edge."""
        self.handler(1)
        self.handler(0)

    def connect(self, target: Line) -> None:
        """Pass on to ``target`` whatever is set here."""
        self.handler = target.set

    def intercept(self, observer: LevelHandler) -> None:
        """Tell ``observer`` each level after the handler has had it."""
        handler = self.handler

        def both(level: int) -> None:
            handler(level)
            observer(level)

        self.handler = both


class Rises:
    """How often each input of an interrupt controller went high."""

    __slots__ = ("_levels", "counts")

    def __init__(self, inputs: int) -> None:
        self._levels = 0
        self.counts = [0] * inputs

    def see(self, number: int, level: int) -> None:
        """Input ``number`` was set."""
        bit = 1 << number
        if not level:
            self._levels &= ~bit
        elif not self._levels & bit:
            self._levels |= bit
            self.counts[number] += 1


class SharedLine:
    """Several sources on one level line: it is high while any of them is."""

    __slots__ = ("_levels", "target")

    def __init__(self, target: Line) -> None:
        self.target = target
        self._levels = 0

    def source(self, number: int) -> Line:
        """The line of one source."""

        def handler(level: int) -> None:
            if level:
                self._levels |= 1 << number
            else:
                self._levels &= ~(1 << number)
            self.target.set(1 if self._levels else 0)

        return Line(handler)

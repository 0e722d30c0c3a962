"""Read JSON as QEMU does: bytes as they come from a QMP peer, or one text, to values and errors.

Nearly all input is complete ASCII JSON objects, a packet each, so that is tried first with CPython's C scanner.
Whatever it does not take (a split value, an extension, an error) goes to QEMU's grammar in :mod:`qobra.json_lexer`
and :mod:`qobra.json_parser`, which also knows the words for what is wrong.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from qobra.json_lexer import Lexer
    from qobra.json_parser import Parser


class _NotPlain(ValueError):
    """Not for the fast path."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _NotPlain  # a duplicate key
    return result


def _integer(text: str) -> int:
    if len(text) > 18:
        raise _NotPlain  # may not fit 64 bits
    return int(text)


def _constant(_name: str) -> Any:
    raise _NotPlain  # NaN and the infinities are no JSON


class _ScannerSettings:
    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_object)
    parse_float = float
    parse_int = staticmethod(_integer)
    parse_constant = staticmethod(_constant)
    memo: dict[str, str] = {}


_scan: Callable[[str, int], tuple[Any, int]] | None = None
"""CPython's scanner. A daemon greets sooner than it is loaded."""


def _leave_to_the_grammar(_text: str, _position: int) -> Any:
    raise _NotPlain


def _load_scanner() -> Callable[[str, int], tuple[Any, int]]:
    global _scan
    try:
        # The json package imports re and three modules of its own to get at this.
        from _json import make_scanner
    except ImportError:  # not CPython
        _scan = _leave_to_the_grammar
    else:
        _scan = make_scanner(_ScannerSettings())  # type: ignore[arg-type]
    return _scan


_MANY = 1024
"""So few opening brackets that they cannot nest too deep."""


class Reader:
    """A stream of JSON values. ``idle`` is whether no value is half read."""

    def __init__(self) -> None:
        self._lexer: Lexer | None = None
        self._parser: Parser | None = None

    @property
    def idle(self) -> bool:
        """Whether the next byte begins a value."""
        return self._lexer is None

    def feed(self, data: bytes) -> list[Any]:
        """The values that ``data`` completes, in order, a QobraError standing for each that is none."""
        if self._lexer is None:
            values: list[Any] = []
            rest = _plain_objects(data, values)
            if rest is None:
                return values
            values += self._general(rest)
            return values
        return self._general(data)

    def end(self) -> list[Any]:
        """The input is over: what it completes, as :meth:`feed` has it."""
        if self._lexer is None or self._parser is None:
            return []
        values = self._parser.feed(self._lexer.end())
        error = self._parser.end()
        if error is not None:
            values.append(error)
        self._lexer = self._parser = None
        return values

    def _general(self, data: bytes) -> list[Any]:
        from qobra.json_lexer import Lexer
        from qobra.json_parser import Parser

        if self._lexer is None or self._parser is None:
            self._lexer = Lexer()
            self._parser = Parser()
        values = self._parser.feed(self._lexer.feed(data))
        if self._lexer.idle and self._parser.idle:
            self._lexer = self._parser = None
        return values


def _plain_objects(data: bytes, values: list[Any]) -> bytes | None:
    """Append the plain complete objects that ``data`` begins with; the rest of it, or None if that was all."""
    if not data.isascii() or b"\\u" in data:
        return data
    scan = _scan or _load_scanner()
    text = data.decode("ascii")
    size = len(text)
    if size > _MANY and text.count("{") + text.count("[") > _MANY:
        return data
    position = 0
    while True:
        while position < size and text[position] in " \t\r\n":
            position += 1
        if position == size:
            return None
        if text[position] != "{":
            return data[position:]
        try:
            value, position = scan(text, position)
        except (StopIteration, ValueError, RecursionError, SystemError):
            # SystemError: the scanner's own error is a class of json.decoder, which it expects to be imported.
            return data[position:]
        values.append(value)


def parse_text(text: str) -> Any:
    """The one value that ``text`` is. Raises QobraError in the words that QEMU has for options given as JSON."""
    from qobra.errors import QobraError

    reader = Reader()
    values = reader.feed(text.encode("utf-8", "surrogateescape"))
    values += reader.end()
    if not values:
        raise QobraError("Expecting a JSON value")
    if isinstance(values[0], QobraError):
        raise values[0]
    if len(values) > 1:
        raise QobraError("Expecting at most one JSON value")
    return values[0]

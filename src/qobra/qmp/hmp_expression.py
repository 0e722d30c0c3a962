"""Numbers of the human monitor: whole expressions, of 64 bits, with a CPU's registers in them.

``+`` and ``-`` bind weakest, then ``*``, ``/`` and ``%``, then ``&``, ``|`` and ``^``, then the signs and ``~``.
Operands are numbers in C's notation, characters in single quotes, ``$register`` and what is in parentheses.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Registers = Callable[[str], "int | None"]

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_REGISTER = re.compile(r"[A-Za-z0-9_.]*")
_LEVELS = ("+-", "*/%", "&|^")
_MAX_DEPTH = 64
_MAX_DIGITS = 80


class BadExpression(Exception):
    """What is wrong with an expression."""


def evaluate(text: str, registers: Registers) -> tuple[int, str]:
    """The value of the expression that ``text`` begins with, with a sign, and what follows it. Raises BadExpression."""
    parser = _Parser(text, registers)
    return parser.level(0), parser.text


def signed(value: int) -> int:
    """The number that 64 bits hold of ``value``."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


class _Parser:
    def __init__(self, text: str, registers: Registers) -> None:
        self.text = text.lstrip()
        self._registers = registers
        self._depth = 0

    def _skip(self, length: int) -> None:
        self.text = self.text[length:].lstrip()

    def level(self, number: int) -> int:
        if number == len(_LEVELS):
            return self._unary()
        value = self.level(number + 1)
        while self.text and self.text[0] in _LEVELS[number]:
            operator = self.text[0]
            self._skip(1)
            value = signed(_apply(operator, value, self.level(number + 1)))
        return value

    def _unary(self) -> int:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadExpression("expression is too deep")
        value = signed(self._operand())
        self._depth -= 1
        return value

    def _operand(self) -> int:
        if not self.text:
            raise BadExpression("unexpected end of expression")
        first = self.text[0]
        if first in "+-~(":
            self._skip(1)
        if first == "+":
            return self._unary()
        if first == "-":
            return -self._unary()
        if first == "~":
            return ~self._unary()
        if first == "(":
            return self._parenthesized()
        if first == "'":
            return self._character()
        if first == "$":
            return self._register()
        return self._number()

    def _parenthesized(self) -> int:
        value = self.level(0)
        if not self.text.startswith(")"):
            raise BadExpression("')' expected")
        self._skip(1)
        return value

    def _character(self) -> int:
        if len(self.text) < 2:
            raise BadExpression("character constant expected")
        if self.text[2:3] != "'":
            raise BadExpression("missing terminating ' character")
        value = ord(self.text[1])
        self._skip(3)
        return value

    def _register(self) -> int:
        match = _REGISTER.match(self.text, 1)
        value = self._registers(match[0]) if match is not None else None
        if match is None or value is None:
            raise BadExpression("unknown register")
        self._skip(match.end())
        return value

    def _number(self) -> int:
        match = _NUMBER.match(self.text)
        if match is None:
            raise BadExpression(f"invalid char '{self.text[0]}' in expression")
        digits = match[0]
        if len(digits) > _MAX_DIGITS:
            raise BadExpression("number too large")
        hexadecimal = digits[:2] in ("0x", "0X")
        value = int(digits, 16 if hexadecimal else 8 if digits[0] == "0" else 10)
        if value >= 1 << 64:
            raise BadExpression("number too large")
        self._skip(match.end())
        return value


def _apply(operator: str, left: int, right: int) -> int:
    if operator in "/%":
        if right == 0:
            raise BadExpression("division by zero")
        quotient = abs(left) // abs(right)  # which C cuts towards zero
        quotient = quotient if (left < 0) == (right < 0) else -quotient
        return quotient if operator == "/" else left - quotient * right
    if operator in "+-*":
        return left + right if operator == "+" else left - right if operator == "-" else left * right
    return left & right if operator == "&" else left | right if operator == "|" else left ^ right

"""Read the QAPI schema language into plain expressions with their positions and documentation.

Both dialects are read: today's, and that of QEMU 2.x, whose comments are looser. What an expression means, and whether
it makes sense, is :mod:`qobra.qapi.schema`'s business.
"""

from __future__ import annotations

from typing import NamedTuple

from qobra.qapi.doc import Doc, parse_doc
from qobra.qapi.doc_rules import DocFacts, read_block
from qobra.qapi.error import Position, QapiError
from qobra.qapi.lexer import Token, tokenize

MAX_DEPTH = 32

Value = str | bool | list["Value"] | dict[str, "Value"]
"""What an expression consists of."""


class Expression(NamedTuple):
    """One top-level expression: its members, where it begins, where each of its keys stands, and its comment.

    ``facts`` are of the comment right before it, if that is written as today.
    """

    data: dict[str, Value]
    position: Position
    keys: dict[str, Position]
    doc: Doc | None
    facts: DocFacts | None


class Parsed(NamedTuple):
    """The content of one file. ``skipped`` is what a lenient parse has passed over, ``breaches`` are of the rules for
    comments of today."""

    expressions: list[Expression]
    title: str
    skipped: list[QapiError]
    breaches: list[QapiError]


def parse(text: str, file: str = "<schema>", *, lenient: bool = False) -> Parsed:
    """Parse one file. Raises QapiError, which says where and what was expected.

    ``lenient`` is for texts that were saved from a web page: a line that is no QAPI text at all (such as the
    annotations of a blame view) and an expression that breaks off are passed over and listed in ``skipped``.
    """
    skipped: list[QapiError] = []
    if lenient:
        text = _blank_foreign_lines(text, file, skipped)
    return _Parser(text, file, lenient, skipped).run()


def _blank_foreign_lines(text: str, file: str, skipped: list[QapiError]) -> str:
    lines = text.split("\n")
    for number, line in enumerate(lines):
        try:
            for _ in tokenize(line, file):
                pass
        except QapiError as error:
            position = Position(file, number + 1, error.position.column)
            skipped.append(QapiError(position, f"no schema text: {error.problem}"))
            lines[number] = ""
    return "\n".join(lines)


class _Parser:
    def __init__(self, text: str, file: str, lenient: bool, skipped: list[QapiError]) -> None:
        self._tokens = list(tokenize(text, file))
        self._at = 0
        self._lenient = lenient
        self._skipped = skipped
        self._keys: dict[str, Position] = {}
        self._facts: DocFacts | None = None
        self._breaches: list[QapiError] = []

    def run(self) -> Parsed:
        expressions: list[Expression] = []
        title = ""
        doc: Doc | None = None
        while (token := self._tokens[self._at]).kind != "end":
            if token.kind == "comment":
                block = self._comment_block()
                parsed = parse_doc(block)
                if parsed.heading:
                    title = title or parsed.heading
                elif parsed.name or parsed.text:
                    doc = parsed
                if str(block[0].value).startswith("##"):
                    self._leave_comment()
                    self._facts, breaches = read_block(block)
                    self._breaches += breaches
                continue
            start = self._at
            try:
                expressions.append(self._expression(doc))
            except QapiError as error:
                if not self._lenient:
                    raise
                self._skipped.append(error)
                self._recover(start)
            doc = self._facts = None
        self._leave_comment()
        return Parsed(expressions, title, self._skipped, self._breaches)

    def _leave_comment(self) -> None:
        """No definition follows the comment before."""
        if self._facts is not None and self._facts.name:
            problem = f"expected the definition of '{self._facts.name}' after its comment"
            self._breaches.append(QapiError(self._facts.position, problem))
        self._facts = None

    def _recover(self, start: int) -> None:
        """Go to the next line that opens an expression."""
        line = self._tokens[start].position.line
        self._at = start + 1
        while (token := self._tokens[self._at]).kind != "end":
            if token.kind == "{" and token.position.column == 1 and token.position.line > line:
                return
            self._at += 1

    def _comment_block(self) -> list[Token]:
        """Comments on consecutive lines: from one ``##`` to the next, or until there is one."""
        block: list[Token] = []
        is_doc = str(self._tokens[self._at].value).startswith("##")
        while (token := self._tokens[self._at]).kind == "comment":
            is_mark = str(token.value).startswith("##")
            if block and (token.position.line != block[-1].position.line + 1 or (is_mark and not is_doc)):
                break
            self._at += 1
            block.append(token)
            if is_mark and len(block) > 1:
                break
        return block

    def _peek(self) -> Token:
        while self._tokens[self._at].kind == "comment":
            self._at += 1
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._peek()
        if token.kind != "end":
            self._at += 1
        return token

    def _expression(self, doc: Doc | None) -> Expression:
        token = self._peek()
        if token.kind != "{":
            raise QapiError(token.position, f"expected '{{' to begin an expression, got {token}")
        self._keys = {}
        value = self._value(0, top=True)
        assert isinstance(value, dict)
        facts = self._facts
        if value.keys() & {"include", "pragma"}:
            self._leave_comment()
        return Expression(value, token.position, self._keys, doc, facts)

    def _value(self, depth: int, *, top: bool = False) -> Value:
        token = self._next()
        if depth > MAX_DEPTH:
            raise QapiError(token.position, f"expected at most {MAX_DEPTH} levels of nesting")
        if token.kind == "{":
            return self._object(depth, top)
        if token.kind == "[":
            return self._array(depth)
        if token.kind in ("string", "bool"):
            return token.value
        raise QapiError(token.position, f"expected '{{', '[', a string or a boolean, got {token}")

    def _object(self, depth: int, top: bool) -> Value:
        members: dict[str, Value] = {}
        if self._peek().kind == "}":
            self._next()
            return members
        while True:
            key = self._next()
            if key.kind != "string":
                raise QapiError(key.position, f"expected a member's name in single quotes, got {key}")
            name = str(key.value)
            if name in members:
                raise QapiError(key.position, f"expected each name once, '{name}' comes twice")
            colon = self._next()
            if colon.kind != ":":
                raise QapiError(colon.position, f"expected ':' after '{name}', got {colon}")
            if top:
                self._keys[name] = key.position
            elif depth == 1:
                self._keys.setdefault(name, key.position)
            members[name] = self._value(depth + 1)
            end = self._next()
            if end.kind == "}":
                return members
            if end.kind != ",":
                raise QapiError(end.position, f"expected ',' or '}}' after the value of '{name}', got {end}")

    def _array(self, depth: int) -> Value:
        items: list[Value] = []
        if self._peek().kind == "]":
            self._next()
            return items
        while True:
            items.append(self._value(depth + 1))
            end = self._next()
            if end.kind == "]":
                return items
            if end.kind != ",":
                raise QapiError(end.position, f"expected ',' or ']' after a list's element, got {end}")

"""How today's documentation comments are written: what :mod:`qobra.qapi.doc` takes more loosely.

From QEMU's docs/devel/qapi-code-gen, "Documentation comments".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from qobra.qapi.error import Position, QapiError

if TYPE_CHECKING:
    from qobra.qapi.lexer import Token

_SYMBOL = re.compile(r"@([^:]*)(:?)(.*)")
_MEMBER = re.compile(r"@([^:\s]*):(.*)")
_SECTION = re.compile(r"(Returns|Since|Note|Notes|Example|Examples|TODO):(.*)")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ONCE = ("Returns", "Since")


class DocFacts(NamedTuple):
    """What a comment documents: the definition's name ("" for free text), and the names of members and features."""

    name: str
    position: Position
    members: list[str]
    features: list[str]
    returns: bool


def read_block(block: list[Token]) -> tuple[DocFacts, list[QapiError]]:
    """Read the comment tokens of a block that begins with ``##``; what it is about, and what breaks a rule."""
    reader = _Reader(block)
    reader.run()
    facts = DocFacts(reader.name, block[0].position, reader.members, reader.features, "Returns" in reader.sections)
    return facts, reader.breaches


class _Reader:
    def __init__(self, block: list[Token]) -> None:
        self._block = block
        self.breaches: list[QapiError] = []
        self.name = ""
        self.members: list[str] = []
        self.features: list[str] = []
        self.sections: list[str] = []
        self._in_features = False
        self._open = ""
        """The section that has no text yet."""
        self._hangs = False
        """The text of a member or section began on its first line, so that what follows at once is indented."""

    def run(self) -> None:
        first, last = self._block[0], self._block[-1]
        if first.value != "##":
            self._breach(first, "expected nothing after the '##' that begins a comment")
        inner = self._block[1:]
        if inner and str(last.value).startswith("##"):
            inner = inner[:-1]
            if last.value != "##":
                self._breach(last, "expected nothing after the '##' that ends a comment")
        else:
            self._breach(last, "expected a '##' that ends the comment")
        for number, token in enumerate(inner):
            text = str(token.value)[1:]
            if text and not text.startswith(" "):
                self._breach(token, "expected a blank after '#'")
            self._line(token, text[1:], number == 0)
        self._end_section(last)

    def _breach(self, token: Token, problem: str) -> None:
        self.breaches.append(QapiError(token.position, problem))

    def _line(self, token: Token, line: str, is_first: bool) -> None:
        symbol = _SYMBOL.fullmatch(line) if is_first else None
        member = _MEMBER.fullmatch(line)
        section = _SECTION.fullmatch(line)
        if symbol:
            self.name = symbol.group(1).strip()
            if not self.name:
                self._breach(token, "expected a name after '@'")
            elif not symbol.group(2) or symbol.group(3).strip():
                self._breach(token, "expected ':' after the name, and nothing else")
        elif member and not self.name:
            self._breach(token, f"expected no '@{member.group(1)}:' in a comment that names no definition")
        elif member:
            self._member(token, member.group(1), member.group(2))
        elif self.name and line.strip() == "Features:":
            self._end_section(token)
            self._in_features = True
            self._hangs = False
        elif section and self.name:
            self._section(token, section.group(1), section.group(2))
        elif self.name and line.startswith("="):
            self._breach(token, "expected no heading in the comment on a definition")
        elif not line.strip():
            self._hangs = False
        else:
            if self._hangs and not line.startswith(" "):
                self._breach(token, "expected the line to be indented, as it goes on from the one before")
            self._open = ""

    def _member(self, token: Token, name: str, text: str) -> None:
        self._end_section(token)
        names = self.features if self._in_features else self.members
        if not _NAME.fullmatch(name):
            self._breach(token, "expected a name after '@'")
        elif name in names:
            self._breach(token, f"expected each name once, '{name}' comes twice")
        elif self.sections and not self._in_features:
            self._breach(token, f"expected '@{name}:' before the sections, it comes after '{self.sections[-1]}'")
        names.append(name)
        self._hangs = bool(text.strip())

    def _section(self, token: Token, name: str, text: str) -> None:
        self._end_section(token)
        if name in _ONCE and name in self.sections:
            self._breach(token, f"expected '{name}' once")
        self.sections.append(name)
        self._in_features = False
        self._open = "" if text.strip() else name
        self._hangs = bool(text.strip())

    def _end_section(self, token: Token) -> None:
        if self._open:
            self._breach(token, f"expected text in the section '{self._open}'")
        self._open = ""

"""Documentation comments of a schema, in today's form and in that of QEMU 2.x.

A block documents the definition that follows it: ``@NAME:`` names it, ``@MEMBER: text`` its members, and
``Returns:``, ``Features:``, ``Since:`` and the like open sections. The old form leaves out colons and marks
optional members with ``#optional``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.qapi.lexer import Token

_NAME = re.compile(r"@([\w.-]+)(:?)\s*(.*)")
_SECTION = re.compile(r"(Returns|Return|Since|Notes?|Examples?|Features|Errors|TODO)(:|\s*$)\s*(.*)", re.I)
_SINCE = re.compile(r"\d+\.\d+(\.\d+)?")
_MEMBER_SINCE = re.compile(r"\(\s*since:?\s+(\d+\.\d+(?:\.\d+)?)", re.I)


@dataclass(slots=True)
class Doc:
    """What one comment block says; texts are joined to one line a paragraph."""

    name: str = ""
    text: str = ""
    heading: str = ""
    members: dict[str, str] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    returns: str = ""
    since: str = ""

    def member_since(self, name: str) -> str:
        """The version that brought a member, where its text says so, else that of the whole."""
        found = _MEMBER_SINCE.search(self.members.get(name, ""))
        return found.group(1) if found else self.since


def parse_doc(block: list[Token]) -> Doc:
    """Read the comment tokens of one block."""
    doc = Doc()
    section = "text"
    key = ""
    for token in block:
        line = str(token.value).lstrip("#").strip()
        if line.startswith("=") and not doc.name:
            doc.heading = line.lstrip("= ")
            continue
        named = _NAME.fullmatch(line)
        opened = _SECTION.fullmatch(line)
        if named and not doc.name and not doc.members and not named.group(3):
            doc.name = named.group(1)
        elif named and (named.group(2) or named.group(3).startswith("#optional")):
            key, line = named.group(1), named.group(3)
            section = "features" if section == "features" else "members"
            _add(doc, section, key, line.removeprefix("#optional").strip(), new=True)
        elif opened:
            section = opened.group(1).lower()
            _add(doc, section, "", opened.group(3), new=True)
        else:
            _add(doc, section, key, line)
    doc.text = _paragraphs(doc.text)
    found = _SINCE.search(doc.since)
    doc.since = found.group() if found else ""
    doc.members = {name: _paragraphs(text) for name, text in doc.members.items()}
    doc.features = {name: _paragraphs(text) for name, text in doc.features.items()}
    doc.returns = _paragraphs(doc.returns)
    return doc


def _add(doc: Doc, section: str, key: str, line: str, *, new: bool = False) -> None:
    if section == "text":
        doc.text += line + "\n"
    elif section in ("members", "features"):
        table = doc.members if section == "members" else doc.features
        if key:
            table[key] = line + "\n" if new else table.get(key, "") + line + "\n"
    elif section in ("returns", "return"):
        doc.returns += line + "\n"
    elif section == "since":
        doc.since += line + " "


def _paragraphs(text: str) -> str:
    """One line a paragraph, an empty line between them."""
    parts = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(part.split()) for part in parts if part.strip())

"""Render a schema's documentation as Markdown, or as text for a terminal."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from qobra.qapi.schema import (
    BUILTINS,
    Alternate,
    Command,
    Condition,
    Definition,
    Enum,
    Event,
    Member,
    Schema,
    Struct,
    Union,
    element_type,
)

_TEXT_WIDTH = 96


class Row(NamedTuple):
    """A member as documentation shows it."""

    name: str
    type: str
    optional: bool
    text: str
    notes: list[str]


def render_markdown(schema: Schema, section: str) -> str:
    """The page of one section: every definition with its members, and links to the types that they have."""
    lines = [f"# {schema.titles.get(section) or section}", ""]
    for definition in schema:
        if definition.section == section:
            lines += _markdown(schema, definition)
    return "\n".join(lines)


def render_index(schema: Schema) -> str:
    """The page that lists the sections with their commands and events."""
    counts = f"{len(schema.commands())} commands, {len(schema.events())} events and {len(schema.types())} types"
    lines = ["# The machine protocol", "", f"{counts}, by subject.", ""]
    for section in sections(schema):
        lines += [f"## [{schema.titles.get(section) or section}]({section}.md)", ""]
        members = [d for d in schema if d.section == section and isinstance(d, (Command, Event))]
        lines += [f"- [`{d.name}`]({section}.md#{anchor(d)}) {_first_sentence(d.doc.text)}" for d in members]
        lines.append("")
    return "\n".join(lines)


def render_text(schema: Schema, name: str) -> str:
    """One definition for a terminal. Raises KeyError where there is none of the name."""
    definition = schema[name]
    lines = [f"{definition.kind} {name}{_origin(definition)}", ""]
    for paragraph in definition.doc.text.split("\n\n"):
        lines += [*textwrap.wrap(paragraph, _TEXT_WIDTH, initial_indent="  ", subsequent_indent="  "), ""]
    for title, rows in _tables(schema, definition):
        lines.append(f"{title}:")
        for row in rows:
            shown = f"{row.name}{'?' if row.optional else ''}" + (f": {row.type}" if row.type else "")
            lines.append(f"  {shown}")
            text = " ".join([row.text, *(f"[{note}]" for note in row.notes)])
            lines += textwrap.wrap(text, _TEXT_WIDTH, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    if isinstance(definition, Command):
        lines += [f"returns {definition.returns or 'nothing'}", ""]
        if definition.doc.returns:
            lines[-1:] = [*_indented(definition.doc.returns), ""]
    for feature in definition.features:
        lines += [f"feature {feature}", *_indented(definition.doc.features.get(feature, "")), ""]
    return "\n".join(lines).rstrip() + "\n"


def sections(schema: Schema) -> list[str]:
    """The sections that have definitions, in their order."""
    return list(dict.fromkeys(definition.section for definition in schema))


def anchor(definition: Definition) -> str:
    """The anchor of a definition on its section's page."""
    return f"{definition.kind}-{definition.name}".lower()


def condition_text(condition: Condition) -> str:
    """A condition in words: ``CONFIG_A and not CONFIG_B``."""
    if isinstance(condition, str):
        return condition
    if not isinstance(condition, dict):
        return ""
    operator, operand = next(iter(condition.items()))
    if operator == "not":
        return f"not {condition_text(operand)}"
    word = " or " if operator == "any" else " and "
    return word.join(condition_text(item) for item in operand) if isinstance(operand, list) else ""


def _markdown(schema: Schema, definition: Definition) -> list[str]:
    kind = definition.kind
    lines = [f'<a id="{anchor(definition)}"></a>', "", f"## `{definition.name}`", ""]
    lines += [f"*{kind}{_origin(definition)}*", ""]
    lines += [definition.doc.text, ""] if definition.doc.text else []
    for title, rows in _tables(schema, definition):
        lines += [f"{title}:", ""]
        for row in rows:
            about = f" ({_link(schema, definition.section, row.type)}{', optional' if row.optional else ''})"
            notes = "".join(f" *{note}.*" for note in row.notes)
            lines.append(f"- `{row.name}`{about if row.type else ''}: {row.text}{notes}")
        lines.append("")
    if isinstance(definition, Command):
        returned = _link(schema, definition.section, definition.returns) if definition.returns else "nothing"
        lines += [f"Returns {returned}. {definition.doc.returns}".rstrip(), ""]
    for feature in definition.features:
        lines += [f"Feature `{feature}`: {definition.doc.features.get(feature, '')}".rstrip(": "), ""]
    return lines


def _origin(definition: Definition) -> str:
    parts = [f"since {definition.doc.since}"] if definition.doc.since else []
    if isinstance(definition, Command):
        parts += ["may be run out of band"] if definition.allow_oob else []
        parts += ["allowed before the machine is set up"] if definition.allow_preconfig else []
    if definition.condition:
        parts.append(f"if {condition_text(definition.condition)}")
    return f" ({', '.join(parts)})" if parts else ""


def _tables(schema: Schema, definition: Definition) -> list[tuple[str, list[Row]]]:
    """Titles and rows of what a definition consists of."""
    if isinstance(definition, Enum):
        return [("Values", [_row(definition, value, "") for value in definition.values])]
    if isinstance(definition, Alternate):
        return [("One of", [_row(definition, member, member.type) for member in definition.members])]
    title = {"command": "Arguments", "event": "Data"}.get(definition.kind, "Members")
    if isinstance(definition, (Command, Event)) and not definition.data:
        owner = None
        rows = [_row(definition, member, member.type) for member in definition.members]
    else:
        owner = (
            schema.definitions.get(definition.data or "") if isinstance(definition, (Command, Event)) else definition
        )
        rows = [_row(source, member, member.type) for source, member in _inherited(schema, owner)]
    tables = [(title, rows)] if rows else []
    if isinstance(owner, Union):
        branches = [Row(branch.name, branch.type, False, "", _notes(branch)) for branch in owner.branches]
        what = "The type of 'data' by 'type'" if owner.simple else f"Further members by '{owner.tag}'"
        tables.append((what, branches))
    return tables


def _inherited(schema: Schema, owner: Definition | None) -> list[tuple[Definition, Member]]:
    """All members of a struct or union with the definition that documents each, those of the base first."""
    pairs: list[tuple[Definition, Member]] = []
    current = owner
    while isinstance(current, (Struct, Union)):
        pairs = [(current, member) for member in current.members] + pairs
        current = schema.definitions.get(current.base or "")
    return pairs


def _row(owner: Definition, member: Member, type_name: str) -> Row:
    return Row(member.name, type_name, member.optional, owner.doc.members.get(member.name, ""), _notes(member))


def _notes(member: Member) -> list[str]:
    return [*member.features, *([f"if {condition_text(member.condition)}"] if member.condition else [])]


def _link(schema: Schema, section: str, type_name: str) -> str:
    element = element_type(type_name)
    shown = f"list of `{element}`" if type_name.startswith("[") else f"`{element}`"
    target = schema.definitions.get(element)
    if element in BUILTINS or target is None:
        return shown
    page = "" if target.section == section else f"{target.section}.md"
    return shown.replace(f"`{element}`", f"[`{element}`]({page}#{anchor(target)})")


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _TEXT_WIDTH, initial_indent="  ", subsequent_indent="  ")


def _first_sentence(text: str) -> str:
    head = text.split("\n\n")[0]
    end = head.find(". ")
    return head if end < 0 else head[: end + 1]

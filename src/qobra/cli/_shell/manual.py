"""Help: what the live schema says of shapes, and what Qobra's own schema says of meanings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any

from qobra.cli._shell.live import LiveSchema
from qobra.qapi.doc import Doc
from qobra.qapi.schema import Alternate, Command, Member, Schema, Struct, Union, element_type

WIDTH = 100


@cache
def _own() -> Schema:
    from qobra.qapi.load import load_qobra

    return load_qobra()


def summary(name: str) -> str:
    """The first sentence about a command or event; "" if nothing is known."""
    own = _own()
    return own[name].doc.text.split(". ")[0].split("\n")[0].rstrip(".") if name in own else ""


def about_member(command: str, path: list[str], given: Mapping[str, Any]) -> str:
    """What the member at a path of a command's arguments means; "" if nothing is known.

    ``given`` are the arguments, of which the tags of unions tell which of several namesakes is meant.
    """
    own = _own()
    definition = own.definitions.get(command)
    if not isinstance(definition, Command):
        return ""
    docs, members = [definition.doc], own.arguments_of(definition)
    type_name = definition.data
    for part in path[:-1]:
        if type_name:
            _, members = _docs_and_members(own, type_name, given)
        type_name = next((element_type(member.type) for member in members if member.name == part), None)
        inner = given.get(part)
        given = inner if isinstance(inner, Mapping) else {}
        if type_name is None:
            return ""
    if type_name:
        docs, _ = _docs_and_members(own, type_name, given)
    return next((doc.members[path[-1]] for doc in docs if doc.members.get(path[-1])), "")


def _docs_and_members(own: Schema, type_name: str, given: Mapping[str, Any]) -> tuple[list[Doc], list[Member]]:
    """All that describes an object: itself, its base, the branch that its tag chooses (all, if that is not given)."""
    docs: list[Doc] = []
    members: list[Member] = []
    names = [type_name]
    for name in names:
        definition = own.definitions.get(name)
        if definition is None:
            continue
        docs.append(definition.doc)
        more: list[str] = []
        if isinstance(definition, (Struct, Union)):
            members += own.members_of(name)
            more = [definition.base or ""]
        if isinstance(definition, Union):
            chosen = given.get(definition.tag)
            more += [branch.type for branch in definition.branches if chosen in (None, branch.name)]
        elif isinstance(definition, Alternate):
            more = [member.type for member in definition.members]
        names += [other for other in more if other in own and other not in names]
    return docs, members


def page(schema: LiveSchema, command: str, path: list[str], given: dict[str, Any]) -> str:
    """Help for a command, or for the object at a path of its arguments; ``given`` has what chooses union branches."""
    type_name, inner = schema.at(command, path, given)
    title = ".".join([command, *path])
    lines = [title]
    text = _own()[command].doc.text if not path and command in _own() else about_member(command, path, given)
    if text:
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    fields = schema.fields(type_name, inner) if type_name else {}
    for name, field in fields.items():
        shown = f"[{name}]" if field.optional else name
        lines.append(f"  {shown:24} {schema.describe(field.type)}")
        meaning = about_member(command, [*path, name], given)
        lines += textwrap.wrap(meaning, WIDTH, initial_indent=" " * 27, subsequent_indent=" " * 27)
    tag = schema.tag(type_name) if type_name else None
    if tag and tag not in inner:
        lines.append(
            f"  ... more with {tag}: help {' '.join([command, '.'.join(path)]).strip()} {'.'.join([*path, tag])}=VALUE"
        )
    entity = schema.commands.get(command)
    if entity is not None and not path:
        returned = schema.describe(entity["ret-type"])
        lines.append("  returns nothing" if returned == "{}" else f"  returns {returned}")
        if entity.get("allow-oob"):
            lines.append(f"  may be executed out of band: exec-oob {command}")
        if "deprecated" in entity.get("features", ()):
            lines.append("  deprecated")
    return "\n".join(lines)


def overview(schema: LiveSchema) -> str:
    """All commands of the server, with what each is for."""
    return "\n".join(f"  {name:40} {summary(name)}".rstrip() for name in sorted(schema.commands))

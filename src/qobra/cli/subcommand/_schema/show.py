"""``qobra schema show``: one definition of the contract."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.qapi.docs import render_text
from qobra.qapi.load import SCHEMA_FILE, load_file
from qobra.qapi.schema import Command, Definition, Event, Member, Schema, Struct, Union

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "show a command, event or type with its documentation"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="+", help="name of a command, event or type")
    parser.add_argument("--schema", default=SCHEMA_FILE, metavar="FILE", help="another schema than Qobra's own")


def run(options: Namespace) -> int:
    """Raises QobraError where there is nothing of the name, with names that are similar."""
    schema = load_file(options.schema, stubs=True)
    for name in options.name:
        if name not in schema:
            raise QobraError(f"there is no '{name}' in the schema{_similar(schema, name)}")
    if options.json:
        print(json.dumps([describe(schema, schema[name]) for name in options.name], indent=2))
    else:
        print("\n".join(render_text(schema, name) for name in options.name), end="")
    return 0


def describe(schema: Schema, definition: Definition) -> dict[str, Any]:
    """A definition as JSON: what it consists of and what its documentation says."""
    doc = definition.doc
    result: dict[str, Any] = {"name": definition.name, "kind": definition.kind, "section": definition.section}
    result |= {"doc": doc.text, "since": doc.since, "features": definition.features, "if": definition.condition}
    if isinstance(definition, (Command, Event)):
        result["data"] = definition.data
        if isinstance(definition, Command):
            result |= {"returns": definition.returns or None, "allow-oob": definition.allow_oob}
            result |= {"allow-preconfig": definition.allow_preconfig, "returns-doc": doc.returns}
    if isinstance(definition, (Struct, Union)):
        result["base"] = definition.base
    if isinstance(definition, Union):
        result["discriminator"] = definition.tag
        result["branches"] = {branch.name: branch.type for branch in definition.branches}
    members: list[Member] = getattr(definition, "members", None) or getattr(definition, "values", [])
    result["members"] = [
        {
            "name": member.name,
            "type": member.type,
            "optional": member.optional,
            "features": member.features,
            "doc": doc.members.get(member.name, ""),
        }
        for member in members
    ]
    return result


def _similar(schema: Schema, name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(schema.definitions), 3, 0.6)
    near += [other for other in schema.definitions if name.lower() in other.lower() and other not in near][:5]
    return f"; there are {', '.join(near)}" if near else ""

"""The contract against the reference manual: every entity, every member."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from qobra.qapi.load import load_file, load_qobra
from qobra.qapi.schema import BUILTINS, Alternate, Command, Definition, Enum, Event, Member, Schema, Struct, Union

HERE = Path(__file__).parent
REFERENCE = HERE.parents[2] / "shared" / "reference"

_spec = importlib.util.spec_from_file_location("facts", HERE / "facts.py")
assert _spec and _spec.loader
facts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(facts)
FACTS: dict[str, list[Any]] = facts.load_facts()

# What only references older than 5.2 have: (kind, members).
OLDER = {
    "cpu": ("command", {"index"}),
    "cpu-add": ("command", {"id"}),
    "x-input-send-event": ("command", {"console", "events"}),
    "BlockDeviceMapEntry": ("struct", {"start", "length", "depth", "zero", "data", "offset"}),
    "BlockJobType": ("enum", {"commit", "stream", "mirror", "backup"}),
    "BlockdevOptionsBase": (
        "struct",
        {"driver", "id", "node-name", "discard", "cache", "aio", "rerror", "werror", "read-only", "detect-zeroes"},
    ),
    "BlockdevOptionsArchipelago": ("struct", {"volume", "mport", "vport", "segment"}),
    "NbdServerRemoveMode": ("enum", {"safe", "hard"}),
}
# Older members that 5.2 gave another meaning or another place (docs/schema-differences.md has the reasons).
NOT_CARRIED = {
    "BlockdevSnapshot": {"device", "node-name", "snapshot-file", "snapshot-node-name", "format", "mode"},
    "BlockdevOptions": {"id", "aio", "rerror", "werror"},
    "blockdev-add": {"options"},
    "memsave": {"cpu"},
    "dump-guest-memory": {"end"},
}


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_qobra()


def _members(schema: Schema, definition: Definition) -> dict[str, Member]:
    """Members that the definition itself declares, or the struct that stands for its arguments."""
    if isinstance(definition, Enum):
        return {value.name: value for value in definition.values}
    if isinstance(definition, (Command, Event)) and definition.data:
        return {member.name: member for member in schema.members_of(definition.data)}
    assert isinstance(definition, (Struct, Union, Alternate, Command, Event))
    return {member.name: member for member in definition.members}


def _wire_type(name: str) -> str:
    """A type of ours as the manual writes it."""
    if name.startswith("["):
        return f"array of {_wire_type(name[1:-1])}"
    return {"str": "string"}.get(name, BUILTINS.get(name, name))


def test_facts_are_those_of_the_manual() -> None:
    path = REFERENCE / "qmp-reference-5.2.json"
    if not path.exists():
        pytest.skip("the manual is not here")
    assert facts.derive(json.loads(path.read_text(encoding="utf-8"))) == FACTS


def test_the_numbers_of_entities() -> None:
    kinds = [fact[0] for fact in FACTS.values()]
    assert (kinds.count("Command"), kinds.count("Event")) == (196, 48)
    assert len(kinds) - 196 - 48 == 436


@pytest.mark.parametrize("name", FACTS)
def test_entity(name: str, schema: Schema) -> None:
    kind, since, members, extra = FACTS[name]
    definition = schema[name]
    kinds = {"Object": (Struct, Union), "Enum": Enum, "Alternate": Alternate, "Command": Command, "Event": Event}
    assert isinstance(definition, kinds[kind])
    if since:
        assert definition.doc.since == since
    ours = _members(schema, definition)
    for member, type_name in members.items():
        assert ours[member].optional == type_name.startswith("?"), member
        # A list of strings that may now be objects too accepts what it always did.
        if (name, member) == ("BlockExportOptionsNbd", "bitmaps"):
            continue
        assert _wire_type(ours[member].type) == type_name.lstrip("?"), member
    for value in extra.get("values", ()):
        assert value in ours
    _check_base_and_branches(schema, definition, extra)
    _check_additions(definition, ours, members, extra)


def _check_base_and_branches(schema: Schema, definition: Definition, extra: dict[str, Any]) -> None:
    if "base" in extra:
        if isinstance(definition, (Command, Event)):
            assert definition.data == extra["base"]
        else:
            assert isinstance(definition, (Struct, Union))
            assert definition.base == extra["base"]
    if "branches" in extra:
        assert isinstance(definition, Union)
        assert definition.tag == extra["tag"]
        branches = {branch.name: _wire_type(branch.type) for branch in definition.branches}
        for value, target in extra["branches"].items():
            if (definition.name, value) == ("BlockdevOptions", "copy-on-read"):
                target = "BlockdevOptionsCor"  # 6.0 gave the filter an option of its own
            assert branches[value] == target


def _check_additions(
    definition: Definition, ours: dict[str, Member], members: dict[str, str], extra: dict[str, Any]
) -> None:
    """What the manual does not have came later, or is older and deprecated; no client of 5.2 need know it."""
    if isinstance(definition, Alternate):
        return
    if isinstance(definition, (Command, Event)) and definition.data:
        return
    for name in ours.keys() - members.keys() - set(extra.get("values", ())):
        member = ours[name]
        assert member.optional or isinstance(definition, Enum), name
        since = definition.doc.member_since(name)
        assert "deprecated" in member.features or tuple(map(int, since.split("."))) > (5, 2), name


@pytest.mark.parametrize("name", OLDER)
def test_older_entity(name: str, schema: Schema) -> None:
    kind, members = OLDER[name]
    definition = schema[name]
    assert definition.kind == kind
    assert definition.deprecated
    assert _members(schema, definition).keys() >= members


@pytest.mark.parametrize("file", ["block-core-2.1-early.json", "block-core-2.1.json", "block-3.0.json"])
def test_older_reference(file: str, schema: Schema) -> None:
    """Each entity and member of the schemas of 2.1 and 3.0 is in the contract."""
    path = REFERENCE / file
    if not path.exists():
        pytest.skip("the older schemas are not here")
    older = load_file(path, stubs=True, lenient=file != "block-core-2.1-early.json")
    assert len(older) >= 18
    for definition in older:
        ours = schema[definition.name]
        have = set(_members(schema, ours))
        if isinstance(ours, (Struct, Union)):
            have = {m.name for m in schema.members_of(ours.name)} | {b.name for b in schema.branches_of(ours.name)}
        if isinstance(ours, Alternate):
            assert {m.type for m in ours.members} >= {m.type for m in getattr(definition, "members", [])}
            continue
        theirs = set(_members(older, definition))
        if isinstance(definition, (Struct, Union)):
            theirs = {m.name for m in older.members_of(definition.name)}
            theirs |= {branch.name for branch in older.branches_of(definition.name)}
        assert theirs - have <= NOT_CARRIED.get(definition.name, set())


def test_commands_of_the_oldest_reference(schema: Schema) -> None:
    """Each command that the command table of 2.5 defines, and each argument, is in the contract."""
    path = REFERENCE / "qmp-commands-2.5.hx"
    if not path.exists():
        pytest.skip("the older command table is not here")
    table = re.findall(r'\.name\s*=\s*"([^"]+)",\s*\.args_type\s*=((?:\s*"[^"]*")*)', path.read_text(encoding="utf-8"))
    assert len(table) > 100
    for name, quoted in table:
        arguments = "".join(re.findall(r'"([^"]*)"', quoted))
        theirs = {word.split(":")[0] for word in arguments.split(",") if word and not word.endswith(":O")}
        command = schema[name]
        assert isinstance(command, Command)
        have = {member.name for member in schema.arguments_of(command)}
        assert theirs - have <= NOT_CARRIED.get(name, set()), name


def test_every_description_is_there(schema: Schema) -> None:
    empty = [definition.name for definition in schema if not definition.doc.text]
    for definition in schema:
        if isinstance(definition, (Command, Event)) and definition.data:
            continue
        for member in _members(schema, definition):  # a version is no description
            if not re.sub(r"\(since [\d.]+\)", "", definition.doc.members.get(member, "")).strip():
                empty.append(f"{definition.name}.{member}")
        if isinstance(definition, Command) and definition.returns and not definition.doc.returns:
            empty.append(f"{definition.name} returns")
    assert empty == []


def test_every_definition_tells_its_version(schema: Schema) -> None:
    unknown = {name for name, fact in FACTS.items() if not fact[1]}
    assert {definition.name for definition in schema if not definition.doc.since} <= unknown

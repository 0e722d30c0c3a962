"""What query-qmp-schema returns."""

from __future__ import annotations

import json
from typing import Any

from qobra.qapi.contract import Contract, contract
from qobra.qapi.introspect import introspect
from qobra.qapi.load import load
from qobra.qapi.tables import make_tables

SCHEMA = """
{ 'enum': 'Kind', 'data': ['a', { 'name': 'b', 'features': ['deprecated'] }, 'c'] }
{ 'struct': 'Base', 'data': { 'id': 'str' } }
{ 'struct': 'A', 'data': { '*n': 'uint8', 'l': ['uint16'], 'm': ['size'] } }
{ 'union': 'U', 'base': { 'k': 'Kind', '*u': 'U' }, 'discriminator': 'k', 'data': { 'b': 'A' } }
{ 'union': 'W', 'data': { 'x': 'int', 'y': 'A' } }
{ 'alternate': 'Alt', 'data': { 's': 'str', 'o': 'Base', 'n': 'null' } }
{ 'struct': 'Unused', 'data': { 'x': 'int' } }
{ 'command': 'do', 'data': 'U', 'boxed': true, 'returns': ['Alt'], 'features': ['unstable'], 'allow-oob': true }
{ 'command': 'wrap', 'data': { 'w': 'W', 'old': { 'type': 'any', 'features': ['deprecated'] } }, 'returns': 'number' }
{ 'command': 'unserved', 'data': 'Unused' }
{ 'event': 'E', 'data': 'Base' }
"""


def _entities() -> dict[str, dict[str, Any]]:
    of = Contract(*make_tables(load(SCHEMA)))
    entities = introspect(["do", "wrap", "no-such"], ["E"], of=of)
    assert json.loads(json.dumps(entities)) == entities
    names = [entity["name"] for entity in entities]
    assert len(set(names)) == len(names)
    return {entity["name"]: entity for entity in entities}


def test_commands_and_events_come_first_and_only_what_is_served() -> None:
    entities = _entities()
    assert list(entities)[:3] == ["do", "wrap", "E"]
    assert entities["do"] == {
        "name": "do", "meta-type": "command", "arg-type": "0", "ret-type": "[1]", "allow-oob": True,
        "features": ["unstable"],
    }  # fmt: skip
    assert entities["E"] == {"name": "E", "meta-type": "event", "arg-type": "3"}
    assert "unserved" not in entities


def test_type_names_are_masked_as_numbers_without_a_gap() -> None:
    entities = _entities()
    numbers = sorted(int(name) for name in entities if name.isdigit())
    assert numbers == list(range(len(numbers)))
    assert entities["[1]"] == {"name": "[1]", "meta-type": "array", "element-type": "1"}


def test_an_object_with_variants_has_one_for_each_value_of_the_tag() -> None:
    entities = _entities()
    union = entities["0"]
    assert union["tag"] == "k"
    assert union["members"][1] == {"name": "u", "type": "0", "default": None}
    cases = {variant["case"]: entities[variant["type"]] for variant in union["variants"]}
    assert set(cases) == {"a", "b", "c"}
    assert cases["a"]["members"] == cases["c"]["members"] == []
    assert [member["type"] for member in cases["b"]["members"]] == ["int", "[int]", "[int]"]
    enum = entities[union["members"][0]["type"]]
    assert enum["values"] == ["a", "b", "c"]
    assert enum["members"] == [{"name": "a"}, {"name": "b", "features": ["deprecated"]}, {"name": "c"}]


def test_a_simple_union_is_an_object_whose_variants_have_data() -> None:
    entities = _entities()
    arguments = entities[entities["wrap"]["arg-type"]]
    assert arguments["members"][1] == {"name": "old", "type": "any", "features": ["deprecated"]}
    union = entities[arguments["members"][0]["type"]]
    assert (union["tag"], [member["name"] for member in union["members"]]) == ("type", ["type"])
    assert [variant["case"] for variant in union["variants"]] == ["x", "y"]
    assert entities[union["variants"][0]["type"]]["members"] == [{"name": "data", "type": "int"}]


def test_alternates_and_builtin_types() -> None:
    entities = _entities()
    alternate = entities["1"]
    assert alternate["meta-type"] == "alternate"
    assert [member["type"] for member in alternate["members"]] == ["str", entities["E"]["arg-type"], "null"]
    assert entities["int"] == {"name": "int", "meta-type": "builtin", "json-type": "int"}
    assert {entities[name]["json-type"] for name in ("str", "null", "any", "number")} == {
        "string", "null", "value", "number",
    }  # fmt: skip


def test_the_whole_contract_describes_itself() -> None:
    """Every type that is named is there, and the whole fits the types that it describes."""
    entities = introspect(contract().commands, contract().events)
    contract().check("[SchemaInfo]", entities)
    names = {entity["name"] for entity in entities}
    for entity in entities:
        used = [entity.get(key) for key in ("arg-type", "ret-type", "element-type")]
        if entity["meta-type"] in ("object", "alternate"):
            used += [item["type"] for item in (*entity["members"], *entity.get("variants", ()))]
        assert {name for name in used if name} <= names
    assert entities == introspect(contract().commands, contract().events)

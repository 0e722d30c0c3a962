"""Differences between schemas: what breaks clients, and what does not."""

from __future__ import annotations

import pytest

from qobra.qapi.contract import Contract
from qobra.qapi.diff import diff
from qobra.qapi.introspect import introspect
from qobra.qapi.load import load
from qobra.qapi.tables import make_tables

OLD = """
{ 'enum': 'Kind', 'data': ['a', 'b'] }
{ 'struct': 'In', 'data': { 'name': 'str', '*size': 'int', 'kind': 'Kind' } }
{ 'struct': 'Out', 'data': { 'name': 'str', '*size': 'int', 'kind': 'Kind' } }
{ 'alternate': 'Alt', 'data': { 's': 'str', 'o': 'In' } }
{ 'union': 'U', 'base': { 'kind': 'Kind' }, 'discriminator': 'kind', 'data': { 'a': 'Extra' } }
{ 'struct': 'Extra', 'data': { '*x': 'int' } }
{ 'command': 'do', 'data': 'In', 'returns': ['Out'], 'allow-oob': true, 'features': ['can-do'] }
{ 'command': 'alt', 'data': { 'alt': 'Alt', '*text': 'str' } }
{ 'command': 'union', 'data': 'U', 'boxed': true, 'returns': 'U' }
{ 'event': 'E', 'data': 'Out' }
"""

CASES = [
    ("{ 'event': 'E', 'data': 'Out' }", "", "event E: is gone", True),
    ("", "{ 'event': 'F' }", "event F: is new", False),
    ("'command': 'alt'", "'command': 'alternate'", "command alt: is gone", True),
    ("'command': 'alt'", "'command': 'alternate'", "command alternate: is new", False),
    (", 'allow-oob': true", "", "command do: can no longer be run out of band", True),
    ("'features': ['can-do']", "'features': []", "command do: lost the feature 'can-do'", True),
    ("['can-do']", "['can-do', 'deprecated']", "command do: has the feature 'deprecated' now", False),
    ("'In', 'data': { 'name': 'str',", "'In', 'data': {", "command do, argument 'name': is gone", True),
    ("'Out', 'data': { 'name': 'str',", "'Out', 'data': {", "event E, data, member 'name': is gone", True),
    ("'In', 'data': {", "'In', 'data': { '*new': 'int',", "command do, argument 'new': is new", False),
    ("'In', 'data': {", "'In', 'data': { 'new': 'int',", "command do, argument 'new': is new and mandatory", True),
    ("'Out', 'data': {", "'Out', 'data': { 'new': 'int',", "event E, data, member 'new': is new", False),
    ("'In', 'data': { 'name'", "'In', 'data': { '*name'", "command do, argument 'name': is optional now", False),
    ("'Out', 'data': { 'name'", "'Out', 'data': { '*name'",
     "event E, data, member 'name': is optional now", True),
    ("'In', 'data': { 'name': 'str', '*size'", "'In', 'data': { 'name': 'str', 'size'",
     "command do, argument 'size': is mandatory now", True),
    ("['a', 'b']", "['a', 'b', 'c']", "command do, argument 'kind': value 'c' is new", False),
    ("['a', 'b']", "['a']", "command do, argument 'kind': value 'b' is gone", True),
    ("['a', 'b']", "['a']", "command union, return, member 'kind': value 'b' is gone", False),
    ("'In', 'data': { 'name': 'str'", "'In', 'data': { 'name': 'int'",
     "command do, argument 'name': was of type string, is int", True),
    ("'In', 'data': { 'name': 'str'", "'In', 'data': { 'name': 'Kind'",
     "command do, argument 'name': takes only certain strings now", True),
    ("'s': 'str', ", "", "command alt, argument 'alt': is never a string any more", True),
    ("'s': 'str', ", "'s': 'str', 'n': 'null', ", "command alt, argument 'alt': may be null too now", False),
    ("'*text': 'str'", "'*text': 'Alt'", "command alt, argument 'text': may be an object too now", False),
    ("'returns': ['Out']", "'returns': 'Out'", "command do, return: was of type array, is object", True),
    ("'Extra', 'data': { '*x'", "'Extra', 'data': { 'x'",
     "command union, kind 'a', argument 'x': is mandatory now", True),
    ("'Extra', 'data': { '*x'", "'Extra', 'data': { 'x'",
     "command union, return, kind 'a', member 'x': is mandatory now", False),
]  # fmt: skip


def _introspect(text: str) -> list[dict[str, object]]:
    of = Contract(*make_tables(load(text)))
    return introspect(of.commands, of.events, of=of)


@pytest.mark.parametrize(("before", "after", "words", "breaking"), CASES)
def test_a_change(before: str, after: str, words: str, breaking: bool) -> None:
    new = OLD.replace(before, after) if before else OLD + after
    assert new != OLD
    changes = diff(_introspect(OLD), _introspect(new))
    assert {f"{change.where}: {change.text}": change.breaking for change in changes}.get(words) is breaking


def test_the_same_is_the_same() -> None:
    assert diff(_introspect(OLD), _introspect(OLD)) == []


def test_names_and_order_of_types_do_not_matter() -> None:
    assert diff(_introspect(OLD), _introspect(OLD.replace("'Out'", "'Result'").replace("'Kind'", "'Sort'"))) == []


def test_what_breaks_comes_first() -> None:
    changes = diff(_introspect(OLD), _introspect(OLD.replace("'*size': 'int', ", "") + "{ 'event': 'A' }"))
    flags = [change.breaking for change in changes]
    assert flags == sorted(flags, reverse=True) and len(set(flags)) == 2
    assert str(changes[0]).startswith("breaks: ") and str(changes[-1]).startswith("safe: ")

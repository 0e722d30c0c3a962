"""Today's rules for names, flags, conditions, pragmas and comments: what breaks one, and which schemas they spare."""

from __future__ import annotations

import pytest

from qobra.qapi.error import QapiError
from qobra.qapi.load import load

GOOD = """
# A comment that is no documentation.
{ 'pragma': { 'doc-required': true,
              'command-name-exceptions': ['do_it'],
              'command-returns-exceptions': ['count'],
              'member-name-exceptions': ['Loud', 'do_it'] } }

##
# = A heading
#
# Returns: this is free text, where anything goes
##

##
# @Loud:
#
# @ONE: text that goes on
#       here
#
# @two_2:
# text below
#
# Features:
# @shiny: of a member
##
{ 'enum': 'Loud', 'data': [ 'ONE', { 'name': 'two_2', 'features': ['shiny'], 'if': { 'all': ['A', { 'not': 'B_2' }] } },
                            '3d' ] }

##
# @Thing:
#
# @loud: what
#
# Note: a section
#     of two lines
#
# Since: 1.0
##
{ 'struct': 'Thing', 'data': { 'loud': 'Loud', '__org.example_x-own': 'int' } }

##
# @Either:
##
{ 'union': 'Either', 'base': { 'loud': 'Loud' }, 'discriminator': 'loud', 'data': {} }

##
# @count:
#
# Returns: how many
##
{ 'command': 'count', 'returns': 'int', 'gen': false, 'allow-oob': true, 'features': [] }

##
# @do_it:
#
# @A: that
##
{ 'command': 'do_it', 'data': { 'A': 'bool' }, 'returns': ['Thing'] }

##
# @__ORG.EXAMPLE_DONE:
##
{ 'event': '__ORG.EXAMPLE_DONE', 'data': 'Thing', 'boxed': true }
"""


def test_what_keeps_them() -> None:
    assert len(load(GOOD, strict=True)) == 6


def _comment(*lines: str, then: str = "{ 'struct': 'Foo', 'data': { 'a': 'int' } }") -> str:
    return "\n".join(["##", *(f"# {line}".rstrip() for line in lines), "##", then])


BAD = [
    ("{ 'struct': 'not-camel', 'data': {} }", 1, 1, "CamelCase"),
    ("{ 'struct': 'FooList', 'data': {} }", 1, 1, "'List'"),
    ("{ 'event': 'done' }", 1, 1, "capitals"),
    ("{ 'command': 'do_it' }", 1, 1, "small letters"),
    ("{ 'command': 'q-it' }", 1, 1, "begins with a letter"),
    ("{ 'enum': 'Foo', 'data': ['Value'] }", 1, 18, "small letters"),
    ("{ 'command': 'foo', 'data': { 'a_b': 'int' } }", 1, 31, "small letters"),
    ("{ 'struct': 'Foo', 'data': { '*u': 'int' } }", 1, 30, "not reserved"),
    ("{ 'struct': 'Foo', 'data': { 'has-a': 'int' } }", 1, 30, "not reserved"),
    ("{ 'struct': 'Foo', 'data': { '_a': 'int' } }", 1, 30, "may be used"),
    ("{ 'enum': 'Foo', 'data': ['q-a'] }", 1, 18, "may be used"),
    ("{'pragma': {'member-name-exceptions': ['Foo']}}{ 'enum': 'Foo', 'data': ['a-b', 'a_b'] }", 1, 65, "beyond '-'"),
    ("{'pragma': {'member-name-exceptions': ['Foo']}}\n"
     "{ 'struct': 'Bar', 'data': { 'a-b': 'int' } }\n"
     "{ 'struct': 'Foo', 'base': 'Bar', 'data': { 'a_b': 'int' } }", 3, 45, "beyond '-'"),
    ("{'pragma': {'member-name-exceptions': ['Foo']}}{ 'alternate': 'Foo', 'data': { 'A': 'int' } }", 1, 80, "small"),
    ("{ 'command': 'foo', 'boxed': false }", 1, 21, "expected true as 'boxed'"),
    ("{ 'command': 'foo', 'gen': true }", 1, 21, "expected false as 'gen'"),
    ("{ 'command': 'foo', 'boxed': true, 'data': { 'a': 'int' } }", 1, 21, "type's name as 'data'"),
    ("{ 'event': 'FOO', 'boxed': true }", 1, 19, "type's name as 'data'"),
    ("{ 'command': 'foo', 'allow-oob': true, 'coroutine': true }", 1, 40, "only one of"),
    ("{ 'enum': 'Foo', 'data': [], 'prefix': {} }", 1, 30, "a string as 'prefix'"),
    ("{ 'command': 'foo', 'returns': ['int'] }", 1, 1, "an object or a list"),
    ("{ 'alternate': 'Alt', 'data': { 'a': 'int' } }{ 'command': 'foo', 'returns': 'Alt' }", 1, 47, "no alternate"),
    ("{ 'struct': 'Foo', 'data': {}, 'if': '' }", 1, 32, "symbol in capitals"),
    ("{ 'struct': 'Foo', 'data': {}, 'if': ['A'] }", 1, 32, "a symbol or an object"),
    ("{ 'struct': 'Foo', 'data': {}, 'if': { 'all': [] } }", 1, 32, "conditions in 'all'"),
    ("{ 'struct': 'Foo', 'data': {}, 'if': { 'any': ['A', 'b'] } }", 1, 32, "got 'b'"),
    ("{ 'struct': 'Foo', 'data': { 'a': { 'type': 'int', 'if': 'a' } } }", 1, 30, "got 'a'"),
    ("{ 'struct': 'Foo', 'data': {}, 'features': ['a', 'a'] }", 1, 1, "'a' comes twice"),
    ("{ 'struct': 'Foo', 'data': {}, 'features': ['deprecated'] }", 1, 1, "no feature 'deprecated'"),
    ("{ 'struct': 'Foo', 'data': {}, 'features': [{ 'name': 'a', 'colour': 'red' }] }", 1, 32, "'name' and 'if' only"),
    ("{ 'struct': 'Foo', 'data': {}, 'features': [{ 'name': 'a', 'if': [] }] }", 1, 32, "a symbol or an object"),
    ("{ 'enum': 'Foo', 'data': [] }\n{ 'union': 'Bar', 'base': { 'a': 'Foo' }, 'discriminator': 'a', 'data': {} }",
     2, 1, "expected branches"),
    ("{ 'struct': 'A1a', 'data': {} }\n{ 'union': 'Bar', 'base': 'A1a', 'data': { 'a': 'A1a' } }", 2, 1, "discrim"),
    ("{ 'enum': 'Foo', 'data': ['v'] }{ 'union': 'Bar', 'base': { 'a': { 'type': 'Foo', 'if': 'A' } }, "
     "'discriminator': 'a', 'data': {} }", 1, 33, "without condition"),
    ("{'pragma': {'doc-required': true}}{ 'event': 'FOO' }", 1, 35, "expected a comment that documents event 'FOO'"),
    (_comment("foo", then="{ 'event': 'FOO' }"), 4, 1, "got one that names nothing"),
    (_comment("@Bar:"), 4, 1, "for 'Bar'"),
    (_comment("@Foo:", then=""), 1, 1, "expected the definition of 'Foo'"),
    (_comment("@Foo:", then="{ 'pragma': {} }\n{ 'struct': 'Foo', 'data': {} }"), 1, 1, "expected the definition"),
    (_comment("@Foo:", "@b: text"), 1, 1, "'b' is none"),
    (_comment("@Foo:", "", "Features:", "@a: text"), 1, 1, "features of struct 'Foo' only"),
    (_comment("@Foo:", then="{ 'struct': 'Foo', 'data': {}, 'features': ['a'] }"), 4, 1, "a comment on feature 'a'"),
    (_comment("@Foo:", "Returns: something"), 1, 1, "no 'Returns'"),
    (_comment("@Foo:", "@a: one", "two"), 4, 1, "indented"),
    (_comment("@Foo:", "== No"), 3, 1, "no heading"),
    (_comment("@Foo:", "@a: one", "@a: one"), 4, 1, "'a' comes twice"),
    (_comment("@Foo:", "Since: 1", "Since: 2"), 4, 1, "'Since' once"),
    (_comment("@Foo:", "Note:"), 4, 1, "text in the section 'Note'"),
    (_comment("@Foo:", "Note: a", "@a: one"), 4, 1, "before the sections"),
    (_comment("@Foo:", "@: one"), 3, 1, "a name after '@'"),
    (_comment("@:"), 2, 1, "a name after '@'"),
    (_comment("@Foo"), 2, 1, "':' after the name"),
    (_comment("free", "@note: text", then=""), 3, 1, "names no definition"),
    ("##\n# free\n", 2, 1, "'##' that ends"),
    ("##\n# free\n## more\n", 3, 1, "nothing after the '##' that ends"),
    ("## more\n# free\n##\n", 1, 1, "nothing after the '##' that begins"),
    ("##\n#free\n##\n", 2, 1, "a blank after '#'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "column", "problem"), BAD)
def test_what_breaks_one(text: str, line: int, column: int, problem: str) -> None:
    with pytest.raises(QapiError) as raised:
        load(text, "bad.json", strict=True)
    assert problem in raised.value.problem
    assert raised.value.position == ("bad.json", line, column)


@pytest.mark.parametrize("text", [text for text, *_ in BAD])
def test_they_hold_only_where_asked_for(text: str) -> None:
    load(text)


@pytest.mark.parametrize(
    "old",
    [
        "{ 'type': 'Old', 'data': {} }",
        "{ 'command': 'old', 'gen': 'no' }",
        "{ 'union': 'Old', 'discriminator': {}, 'data': { 'a': 'int' } }",
        "{ 'struct': 'Old', 'data': {}, 'if': 'defined(CONFIG_OLD)' }",
        "{ 'struct': 'Old', 'data': {}, 'if': ['defined(CONFIG_OLD)'] }",
        "{ 'pragma': { 'returns-whitelist': [] } }",
    ],
)
def test_they_spare_old_schemas(old: str) -> None:
    load(old + "{ 'enum': 'Foo', 'data': ['Value'] }", strict=True)


def test_they_spare_parts_of_schemas() -> None:
    load("{ 'include': 'x.json' }{ 'enum': 'Foo', 'data': ['Value'] }", include=lambda name: None, strict=True)


@pytest.mark.parametrize(
    ("pragma", "problem"),
    [
        ("[]", "an object as 'pragma'"),
        ("{}, 'more': true", "no other member"),
        ("{ 'unknown': true }", "got 'unknown'"),
        ("{ 'doc-required': {} }", "true or false"),
        ("{ 'member-name-exceptions': {} }", "a list of names"),
        ("{ 'command-returns-exceptions': [{}] }", "a list of names"),
    ],
)
def test_pragmas_that_there_are_not(pragma: str, problem: str) -> None:
    with pytest.raises(QapiError, match=problem):
        load(f"{{ 'pragma': {pragma} }}")

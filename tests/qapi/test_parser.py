"""The schema language: what is read, and what an error says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.qapi.error import QapiError
from qobra.qapi.load import load
from qobra.qapi.schema import Alternate, Command, Enum, Event, Struct, Union

GOOD = """
##
# = A title
##

##
# @Colour:
#
# Some colours.
#
# @red: like blood
#
# @green: like grass,
#   or like leaves (since 2.1)
#
# Since: 1.2
##
{ 'enum': 'Colour', 'data': ['red', {'name': 'green', 'features': ['unstable'], 'if': 'CONFIG_GREEN'}] }

{ 'struct': 'Base', 'data': { 'id': 'str' } }

{ 'struct': 'Thing', 'base': 'Base',
  'data': { '*size': 'size', 'parts': ['Thing'], 'old': { 'type': 'bool', 'features': ['deprecated'] } },
  'if': { 'any': ['A', { 'not': 'B' }] }, 'features': [ { 'name': 'shiny', 'if': 'A' } ] }

{ 'union': 'Flat', 'base': { 'kind': 'Colour', '*n': 'int' }, 'discriminator': 'kind', 'data': { 'red': 'Thing' } }
{ 'union': 'Simple', 'data': { 'text': 'str', 'thing': 'Thing' } }
{ 'alternate': 'ThingOrName', 'data': { 'thing': 'Thing', 'name': 'str', 'none': 'null' } }

##
# @do-it:
#
# Does it.
#
# @what: what to do
#
# Returns: what was done
#
# Features:
# @unstable: may go
##
{ 'command': 'do-it', 'data': { 'what': 'ThingOrName' }, 'returns': ['Thing'],
  'allow-oob': true, 'allow-preconfig': true, 'gen': false, 'features': ['unstable'] }
{ 'command': 'boxed', 'data': 'Flat', 'boxed': true }
{ 'event': 'DONE', 'data': 'Base' }
{ 'event': 'NOTHING' }
"""


def test_todays_language() -> None:
    schema = load(GOOD, "good.json")
    assert schema.titles == {"good": "A title"}
    colour, thing, flat, simple = (schema[name] for name in ("Colour", "Thing", "Flat", "Simple"))
    assert isinstance(colour, Enum)
    assert [value.name for value in colour.values] == ["red", "green"]
    assert colour.values[1].features == ["unstable"]
    assert colour.values[1].condition == "CONFIG_GREEN"
    assert colour.doc.text == "Some colours."
    assert colour.doc.members == {"red": "like blood", "green": "like grass, or like leaves (since 2.1)"}
    assert (colour.doc.member_since("red"), colour.doc.member_since("green")) == ("1.2", "2.1")
    assert isinstance(thing, Struct)
    assert thing.features == ["shiny"]
    assert thing.condition == {"any": ["A", {"not": "B"}]}
    assert [m.name for m in schema.members_of("Thing")] == ["id", "size", "parts", "old"]
    assert [m.type for m in thing.members] == ["size", "[Thing]", "bool"]
    assert [m.optional for m in thing.members] == [True, False, False]
    assert isinstance(flat, Union) and isinstance(simple, Union)
    assert (flat.tag, flat.simple, simple.tag, simple.simple) == ("kind", False, "type", True)
    assert isinstance(schema["ThingOrName"], Alternate)
    command = schema["do-it"]
    assert isinstance(command, Command)
    assert (command.returns, command.allow_oob, command.allow_preconfig, command.gen) == ("[Thing]", True, True, False)
    assert (command.doc.returns, command.doc.features) == ("what was done", {"unstable": "may go"})
    event = schema["DONE"]
    assert isinstance(event, Event)
    assert [m.name for m in schema.arguments_of(event)] == ["id"]
    assert event.position == ("good.json", GOOD[: GOOD.index("{ 'event': 'DONE'")].count("\n") + 1, 1)


OLD = """
# -*- Mode: Python -*-
##
# @Info
#
# Some information
#
# @name: the name
#
# @size: #optional the size in bytes
#        as a number (since 1.1)
#
# Returns: nothing
#
# Since: 0.14.0
##
{ 'type': 'Info', 'data': {'name': 'str', '*size': 'int'} }
{ 'enum': 'Driver', 'data': [ 'file', 'raw' ] }
{ 'type': 'Common', 'data': { 'driver': 'Driver' } }
{ 'union': 'Options', 'base': 'Common', 'discriminator': 'driver', 'data': { 'file': 'Info' } }
{ 'union': 'Ref', 'discriminator': {}, 'data': { 'definition': 'Options', 'reference': 'str' } }
{ 'command': 'add', 'data': { 'options': 'Options' }, 'gen': 'no', 'success-response': 'no' }
"""


def test_language_of_2_x() -> None:
    schema = load(OLD)
    info = schema["Info"]
    assert isinstance(info, Struct)
    assert info.doc.text == "Some information"
    assert info.doc.members == {"name": "the name", "size": "the size in bytes as a number (since 1.1)"}
    assert info.doc.since == "0.14.0"
    assert isinstance(schema["Ref"], Alternate)
    command = schema["add"]
    assert isinstance(command, Command)
    assert (command.gen, command.success_response) == (False, False)


WRONG = [
    ("{ 'struct': 'A', 'data': { 'x': 'int' ", 1, 39, "expected ',' or '}' after the value of 'x', got the end of"),
    ("{ 'struct': 'A'\n  'data': {} }", 2, 3, "expected ',' or '}' after the value of 'struct', got the string 'data'"),
    ("\n{ struct: 'A' }", 2, 3, "expected a string in single quotes"),
    ("{ 'struct: 'A' }", 1, 13, "expected a string in single quotes"),
    ("{ 'struct': 'A, }", 1, 13, "expected a closing single quote"),
    ("{ 'struct': 'A\\q' }", 1, 13, "after a backslash"),
    ("{ 'struct' 'A' }", 1, 12, "expected ':' after 'struct'"),
    ("{ 'struct': 'A', 'struct': 'B' }", 1, 18, "expected each name once"),
    ("[ 'A' ]", 1, 1, "expected '{' to begin an expression"),
    ("{ 'enum': 'A', 'data': [ 'a' 'b' ] }", 1, 30, "expected ',' or ']'"),
    ("{ 'enum': 'A', 'data': [ 'a', 'a' ] }", 1, 16, "'a' comes twice"),
    ("{ 'enum': 'A', 'data': { 'a': 'b' } }", 1, 16, "expected a list of values"),
    ("{ 'enum': 'A', 'data': [ true ] }", 1, 16, "as a string or an object"),
    ("{ 'data': { 'a': 'b' } }", 1, 1, "expected exactly one of the members 'enum', 'struct'"),
    ("{ 'struct': 'A', 'enum': 'B' }", 1, 1, "expected exactly one"),
    ("{ 'struct': true, 'data': {} }", 1, 3, "expected a name"),
    ("{ 'struct': 'A b', 'data': {} }", 1, 3, "expected a name"),
    ("{ 'struct': 'A', 'data': {}, 'bse': 'B' }", 1, 30, "got 'bse'"),
    ("{ 'struct': 'A', 'data': 'B' }", 1, 18, "expected an object with the members of struct 'A'"),
    ("{ 'struct': 'A',\n 'data': { 'x': 'Nope' } }", 2, 12, "expected a known type for 'x' of 'A', got 'Nope'"),
    ("{ 'struct': 'A',\n 'data': { 'x': ['int', 'str'] } }", 2, 12, "a list of one type's name, for 'x'"),
    ("{ 'struct': 'A', 'data': { 'x': { 'kind': 'int' } } }", 1, 28, "got 'kind'"),
    ("{ 'struct': 'A', 'data': { 'x': { 'if': 'X' } } }", 1, 28, "expected a 'type' for 'x'"),
    ("{ 'struct': 'A', 'data': { 'x': 'int', '*x': 'int' } }", 1, 40, "'x' comes twice"),
    ("{ 'struct': 'A', 'base': 'B', 'data': {} }", 1, 1, "expected a struct as base of 'A', got 'B'"),
    ("{ 'struct': 'A', 'base': 'A', 'data': {} }", 1, 1, "expected a base of 'A' other than itself"),
    ("{ 'struct': 'A', 'data': {}, 'if': ['a', true] }", 1, 30, "expected a condition"),
    ("{ 'struct': 'A', 'data': {}, 'features': 'x' }", 1, 30, "expected a list of features"),
    ("{ 'struct': 'int', 'data': {} }", 1, 1, "'int' is a built-in type"),
    ("{ 'struct': 'A', 'data': {} }\n{ 'enum': 'A', 'data': [] }", 2, 1, "'A' is defined at <schema>:1:1 already"),
    ("{ 'union': 'U', 'data': { 'a': 'int' }, 'discriminator': 'x' }", 1, 41, "expected a 'base'"),
    ("{ 'union': 'U', 'base': { 'x': 'str' }, 'discriminator': 'x', 'data': {} }", 1, 1, "expected a mandatory enum"),
    ("{ 'union': 'U', 'base': { 'x': 'str' }, 'discriminator': 'y', 'data': {} }", 1, 1, "among its base's members"),
    ("{ 'union': 'U', 'data': { '*a': 'int' } }", 1, 27, "expected no '*'"),
    (
        "{ 'enum': 'E', 'data': ['a'] } { 'struct': 'S', 'data': {} }\n"
        "{ 'union': 'U', 'base': { 'e': 'E' }, 'discriminator': 'e', 'data': { 'b': 'S' } }",
        2,
        71,
        "expected a value of 'E' as branch of 'U', got 'b'",
    ),
    (
        "{ 'enum': 'E', 'data': ['a'] }\n"
        "{ 'union': 'U', 'base': { 'e': 'E' }, 'discriminator': 'e', 'data': { 'a': 'int' } }",
        2,
        71,
        "expected a struct or union for branch 'a'",
    ),
    (
        "{ 'enum': 'E', 'data': ['a'] }\n"
        "{ 'union': 'U', 'base': { 'u': 'E' }, 'discriminator': 'u', 'data': { 'a': 'V' } }\n"
        "{ 'union': 'V', 'base': { 'v': 'E' }, 'discriminator': 'v', 'data': { 'a': 'U' } }",
        2,
        71,
        "expected branch 'a' of 'U' not to lead back to 'U'",
    ),
    ("{ 'alternate': 'A', 'data': { 'a': 'int', 'b': 'str' } }", 1, 43, "'b' and 'a' may both be number"),
    (
        "{ 'enum': 'E', 'data': ['off'] }{ 'alternate': 'A', 'data': { 'a': 'E', 'b': 'bool' } }",
        1,
        73,
        "both be boolean",
    ),
    ("{ 'enum': 'E', 'data': ['1'] }{ 'alternate': 'A', 'data': { 'a': 'E', 'b': 'int' } }", 1, 71, "both be number"),
    ("{ 'alternate': 'A', 'data': { 'a': 'any' } }", 1, 31, "another type than 'any'"),
    ("{ 'alternate': 'A', 'data': { 'a': 'A' } }", 1, 31, "another type than 'A'"),
    ("{ 'alternate': 'A', 'data': { 'a': 'int', 'b': 'size' } }", 1, 43, "'b' and 'a' may both be number"),
    ("{ 'alternate': 'A', 'data': {} }", 1, 21, "expected alternatives"),
    ("{ 'command': 'c', 'data': 'Nope' }", 1, 1, "expected a struct as 'data' of 'c', got 'Nope'"),
    ("{ 'command': 'c', 'boxed': 'maybe' }", 1, 19, "expected true or false as 'boxed'"),
    ("{ 'command': 'c', 'returns': [] }", 1, 19, "expected a type's name"),
    ("{ 'command': 'c', 'returns': 'Nope' }", 1, 1, "expected a known type for 'returns'"),
    ("{ 'include': 'other.json' }", 1, 3, "expected no include"),
    ("{ 'include': true }", 1, 3, "expected the name of one file"),
    ("{ 'struct': 'A', 'data': { 'x y': 'int' } }", 1, 28, "a name made of letters, digits, '-' and '_' in struct 'A'"),
    ("{ 'struct': 'A', 'data': { 'x': true } }", 1, 28, "expected a type's name, or a list of one type's name"),
    ("{ 'struct': 'A', 'data': { 'x': ['a b'] } }", 1, 28, "expected a type's name, or a list of one type's name"),
    ("{ 'struct': 'A', 'data': {}, 'features': ['a b'] }", 1, 30, "expected each feature as a name"),
    ("{ 'struct': 'A', 'data': {}, 'features': [true] }", 1, 30, "expected each feature as a name"),
    ("{ 'struct': 'A', 'data': {}, 'if': { 'any': 'x' } }", 1, 30, "expected a condition"),
    ("{ 'struct': 'A', 'data': {}, 'if': { 'not': ['x'] } }", 1, 30, "expected a condition"),
    ("{ 'struct': 'A', 'base': true, 'data': {} }", 1, 18, "expected a type's name as 'base'"),
    (
        "{ 'struct': 'B', 'data': { 'x': 'int' } }\n{ 'struct': 'A', 'base': 'B', 'data': { 'x': 'int' } }",
        2,
        1,
        "'x' of 'A' is in base 'B' too",
    ),
    ("{ 'command': 'c' }\n{ 'struct': 'A', 'data': { 'x': 'c' } }", 2, 28, "expected a type for 'x' of 'A', 'c' is a"),
    ("{ 'union': 'U', 'data': {} }", 1, 1, "expected branches in union 'U'"),
    (
        "{ 'union': 'U', 'base': { 'x': 'str' }, 'discriminator': true, 'data': {} }",
        1,
        41,
        "expected the name of a member as 'discriminator'",
    ),
    (
        "{ 'enum': 'E', 'data': ['a'] }\n{ 'union': 'U', 'base': { '*e': 'E' }, 'discriminator': 'e', 'data': {} }",
        2,
        1,
        "expected a mandatory enum as discriminator",
    ),
    (
        "{ 'enum': 'E', 'data': ['a'] } { 'struct': 'S', 'data': { 'e': 'int' } }\n"
        "{ 'union': 'U', 'base': { 'e': 'E' }, 'discriminator': 'e', 'data': { 'a': 'S' } }",
        2,
        71,
        "'e' of branch 'a' is in the base of 'U'",
    ),
    (
        "{ 'enum': 'E', 'data': ['a'] } { 'union': 'U', 'base': { 'e': 'E' }, 'discriminator': 'e', 'data': {} }\n"
        "{ 'command': 'c', 'data': 'U' }",
        2,
        1,
        "expected a struct as 'data' of 'c', got 'U'",
    ),
    ("{ 'alternate': 'A', 'data': { 'a': ['int'], 'b': ['str'] } }", 1, 45, "'b' and 'a' may both be array"),
    ("{ 'struct': 'A\x01' }", 1, 13, "expected printable characters in a string, got '\\x01'"),
    ("{ 'struct': : }", 1, 13, "expected '{', '[', a string or a boolean, got ':'"),
    ("{ 'enum': 'A', 'data': ['x\\\\y'] }", 1, 16, "'-' and '_' in enum 'A', got 'x\\y'"),
    ("{ 'struct': 'A', 'data': " + "{ 'x': " * 40 + "'int'" + "}" * 41, 1, 250, "levels of nesting"),
]


@pytest.mark.parametrize(("text", "line", "column", "expected"), WRONG)
def test_an_error_says_where_and_what_was_expected(text: str, line: int, column: int, expected: str) -> None:
    with pytest.raises(QapiError) as caught:
        load(text)
    assert expected in caught.value.problem
    assert caught.value.position == ("<schema>", line, column)
    assert str(caught.value) == f"<schema>:{line}:{column}: {caught.value.problem}"


_TOKENS = ["{", "}", "[", "]", ":", ",", "'struct'", "'enum'", "'union'", "'alternate'", "'command'", "'event'"]
_TOKENS += ["'type'", "'data'", "'base'", "'discriminator'", "'A'", "'B'", "'int'", "'*x'", "true", "#", "##\n", "\n"]
_TOKENS += ["'include'", "'if'", "'features'", "'returns'", "'x", "é", "\0", '"', "{}", "'' "]


@given(st.lists(st.sampled_from(_TOKENS), max_size=60).map(" ".join) | st.text(max_size=200))
def test_garbage_raises_nothing_but_errors_with_a_position(text: str) -> None:
    for lenient in (False, True):
        try:
            load(text, "garbage.json", lenient=lenient)
        except QapiError as error:
            assert error.position.file == "garbage.json"
            assert 1 <= error.position.line <= text.count("\n") + 1


@given(st.data())
def test_a_damaged_schema_raises_nothing_but_errors_with_a_position(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(GOOD) - 1))
    length = data.draw(st.integers(0, 30))
    instead = data.draw(st.sampled_from(["", *_TOKENS]))
    try:
        load(GOOD[:start] + instead + GOOD[start + length :])
    except QapiError as error:
        assert error.problem.startswith(("expected", "a schema"))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(QapiError, match="nesting"):
        load("{ 'struct': 'A', 'data': " + "[" * 100_000)


class TestLenient:
    """Texts that were saved from a web page."""

    def test_lines_that_are_no_schema_text_are_passed_over(self) -> None:
        text = "{ 'command': 'a',\ncommit: it's 10 lines of prose\n2019-01-11\n 'data': { 'x': 'int' } }"
        with pytest.raises(QapiError):
            load(text)
        schema = load(text, lenient=True)
        assert [member.name for member in schema.arguments_of(schema.commands()[0])] == ["x"]
        assert [error.position.line for error in schema.skipped] == [2, 3]

    def test_an_expression_that_breaks_off_is_passed_over(self) -> None:
        schema = load("{ 'struct': 'A', 'data': {\n{ 'struct': 'B', 'data': {} }", lenient=True)
        assert list(schema.definitions) == ["B"]
        assert len(schema.skipped) == 1


class TestInclude:
    def test_the_caller_supplies_files_and_each_is_read_once(self) -> None:
        files = {
            "a.json": "{ 'include': 'b.json' } { 'struct': 'A', 'data': { 'b': 'B' } }",
            "b.json": "{ 'include': 'dir/c.json' } { 'struct': 'B', 'data': {} }",
            "dir/c.json": "{ 'include': '../d.json' }",
            "d.json": "",
        }
        asked: list[str] = []

        def include(name: str) -> str:
            asked.append(name)
            return files[name]

        schema = load("{ 'include': 'a.json' } { 'include': 'b.json' }", "top.json", include=include)
        assert list(schema.definitions) == ["B", "A"]
        assert asked == ["a.json", "b.json", "dir/c.json", "d.json"]
        assert schema["A"].section == "a"

    def test_a_loop_is_refused(self) -> None:
        files = {"a.json": "{ 'include': 'b.json' }", "b.json": "\n{ 'include': 'a.json' }"}
        with pytest.raises(QapiError, match=r"^b\.json:2:3: expected an include that does not lead back"):
            load(files["a.json"], "a.json", include=files.get)

    def test_a_stub_lets_unknown_types_pass(self) -> None:
        schema = load("{ 'include': 'x.json' } { 'struct': 'A', 'data': { 'x': 'X' } }", include=lambda name: None)
        assert schema.missing == ["X"]

    @pytest.mark.parametrize(
        ("text", "missing"),
        [
            ("{ 'struct': 'A', 'base': 'B', 'data': {} }", ["B"]),
            ("{ 'command': 'c', 'data': 'D', 'returns': 'R' }", ["D", "R"]),
            ("{ 'union': 'U', 'base': 'B', 'discriminator': 'b', 'data': { 'x': 'X' } }", ["B", "X"]),
            ("{ 'union': 'U', 'base': { 'e': 'E' }, 'discriminator': 'e', 'data': { 'x': 'X' } }", ["E", "X"]),
            ("{ 'alternate': 'A', 'data': { 'a': 'X', 'b': 'int' } }", ["X"]),
        ],
    )
    def test_what_a_stub_may_have_is_told(self, text: str, missing: list[str]) -> None:
        schema = load("{ 'include': 'x.json' }" + text, include=lambda name: None)
        assert sorted(schema.missing) == missing
        with pytest.raises(QapiError):
            load(text)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{ 'struct': 'A', 'base': 'int', 'data': {} }", "expected a struct as base of 'A', got 'int'"),
            ("{ 'command': 'c', 'data': 'int' }", "expected a struct as 'data' of 'c', got 'int'"),
            ("{ 'union': 'U', 'base': { 'e': 'int' }, 'discriminator': 'e', 'data': {} }", "expected a mandatory enum"),
            ("{ 'union': 'U', 'base': { 'e': 'X' }, 'discriminator': 'f', 'data': {} }", "among its base's members"),
        ],
    )
    def test_no_stub_makes_another_thing_of_a_built_in_type(self, text: str, expected: str) -> None:
        with pytest.raises(QapiError, match=expected):
            load("{ 'include': 'x.json' }" + text, include=lambda name: None)

    def test_what_is_not_there(self) -> None:
        def include(name: str) -> str:
            raise FileNotFoundError(name)

        with pytest.raises(QapiError, match=r":1:3: there is no file 'x\.json' to include"):
            load("{ 'include': 'x.json' }", include=include)

    def test_a_definition_that_is_wrong_is_passed_over_where_that_is_asked_for(self) -> None:
        schema = load("{ 'struct': 'A', 'data': [] } { 'struct': 'B', 'data': {} }", lenient=True)
        assert list(schema.definitions) == ["B"] and "A" not in schema and "B" in schema
        assert [error.position.column for error in schema.skipped] == [18]

    def test_an_error_in_an_included_file_names_it(self) -> None:
        with pytest.raises(QapiError, match=r"^sub\.json:1:3: "):
            load("{ 'include': 'sub.json' }", include=lambda name: "{ 5 }")

    def test_a_chain_of_includes_without_an_end_is_refused(self) -> None:
        with pytest.raises(QapiError, match="levels of includes"):
            load("{ 'include': 'x0' }", include=lambda name: f"{{ 'include': '{name}0' }}")

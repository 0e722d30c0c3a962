"""The reader of JSON: every split, every error text, every limit."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra import json_parser as parser
from qobra import json_reader
from qobra.errors import QobraError
from qobra.json_reader import Reader, parse_text


def read(*pieces: bytes) -> list[Any]:
    """What a new reader makes of ``pieces``; errors as their texts in a tuple."""
    reader = Reader()
    found = [value for piece in pieces for value in reader.feed(piece)]
    return [("error", str(value)) if isinstance(value, QobraError) else value for value in found]


def bad(text: str) -> tuple[str, str]:
    return ("error", f"JSON parse error, {text}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"execute":"x"}', [{"execute": "x"}]),
        (b'{"a":1}{"b":[2]}\r\n{"c":null}', [{"a": 1}, {"b": [2]}, {"c": None}]),
        (b"{'a': 'b\"c\\'d'}", [{"a": "b\"c'd"}]),
        (b"1 ", [1]),
        (b"null,", [None, bad("expecting value")]),
        (b"xxx\n", [bad("invalid keyword 'xxx'")]),
        (b"x" * 2000 + b"\n", [bad("invalid keyword '" + "x" * 1006)]),
        (b'{"a":tru}', [bad("invalid keyword 'tru'")]),
        (b'{"execute":}', [bad("expecting value")]),
        (b"{,}", [bad("expecting value")]),
        (b"[1,]", [bad("expecting value")]),
        (b'{"a":1,}', [bad("expecting value")]),
        (b'{"a" 1}', [bad("missing : in object pair")]),
        (b'{"a":1 "b":2}', [bad("expected separator in dict")]),
        (b"[1 2]", [bad("expected separator in list")]),
        (b"{1:2}", [bad("key is not a string in object")]),
        (b"{{}}", [bad("key is not a string in object")]),
        (b'{"a":1,"a":2}', [bad("duplicate key")]),
        (b'{"a":1,"a":xyz}', [bad("invalid keyword 'xyz'")]),
        (b"]", [bad("expecting value")]),
        (b'{"a":1}}', [{"a": 1}, bad("expecting value")]),
        (b'{"a":"b"]', [bad("expected separator in dict")]),
        (b'{"a":01}', [bad("stray '01'"), bad("expecting value")]),
        (b'{"a":1.}', [bad("stray '1.}'")]),
        (b'{"a":-}', [bad("stray '-}'")]),
        (b'{"a":1e+}', [bad("stray '1e+}'")]),
        (b'{"a":NaN}', [bad("stray 'N'"), bad("expecting value")]),
        (b'"a\nb" 1 ', [bad("stray '\"a\n'"), bad("stray '\" 1 '")][:1]),
        (b'{"a":"\\x"}', [bad("invalid escape sequence in string")]),
        (b'{"a":"\\ud83d\\u0041"}', [bad("\\ud83d is not a valid Unicode character")]),
        (b'{"a":"\\ud83f\\udffe"}', [bad("\\ud83f\\udffe is not a valid Unicode character")]),
        (b'{"a":"\\uffff"}', [bad("\\uffff is not a valid Unicode character")]),
        (b'{"a":"\\u12"}', [bad('\\u12" is not a valid Unicode character')]),
        (b'{"a":"\\u12g4"}', [bad("\\u12g4 is not a valid Unicode character")]),
        (b'{"a":"\\u1_23"}', [bad("\\u1_23 is not a valid Unicode character")]),
        (b'{"a":"\\u +12"}', [bad("\\u +12 is not a valid Unicode character")]),
        (b'{"a":"\\ud83d\\ude0g"}', [bad("\\ud83d is not a valid Unicode character")]),
        (b'{"a":"\\ud83d\\ude00\\u0000\\n"}', [{"a": "\U0001f600\0\n"}]),
        (b'{"a":"\xf0\x9f\x98\x80\xc0\x80"}', [{"a": "\U0001f600\0"}]),
        (b'{"a":"\xc3"}', [bad("invalid UTF-8 sequence in string")]),
        (b'{"a":"\xef\xbf\xbe"}', [bad("invalid UTF-8 sequence in string")]),
        (b"\x00", [bad("stray ''")]),
        (b"@", [bad("stray '@'")]),
        (b'{"exec\xff{"a":1}', [bad("stray '\"exec\ufffd'"), {"a": 1}]),
        (
            b"'\xed\xa0\x80\xe2\x82x\x80\x80\xf8\x88\x80\x80\x80\x01",
            [bad("stray ''\ufffd\ufffdx\ufffd\ufffd\ufffd\x01'")],
        ),
    ],
)
def test_texts(text: bytes, expected: list[Any]) -> None:
    assert read(text) == expected
    assert read(*(text[i : i + 1] for i in range(len(text)))) == expected


def test_numbers_are_as_wide_as_qemus() -> None:
    values = read(b"[0,-0,9223372036854775807,-9223372036854775808,18446744073709551615,1.5e3]")[0]
    assert values == [0, 0, 2**63 - 1, -(2**63), 2**64 - 1, 1500.0]
    assert [type(value) for value in values] == [int] * 5 + [float]
    big = read(b'{"a":18446744073709551616,"b":-9223372036854775809,"c":1e400}')[0]
    assert big == {"a": 2.0**64, "b": -(2.0**63), "c": math.inf}
    assert type(big["a"]) is float


def test_the_reset_byte_ends_whatever_was_half_read() -> None:
    for half in (b'{"execute":"que', b'[[[{"a":', b"'", b"12", b"nul", b"1e"):
        values = read(half + b"\xff", b'{"a":1}')
        assert values[-1] == {"a": 1}
        assert isinstance(values[-2], tuple)


def test_nesting_limit() -> None:
    def nested(depth: int) -> bytes:
        return b"[" * depth + b"]" * depth

    value = read(nested(parser.MAX_NESTING))[0]
    for _ in range(parser.MAX_NESTING):
        assert isinstance(value, list)
        value = value[0] if value else None
    refused = read(b"[" * (parser.MAX_NESTING + 1))
    assert refused == [("error", "JSON nesting depth limit exceeded")]
    # The same as a member of an object, which is what the fast path tries first.
    deep = read(b'{"a":' + nested(parser.MAX_NESTING) + b"}\xff")
    assert deep[0] == ("error", "JSON nesting depth limit exceeded")
    assert isinstance(read(b'{"a":' + nested(parser.MAX_NESTING - 1) + b"}")[0], dict)


def test_size_and_count_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qobra.json_parser.MAX_TOKEN_SIZE", 100)
    monkeypatch.setattr("qobra.json_lexer.MAX_TOKEN_SIZE", 100)
    monkeypatch.setattr("qobra.json_parser.MAX_TOKEN_COUNT", 20)
    size = ("error", "JSON token size limit exceeded")
    assert read(b"'" + b"x" * 50, b"y" * 51)[0] == size
    assert read(b"['" + b"x" * 60 + b"','" + b"y" * 60 + b"'")[0] == size
    assert read(b"[" + b"1," * 20)[0] == ("error", "JSON token count limit exceeded")


def test_a_long_string_in_small_pieces_is_not_scanned_again_and_again() -> None:
    reader = Reader()
    reader.feed(b"{'a':'")
    for _ in range(4000):
        assert reader.feed(b"x" * 1000) == []
    assert reader.feed(b"'}") == [{"a": "x" * 4_000_000}]
    assert reader.idle


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cn"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.text("ab", max_size=2), json_values), max_size=4), st.booleans(), st.data())
def test_any_json_in_any_pieces(values: list[Any], ascii_only: bool, data: st.DataObject) -> None:
    text = "".join(json.dumps(value, ensure_ascii=ascii_only) for value in values).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == values


@given(st.lists(st.binary(max_size=30) | st.text("{}[]:,'\"\\u0e1-.tfn x", max_size=30).map(str.encode), max_size=8))
def test_garbage_never_breaks_the_reader(pieces: list[bytes]) -> None:
    found = read(*pieces, b"\xff", b'\n{"a":1}')
    assert found[-1] == {"a": 1}
    assert read(b"".join(pieces) + b"\xff" + b'\n{"a":1}') == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting a JSON value"),
        ("{} 1", "Expecting at most one JSON value"),
        ("{}x", "Expecting at most one JSON value"),
        ("{'a': 1", "JSON parse error, premature EOI"),
        ("[12", "JSON parse error, premature EOI"),
        ("{bad", "JSON parse error, invalid keyword 'bad'"),
        ("'abc", "JSON parse error, stray ''abc'"),
        ("{a:1}", "JSON parse error, invalid keyword 'a'"),
        ('{"a": 1]}', "JSON parse error, expected separator in dict"),
    ],
)
def test_a_text_that_is_no_single_value(text: str, reason: str) -> None:
    with pytest.raises(QobraError) as caught:
        parse_text(text)
    assert caught.value.desc == reason


@pytest.mark.parametrize(
    ("text", "value"),
    [("{'a': null}", {"a": None}), ("17", 17), (" true\n", True), ("'x'", "x"), ('{"\u00e9": "\u00fc"}', {"é": "ü"})],
)
def test_a_text_that_is_one_value(text: str, value: Any) -> None:
    assert parse_text(text) == value


def test_without_cpythons_scanner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "_scan", None)
    monkeypatch.setitem(sys.modules, "_json", None)
    assert json_reader.Reader().feed(b'{"a": [1, "b", null]} {"c": {}}') == [{"a": [1, "b", None]}, {"c": {}}]

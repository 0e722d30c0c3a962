"""The writer of QMP output."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from qobra.qmp import writer
from qobra.qmp.writer import Encoded, encode


def test_layout() -> None:
    value = {"a": [1, -2, 2.5], "b": {}, "c": 'q"\n\u20ac', "d": [True, False, None]}
    assert encode(value) == rb'{"d": [true, false, null], "a": [1, -2, 2.5], "b": {}, "c": "q\"\n\u20AC"}'


@pytest.mark.parametrize("pretty", [False, True])
def test_characters_and_numbers_are_written_as_qemu_does(pretty: bool) -> None:
    value = ["\u00e9\x7f\U0001f600", "\udc80", 0.1, 3.0, -0.0, 1e22, 2.5, float("inf")]
    text = "".join(encode(value, pretty=pretty).decode().split())
    assert text == r'["\u00E9\u007F\uD83D\uDE00","\uFFFD",0.10000000000000001,3,-0,1e+22,2.5,inf]'


def test_infinity() -> None:
    assert encode({"id": [float("-inf")]}) == b'{"id": [-inf]}'


def test_pretty_layout() -> None:
    value = {"a": [1, {"b": "x"}], "c": {}, "d": []}
    assert encode(value, pretty=True).decode().replace("\r\n", "\n") == (
        '{\n    "d": [\n    ],\n    "a": [\n        1,\n        {\n            "b": "x"\n        }\n    ],\n'
        '    "c": {\n    }\n}'
    )


def test_encoded_text_is_taken_as_it_is() -> None:
    assert encode(Encoded(b'{"x":1}')) == b'{"x":1}'
    assert encode(Encoded(b'{"x":1}'), pretty=True) == b'{\r\n    "x": 1\r\n}'


def test_as_deep_as_the_reader_lets_in() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    assert encode(value) == b"[" * 5001 + b"]" * 5001


def test_both_ways_agree() -> None:
    value = {"a": [{"b": 1.5}, "\U0001f600"], "": None}
    assert json.loads(encode(value)) == json.loads(encode(value, pretty=True)) == value


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        encode({"a": object()})
    with pytest.raises(TypeError):
        encode({"a": object()}, pretty=True)


@pytest.mark.parametrize("pretty", [False, True])
def test_members_are_in_the_order_of_a_hash_table(pretty: bool) -> None:
    value = {
        "id": "job0",
        "status": "running",
        "stats": {"failed_rd_operations": 1, "failed_wr_operations": 2, "rd": 3},
    }
    text = encode(value, pretty=pretty)
    assert list(json.loads(text)) == ["stats", "status", "id"]
    # Two that share a bucket: the later one first.
    assert text.index(b"failed_wr") < text.index(b"failed_rd")
    assert json.loads(text) == value


def test_without_pythons_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"id": ["é\x7f", 1.5, None, True], "return": {"b": {}, "a": []}}
    expected = writer.encode(value)
    monkeypatch.setattr(writer, "_encode", None)
    monkeypatch.setitem(sys.modules, "_json", None)
    assert writer.encode(value) == expected == writer.encode_without_loading(value)

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from qobra.json_text import compact, dumps, ordered

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_is_json(value: object) -> None:
    assert json.loads(dumps(value)) == value
    assert json.loads(compact(value)) == value


def test_members_are_in_the_order_of_qemus_table() -> None:
    # As qemu-img 7.2 prints ImageInfo.
    names = ["virtual-size", "filename", "cluster-size", "format", "actual-size", "format-specific", "dirty-flag"]
    assert [name for name, _ in ordered(dict.fromkeys(reversed(names), 0))] == names


def test_layout() -> None:
    assert dumps({"a": [], "b": {"c": None}}) == '{\n    "a": [\n    ],\n    "b": {\n        "c": null\n    }\n}'


def test_escapes() -> None:
    assert dumps('é"\\\n\U0001f600\udc80') == '"\\u00E9\\"\\\\\\n\\uD83D\\uDE00\\uFFFD"'

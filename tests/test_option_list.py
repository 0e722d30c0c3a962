"""Option lists in QemuOpts' syntax."""

from __future__ import annotations

import pytest

from qobra.option_list import option_pairs, split_options


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a", ["a"]),
        ("a,", ["a"]),
        (",", [""]),
        (",a", ["", "a"]),
        ("a,,b,c", ["a,b", "c"]),
        ("a=,,", ["a=,"]),
        ("a,,,b", ["a,", "b"]),
    ],
)
def test_parts_are_between_single_commas(text: str, parts: list[str]) -> None:
    assert split_options(text) == parts


def test_words_without_a_value_are_switches_and_are_warned_of() -> None:
    warnings: list[str] = []
    pairs = option_pairs("x,on,nob,c=1,c=2,", "file", warnings.append)
    assert pairs == [("file", "x"), ("on", "on"), ("b", "off"), ("c", "1"), ("c", "2")]
    assert [text.splitlines()[-1] for text in warnings] == ["Please use on=on instead", "Please use b=off instead"]

from __future__ import annotations

import re

import pytest

from qobra.getopt import HelpWanted, UnknownGroup, UsageError, parse, parse_command

LONG = ("format=|f", "output=", "object=", "image-opts", "force-share|U")


def test_short_options_are_combined_and_operands_stand_anywhere() -> None:
    assert parse(["-qf", "raw", "a", "-Uq", "b"], "f:qU") == (
        [("q", ""), ("f", "raw"), ("U", ""), ("q", "")],
        ["a", "b"],
    )
    assert parse(["-fraw"], "f:") == ([("f", "raw")], [])


def test_long_options_are_shortened_where_that_is_clear() -> None:
    assert parse(["--outp=json", "--form", "raw"], "", LONG)[0] == [("output", "json"), ("f", "raw")]
    with pytest.raises(UsageError, match="unrecognized option '--o=json'"):
        parse(["--o=json"], "", LONG)


def test_end_of_options() -> None:
    assert parse(["-q", "--", "-f", "x"], "qf:") == ([("q", "")], ["-f", "x"])
    assert parse(["a", "-q"], "q", permute=False) == ([], ["a", "-q"])
    assert parse(["-"], "q") == ([], ["-"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-x"], "unrecognized option '-x'"),
        (["-f"], "missing argument for option '-f'"),
        (["--output"], "missing argument for option '--output'"),
        (["--image-opts=1"], "unrecognized option '--image-opts=1'"),
        (["--none"], "unrecognized option '--none'"),
    ],
)
def test_errors(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments, "f:", LONG)
    assert str(caught.value) == text


def test_errors_as_getopt_words_them() -> None:
    with pytest.raises(UsageError, match="invalid option -- 'x'"):
        parse(["-x"], "f:", raw_texts=True)
    with pytest.raises(UsageError, match="option requires an argument -- 'f'"):
        parse(["-f"], "f:", raw_texts=True)


def test_help() -> None:
    with pytest.raises(HelpWanted):
        parse_command(["-f", "raw", "--help"], "f:")
    assert parse_command(["-f", "-h"], "f:").optional("f") == "-h"


def test_the_last_value_of_an_option_counts() -> None:
    line = parse_command(["-f", "raw", "-q", "disk", "-f", "qcow2"], "f:qp", ("cache=",))
    assert (line.optional("f"), line.values("f"), line.value("f", "vdi")) == ("qcow2", ["raw", "qcow2"], "qcow2")
    assert (line.optional("cache"), line.value("cache", "none"), line.values("cache")) == (None, "none", [])
    assert (line.has("q"), line.has("p"), line.operands) == (True, False, ["disk"])


def test_an_unknown_group_that_comes_first_is_named_by_whoever_was_called() -> None:
    with pytest.raises(UnknownGroup):
        parse(["-Zq"], "q")
    with pytest.raises(UsageError, match="unrecognized option '-q'"):
        parse(["-q", "-Zq"], "q")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--form"], "option '--format' requires an argument"),
        (["--o"], "option '--o' is ambiguous; possibilities: '--output' '--object'"),
        (["--force=x"], "option '--force-share' doesn't allow an argument"),
        (["--nosuch"], "unrecognized option '--nosuch'"),
    ],
)
def test_long_options_in_getopt_s_words(arguments: list[str], error: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(error)}$"):
        parse(arguments, "f:", LONG, raw_texts=True)


def test_each_option_is_looked_at_before_the_next() -> None:
    seen: list[tuple[str, str]] = []
    with pytest.raises(UsageError, match="nosuch"):
        parse(["-q", "--size", "3", "--nosuch", "-q"], "q", ("size=",), met=lambda *option: seen.append(option))
    assert seen == [("q", ""), ("size", "3")]

"""Files of option groups: what counts as a group, as an option, and as wrong."""

from __future__ import annotations

import pytest

from qobra.config_groups import parse_groups
from qobra.errors import QobraError


def test_groups_and_their_options_are_read_leniently() -> None:
    text = '# first\n\n[drive "d0"]\n  if = "none"\nfile=x\n[ odd ]\nkey = "open end\n[x ""]\n[last\n'
    groups = parse_groups(text.splitlines(keepends=True))
    assert [(each.name, each.id, each.line, each.items) for each in groups] == [
        ("drive", "d0", 3, [("if", "none"), ("file=x", "")]),
        (" odd ", None, 6, [("key", "open end\n")]),
        ('x ""', None, 8, []),
        ("last\n", None, 9, []),
    ]


@pytest.mark.parametrize(("text", "told"), [("\n \n", "2: parse error"), ("[]\n", "1: no group defined")])
def test_a_line_that_cannot_be_is_named(text: str, told: str) -> None:
    with pytest.raises(QobraError) as failure:
        parse_groups(text.splitlines(keepends=True), lambda line: f"{line}: ")
    assert str(failure.value) == told

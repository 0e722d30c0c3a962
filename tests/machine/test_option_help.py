"""What is told of the options' parameters."""

from __future__ import annotations

import pytest

from qobra.machine.option_groups import GROUPS, convert
from qobra.machine.option_help import HELP, describe


@pytest.mark.parametrize("group", [name for name, parameters in GROUPS.items() if parameters])
def test_every_parameter_is_explained_and_nothing_else(group: str) -> None:
    told = describe(group)
    assert [(each["name"], each["type"]) for each in told] == list(GROUPS[group])
    assert HELP[group].keys() == dict(GROUPS[group]).keys()
    assert all(each["help"] for each in told)
    # What a parameter is if not given could be given.
    convert(group, {each["name"]: each["default"] for each in told if "default" in each})


def test_groups_that_take_anything() -> None:
    assert describe("device") == []
    assert HELP.keys() == {name for name, parameters in GROUPS.items() if parameters}

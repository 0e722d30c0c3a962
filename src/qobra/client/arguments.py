"""How a method's arguments become a command's."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final


class Unset(Enum):
    """The type of :data:`UNSET`."""

    UNSET = "UNSET"


UNSET: Final = Unset.UNSET
"""Absence, for the few arguments where None is JSON's null and means something."""


def members(
    required: Mapping[str, Any],
    optional: Mapping[str, Any] | None = None,
    nullable: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The arguments by wire name: None is absence in ``optional``, UNSET is in ``nullable``."""
    arguments = dict(required)
    if optional:
        arguments.update((name, value) for name, value in optional.items() if value is not None)
    if nullable:
        arguments.update((name, value) for name, value in nullable.items() if value is not UNSET)
    return arguments


def union(given: Mapping[str, Any] | None, keywords: Mapping[str, Any], underscored: str = "") -> dict[str, Any]:
    """The arguments of a command that takes a union: a mapping with the wire's names, keywords, or both.

    In keywords underscores stand for hyphens, except in the names that are ``underscored`` on the wire.
    """
    arguments = dict(given or {})
    exact = underscored.split()
    for name, value in keywords.items():
        if value is not None:
            arguments[name if name in exact else name.replace("_", "-")] = value
    return arguments

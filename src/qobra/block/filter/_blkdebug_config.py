"""blkdebug's rules as texts: in a file, groups ``[inject-error]`` and ``[set-state]``; or as options of the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qobra.block.node import Options
from qobra.block.opener import valid_id
from qobra.config_groups import parse_groups
from qobra.errors import QobraError, strerror
from qobra.units import BOOLEANS

MAX_LENGTH = 1 << 20
"""Largest file that is read, in characters."""


def _number(name: str, text: str) -> int:
    octal = len(text) > 1 and text[0] == "0" and text.isdigit()
    try:
        value = int(text, 8 if octal else 0)
    except ValueError:
        raise QobraError(f"Parameter '{name}' expects a number")
    if not -1 << 63 <= value < 1 << 64:
        raise QobraError(f"Value '{text}' is too large for parameter '{name}'")
    return value


def _switch(name: str, text: str) -> bool:
    if text not in BOOLEANS:
        raise QobraError(f"Parameter '{name}' expects 'on' or 'off'")
    return BOOLEANS[text]


def _text(name: str, text: str) -> str:
    return text


_OPTIONS: dict[str, dict[str, Callable[[str, str], Any]]] = {
    "inject-error": {
        "event": _text,
        "state": _number,
        "iotype": _text,
        "errno": _number,
        "sector": _number,
        "once": _switch,
        "immediately": _switch,
    },
    "set-state": {"event": _text, "state": _number, "new_state": _number},
}
_WORDS = {"event": "BlkdebugEvent", "iotype": "BlkdebugIOType"}


def read_config(path: str) -> tuple[list[Options], list[Options]]:
    """The rules of the file ``path``: those that inject errors, and those that set the state. Raises QobraError."""
    try:
        file = open(path, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise QobraError.from_os("Could not read blkdebug config file", error)
    with file:
        try:
            lines = file.read(MAX_LENGTH).splitlines(keepends=True)
        except OSError as error:
            raise QobraError(f"Cannot read config file: {strerror(error)}", errno=error.errno)
    rules: dict[str, list[Options]] = {name: [] for name in _OPTIONS}
    used: set[tuple[str, str]] = set()
    for group in parse_groups(lines):
        known = _OPTIONS.get(group.name)
        if known is None:
            raise QobraError(f"There is no option group '{group.name}'")
        if group.id is not None:
            if not valid_id(group.id):
                raise QobraError("Parameter 'id' expects an identifier")
            if (group.name, group.id) in used:
                raise QobraError(f"Duplicate ID '{group.id}' for {group.name}")
            used.add((group.name, group.id))
        rule: Options = {}
        for name, text in group.items:
            if name in known:
                rule[name] = known[name](name, text)
            elif name != "id":
                raise QobraError(f"Invalid parameter '{name}'")
        rules[group.name].append(rule)
    for each in rules["inject-error"] + rules["set-state"]:
        _check_words(each)
    return rules["inject-error"], rules["set-state"]


def typed_rules(group: str, rules: list[Options]) -> list[Options]:
    """The rules of a ``group``, whose values may be texts as in a file, with proper values. Raises QobraError."""
    known = _OPTIONS[group]
    result = []
    for texts in rules:
        for name in texts:
            if name not in known:
                raise QobraError(f"[{group}] section doesn't support the option '{name}'")
        rule = {name: known[name](name, _as_text(name, value)) for name, value in texts.items()}
        _check_words(rule)
        result.append(rule)
    return result


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, str | int):
        raise QobraError(f"Invalid parameter type for '{name}', expected: string")
    return str(value)


def _check_words(rule: Options) -> None:
    from qobra.qapi.contract import contract

    if "event" not in rule:
        raise QobraError("Missing event name for rule")
    for name, kind in _WORDS.items():
        if name in rule and rule[name] not in contract().types[kind].values:
            raise QobraError(f"invalid parameter value: {rule[name]}")

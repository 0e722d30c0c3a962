"""QEMU's ``key=value,...`` options, as a tree of dicts, lists and strings.

The grammar (QEMU, util/keyval.c): parameters are separated by commas; ``,,`` in a value is a comma; a dot in a key goes
down one level; keys that are numbers make a list; the key of the first parameter may be left out where the option has
an implied one, and its value has no comma then. A string's type is found out later, by
:meth:`qobra.qapi.contract.Contract.check` with ``keyval=True``.
"""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.units import decimal

MAX_FRAGMENT = 127
"""Characters that one part of a key may have."""

HELP = ("help", "?")


def parse(text: str, implied_key: str | None = None) -> dict[str, Any]:
    """The parameters of ``text``. Raises QobraError in QEMU's words.

    >>> parse("qcow2,file.driver=file,file.filename=a,,b", "driver")
    {'driver': 'qcow2', 'file': {'driver': 'file', 'filename': 'a,b'}}
    """
    root: dict[str, Any] = {}
    rest = text
    first = True
    while rest:
        rest = _parameter(root, rest, implied_key if first else None)
        first = False
    return {key: _lists(value, key) for key, value in root.items()}


def _parameter(root: dict[str, Any], text: str, implied_key: str | None) -> str:
    """Put the first parameter of ``text`` into ``root``, and return what is left."""
    end = next((at for at, char in enumerate(text) if char in "=,"), len(text))
    key = text[:end]
    if text[end : end + 1] == "=":
        return _value(root, key, text[end + 1 :])
    if key in HELP:
        raise QobraError("Help is not available for this option")
    if implied_key is not None and key:
        _store(root, implied_key, key)  # no comma can be in it
        return text[end + 1 :]
    _fragments(key)  # a name that cannot be is told before what it lacks
    raise QobraError(f"Expected '=' after parameter '{key}'")


def _value(root: dict[str, Any], key: str, text: str) -> str:
    """Store the value at the start of ``text``, and return what follows it."""
    value = ""
    while text:
        part, comma, text = text.partition(",")
        value += part
        if not comma or not text.startswith(","):
            break
        value += ","
        text = text[1:]
    _store(root, key, value)
    return text


def _store(root: dict[str, Any], key: str, value: str) -> None:
    parts = _fragments(key)
    node = root
    for depth, part in enumerate(parts[:-1]):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise QobraError(f"Parameters '{'.'.join(parts[: depth + 1])}.*' used inconsistently")
        node = child
    if isinstance(node.get(parts[-1]), dict):
        raise QobraError(f"Parameters '{key}.*' used inconsistently")
    node[parts[-1]] = value


def _fragments(key: str) -> list[str]:
    """The parts of a key: names, and numbers after the first. The dots of a downstream ``__RFQDN_`` do not part."""
    fragments: list[str] = []
    rest = key
    while True:
        length = _digits(rest) if fragments else 0
        length = length or _name_length(rest)
        if not length or rest[length : length + 1] not in ("", "."):
            raise QobraError(f"Invalid parameter '{key}'")
        if length > MAX_FRAGMENT:
            what = "Parameter" if length == len(key) else "Parameter fragment"
            raise QobraError(f"{what} '{rest[:length]}' is too long")
        fragments.append(rest[:length])
        if length == len(rest):
            return fragments
        rest = rest[length + 1 :]


def _digits(text: str) -> int:
    return next((at for at, char in enumerate(text) if char not in "0123456789"), len(text))


def _name_length(text: str) -> int:
    """How many characters of ``text`` are a QAPI name; 0 if it does not begin with one."""
    start = 0
    if text.startswith("__"):
        start = text.find("_", 2) + 1
        if not start or not all(char.isascii() and (char.isalnum() or char in ".-") for char in text[2 : start - 1]):
            return 0
    if not text[start : start + 1].isascii() or not text[start : start + 1].isalpha():
        return 0
    end = start
    while end < len(text) and text[end].isascii() and (text[end].isalnum() or text[end] in "-_"):
        end += 1
    return end


def _lists(value: Any, path: str) -> Any:
    """Turn dicts whose keys are all numbers into lists, from the leaves up."""
    if not isinstance(value, dict):
        return value
    converted = {key: _lists(item, f"{path}.{key}") for key, item in value.items()}
    by_index = {index: item for key, item in converted.items() if (index := decimal(key)) is not None}
    if not by_index:
        return converted
    if len(by_index) != len(converted):
        raise QobraError(f"Parameters '{path}.*' used inconsistently")
    for index in range(len(by_index)):
        if index not in by_index:
            raise QobraError(f"Parameter '{path}.{index}' missing")
    return [by_index[index] for index in range(len(by_index))]

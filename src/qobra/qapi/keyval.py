"""QEMU's ``key=value,...`` options, as a tree of dicts, lists and strings.

The grammar (QEMU, util/keyval.c): parameters are separated by commas; ``,,`` in a value is a comma; a dot in a key goes
down one level; keys that are numbers make a list; the key of the first parameter may be left out where the option has
an implied one. A string's type is found out later, by :meth:`qobra.qapi.contract.Contract.check` with ``keyval=True``.
"""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError

MAX_INDEX = 2**31 - 1
MAX_FRAGMENT = 127
MAX_DEPTH = 64


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
    key, equals, _ = _cut_key(text)
    if not equals and implied_key is not None:
        if not key:
            return (
                text[1:] if text.startswith(",") and not text.startswith(",,") else _value_into(root, implied_key, text)
            )
        return _value_into(root, implied_key, text)
    if not equals:
        shown = text.partition(",")[0]
        if shown == "help" or shown == "?":
            raise QobraError("Help is not available for this option")
        raise QobraError(f"Expected '=' after parameter '{shown}'" if shown else "Invalid parameter ''")
    return _value_into(root, key, text[len(key) + 1 :])


def _cut_key(text: str) -> tuple[str, bool, str]:
    """What stands before the first ``=`` or ``,``, and whether it was a ``=``."""
    for at, char in enumerate(text):
        if char == "=":
            return text[:at], True, text[at + 1 :]
        if char == ",":
            return text[:at], False, text[at:]
    return text, False, ""


def _value_into(root: dict[str, Any], key: str, text: str) -> str:
    value = ""
    at = 0
    while at < len(text):
        if text[at] == ",":
            if text[at + 1 : at + 2] != ",":
                at += 1
                break
            at += 1
        value += text[at]
        at += 1
    _store(root, key, value)
    return text[at:]


def _store(root: dict[str, Any], key: str, value: str) -> None:
    parts = key.split(".")
    if len(parts) > MAX_DEPTH:
        raise QobraError(f"Parameter '{key}' has too many levels")
    node = root
    for depth, part in enumerate(parts):
        if not _valid_fragment(part, first=depth == 0):
            raise QobraError(f"Invalid parameter '{'.'.join(parts[: depth + 1])}'")
        if depth == len(parts) - 1:
            break
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise QobraError(f"Parameters '{'.'.join(parts[: depth + 1])}.*' used inconsistently")
        node = child
    if isinstance(node.get(parts[-1]), dict):
        raise QobraError(f"Parameters '{key}.*' used inconsistently")
    node[parts[-1]] = value


def _valid_fragment(part: str, *, first: bool) -> bool:
    if not part or len(part) > MAX_FRAGMENT or not part.isascii():
        return False
    if part.isdigit():
        return not first
    return (part[0].isalpha() and all(char.isalnum() or char in "-_" for char in part)) or _vendor_name(part)


def _vendor_name(part: str) -> bool:
    """``__RFQDN_name``: a downstream extension."""
    return part.startswith("__") and all(char.isalnum() or char in "-_" for char in part)


def _lists(value: Any, path: str) -> Any:
    """Turn dicts whose keys are all numbers into lists, from the leaves up."""
    if not isinstance(value, dict):
        return value
    converted = {key: _lists(item, f"{path}.{key}") for key, item in value.items()}
    numbers = [key for key in converted if key.isdigit()]
    if not numbers:
        return converted
    if len(numbers) != len(converted):
        raise QobraError(f"Parameters '{path}.*' used inconsistently")
    by_index: dict[int, Any] = {}
    for key in numbers:
        if int(key) > MAX_INDEX:
            raise QobraError(f"Parameter '{path}.{key}' has a list index that is too large")
        by_index[int(key)] = converted[key]
    for index in range(len(by_index)):
        if index not in by_index:
            raise QobraError(f"Parameter '{path}.{index}' missing")
    return [by_index[index] for index in range(len(by_index))]

"""A line of input as a command: ``NAME key=value ...``, ``NAME {JSON}``, or a whole ``{"execute": ...}``.

Values are read as the server's schema has their types: ``size=10G`` is a number, ``node-name=10`` a string. Dots in a
key go down a level (``file.driver=file``), and a value may be JSON.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from qobra.cli._shell.live import LiveSchema
from qobra.errors import QobraError
from qobra.units import decimal

_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
_TRUE = ("on", "true", "yes")
_FALSE = ("off", "false", "no")
_OPENING = {"{": "}", "[": "]"}


class Call(NamedTuple):
    """A command and its arguments, ready to be sent."""

    command: str
    arguments: dict[str, Any]
    oob: bool = False


def parse_line(line: str, schema: LiveSchema) -> Call:
    """Read a line. Raises QobraError that says what is wrong with it."""
    text = line.strip()
    if text.startswith("{"):
        return _whole(_json(text))
    words = split(text)
    oob = words[0] == "exec-oob" and len(words) > 1
    if oob:
        words.pop(0)
    command, *rest = words
    arguments: dict[str, Any] = {}
    for word in rest:
        if word.startswith("{"):
            arguments.update(_json(word))
            continue
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise QobraError(f"expected key=value or JSON, not '{word}'")
        put(arguments, key, value)
    entity = schema.commands.get(command)
    if entity is not None:
        arguments = _object(schema, entity["arg-type"], arguments, "")
    else:
        arguments = {key: _guess(value) for key, value in arguments.items()}
    return Call(command, arguments, oob)


def split(text: str) -> list[str]:
    """Words between blanks; quotes and balanced brackets hold blanks, and quotes outside brackets are taken off."""
    words: list[str] = []
    word: str | None = None
    closing: list[str] = []
    quote = ""
    characters = iter(text)
    for char in characters:
        if quote:
            if char == "\\" and closing:
                word = (word or "") + char + next(characters, "")
                continue
            if char == quote:
                quote = ""
                if not closing:
                    continue
        elif char in "\"'":
            quote = char
            word = word or ""
            if not closing:
                continue
        elif char in _OPENING and (closing or not word or word.endswith("=")):
            closing.append(_OPENING[char])
        elif closing and char == closing[-1]:
            closing.pop()
        elif char.isspace() and not closing:
            if word is not None:
                words.append(word)
            word = None
            continue
        word = (word or "") + char
    if quote:
        raise QobraError(f"a quotation {quote} has no end")
    if closing:
        raise QobraError(f"expected '{closing[-1]}' at the end")
    return [*words, word] if word is not None else words


def _whole(request: dict[str, Any]) -> Call:
    command = request.get("execute") or request.get("exec-oob")
    if not isinstance(command, str):
        raise QobraError("the object has no member 'execute'")
    arguments = request.get("arguments", {})
    if not isinstance(arguments, dict):
        raise QobraError("'arguments' must be an object")
    return Call(command, arguments, "exec-oob" in request)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QobraError(f"bad JSON: {error}") from None


def put(arguments: dict[str, Any], key: str, value: str) -> None:
    """Set the member at a dotted key. QobraError if it has a value already."""
    *path, last = key.split(".")
    target = arguments
    for part in path:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise QobraError(f"'{key}': '{part}' has a value already")
        target = inner
    if last in target:
        raise QobraError(f"'{key}' is given twice")
    target[last] = value


def _object(schema: LiveSchema, type_name: str, given: dict[str, Any], path: str) -> dict[str, Any]:
    """Convert the members of ``given``; those that the schema does not know are left for the server to refuse."""
    result = dict(given)
    tag = schema.tag(type_name)
    if tag in given and isinstance(given[tag], str):
        result[tag] = given[tag]
    for name, field in schema.fields(type_name, given).items():
        if name in given:
            result[name] = _value(schema, field.type, given[name], f"{path}{name}")
    unknown = given.keys() - schema.fields(type_name, given).keys()
    return {**result, **{name: _guess(given[name]) for name in unknown}}


def _value(schema: LiveSchema, type_name: str, value: Any, path: str) -> Any:
    kind = schema.kind(type_name)
    if isinstance(value, dict):
        return _nested(schema, type_name, value, path)
    if not isinstance(value, str):
        return value
    if kind == "alternate":
        return _alternate(schema, type_name, value, path)
    if kind in ("int", "number"):
        return _number(value, path)
    if kind == "boolean":
        if value in _TRUE or value in _FALSE:
            return value in _TRUE
        raise QobraError(f"{path}: expected on or off, not '{value}'")
    if kind == "array":
        if value.startswith("["):
            return _json(value)
        return [_value(schema, schema.element(type_name), item, path) for item in value.split(",") if item]
    if kind == "object":
        if value.startswith("{"):
            return _json(value)
        raise QobraError(f"{path}: expected an object, {path}.MEMBER=VALUE or JSON")
    if kind == "null":
        return None
    return _guess(value) if kind == "value" else value


def _nested(schema: LiveSchema, type_name: str, value: dict[str, Any], path: str) -> Any:
    if schema.kind(type_name) == "array":
        if any(decimal(key) is None for key in value):
            raise QobraError(f"{path}: expected {path}.0=, {path}.1=, ...")
        items = [value[key] for key in sorted(value, key=int)]
        return [_value(schema, schema.element(type_name), item, path) for item in items]
    inner = schema.object_of(type_name)
    return _object(schema, inner, value, path + ".") if inner is not None else value


def _alternate(schema: LiveSchema, type_name: str, value: str, path: str) -> Any:
    """The first alternative that the text fits; strings fit always and come last."""
    kinds = {schema.kind(choice): choice for choice in schema.choices(type_name)}
    if value.startswith("{") and "object" in kinds:
        return _json(value)
    if value.startswith("[") and "array" in kinds:
        return _json(value)
    if value == "null" and "null" in kinds:
        return None
    for kind in ("int", "number", "boolean", "enum"):
        if kind in kinds:
            if kind == "enum" and value not in schema.values(kinds[kind]):
                continue
            try:
                return _value(schema, kinds[kind], value, path)
            except QobraError:
                continue
    return value


def _number(text: str, path: str) -> int | float:
    factor = _SUFFIXES.get(text[-1:].lower(), 1) if not text.lower().startswith("0x") else 1
    digits = text[:-1] if factor > 1 else text
    try:
        return int(digits, 0) * factor
    except ValueError:
        pass
    try:
        number = float(digits) * factor
    except ValueError:
        raise QobraError(f"{path}: expected a number, not '{text}'") from None
    return int(number) if factor > 1 else number


def _guess(value: Any) -> Any:
    """A value whose type nobody told: JSON if it is any, else a string."""
    if isinstance(value, dict):
        return {key: _guess(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if value in ("on", "off"):
        return value == "on"
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value

"""From expressions to definitions: which members each kind of expression has, in both dialects."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qobra.qapi.doc import Doc
from qobra.qapi.error import Position, QapiError
from qobra.qapi.parser import Expression, Value
from qobra.qapi.schema import Alternate, Command, Condition, Definition, Enum, Event, Member, Struct, Union

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_KEYS: dict[str, tuple[str, ...]] = {
    "enum": ("data", "prefix"),
    "struct": ("data", "base"),
    "type": ("data", "base"),
    "union": ("data", "base", "discriminator"),
    "alternate": ("data",),
    "command": (
        "data", "boxed", "returns", "gen", "success-response", "allow-oob", "allow-preconfig", "coroutine",
    ),
    "event": ("data", "boxed"),
}  # fmt: skip
_COMMON_KEYS = ("if", "features")


def build(expression: Expression, section: str) -> Definition:
    """The definition that ``expression`` stands for. Raises QapiError where a member is wrong, missing or unknown."""
    return _Builder(expression, section).run()


class _Builder:
    def __init__(self, expression: Expression, section: str) -> None:
        self._data = expression.data
        self._keys = expression.keys
        self._start = expression.position
        self._doc = expression.doc or Doc()
        self._section = section

    def run(self) -> Definition:
        kinds = [kind for kind in _KEYS if kind in self._data]
        if len(kinds) != 1:
            raise QapiError(self._start, f"expected exactly one of the members {_list(_KEYS)}")
        kind = kinds[0]
        name = self._data[kind]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self._error(kind, f"expected a name made of letters, digits, '-' and '_' after '{kind}'")
        allowed = (*_KEYS[kind], *_COMMON_KEYS, kind)
        for key in self._data:
            if key not in allowed:
                raise self._error(key, f"expected one of {_list(allowed)} in {kind} '{name}', got '{key}'")
        if self._doc.name and self._doc.name != name:
            # A comment about something else that merely stands before this definition.
            self._doc = Doc()
        make = {"type": self._struct, "struct": self._struct, "enum": self._enum, "union": self._union}
        if kind in make:
            return make[kind](name)
        return {"alternate": self._alternate, "command": self._command, "event": self._event}[kind](name)

    def _error(self, key: str, problem: str) -> QapiError:
        return QapiError(self._keys.get(key, self._start), problem)

    def _common(self) -> tuple[Position, Doc, str, list[str], Condition]:
        features = self._features(self._data.get("features", []), "features")
        return self._start, self._doc, self._section, features, self._condition(self._data.get("if"), "if")

    def _enum(self, name: str) -> Enum:
        data = self._data.get("data")
        if not isinstance(data, list):
            raise self._error("data", f"expected a list of values as 'data' of enum '{name}'")
        values: list[Member] = []
        for item in data:
            if isinstance(item, str):
                item = {"name": item}
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise self._error("data", f"expected each value of enum '{name}' as a string or an object with 'name'")
            values.append(self._member(str(item["name"]), {"type": "null", **item}, f"enum '{name}'"))
        return Enum(name, *self._common(), self._distinct(values, f"enum '{name}'"))

    def _struct(self, name: str) -> Struct:
        members = self._members(self._data.get("data"), f"struct '{name}'")
        return Struct(name, *self._common(), self._string("base"), members)

    def _union(self, name: str) -> Union | Alternate:
        tag = self._data.get("discriminator")
        if tag == {}:  # the 2.x way to write an alternate
            return self._alternate(name)
        base = self._data.get("base")
        members = self._members(base, f"the base of union '{name}'") if isinstance(base, dict) else []
        base_name = None if isinstance(base, dict) else self._string("base")
        branches = self._members(self._data.get("data"), f"union '{name}'")
        simple = tag is None
        if not simple and not isinstance(tag, str):
            raise self._error("discriminator", "expected the name of a member as 'discriminator'")
        if not simple and base is None:
            raise self._error("discriminator", f"expected a 'base' that has the discriminator of union '{name}'")
        for branch in branches:
            if branch.optional:
                raise QapiError(branch.position, f"expected no '*' before branch '{branch.name}' of union '{name}'")
        return Union(name, *self._common(), base_name, members, str(tag or "type"), branches, simple)

    def _alternate(self, name: str) -> Alternate:
        members = self._members(self._data.get("data"), f"alternate '{name}'")
        if not members:
            raise self._error("data", f"expected alternatives in alternate '{name}'")
        return Alternate(name, *self._common(), members)

    def _command(self, name: str) -> Command:
        data, members = self._payload(f"command '{name}'")
        returns = self._type(self._data["returns"], "returns") if "returns" in self._data else ""
        return Command(
            name, *self._common(), data, members, self._flag("boxed"), returns, self._flag("gen", True),
            self._flag("success-response", True), self._flag("allow-oob"), self._flag("allow-preconfig"),
        )  # fmt: skip

    def _event(self, name: str) -> Event:
        data, members = self._payload(f"event '{name}'")
        return Event(name, *self._common(), data, members, self._flag("boxed"))

    def _payload(self, what: str) -> tuple[str | None, list[Member]]:
        data = self._data.get("data", {})
        if isinstance(data, str):
            return data, []
        return None, self._members(data, what)

    def _members(self, data: Value | None, what: str) -> list[Member]:
        if not isinstance(data, dict):
            raise self._error("data", f"expected an object with the members of {what}")
        return self._distinct([self._member(key, value, what) for key, value in data.items()], what)

    def _distinct(self, members: list[Member], what: str) -> list[Member]:
        seen: set[str] = set()
        for member in members:
            if member.name in seen:
                raise QapiError(member.position, f"expected each name once in {what}, '{member.name}' comes twice")
            seen.add(member.name)
        return members

    def _member(self, key: str, value: Value, what: str) -> Member:
        position = self._keys.get(key, self._keys.get("data", self._start))
        name = key.removeprefix("*")
        if not _NAME.fullmatch(name):
            raise QapiError(position, f"expected a name made of letters, digits, '-' and '_' in {what}, got '{key}'")
        details = value if isinstance(value, dict) else {"type": value}
        for unknown in details:
            if unknown not in ("type", "if", "features", "name"):
                raise QapiError(
                    position, f"expected 'type', 'if' or 'features' for '{name}' in {what}, got '{unknown}'"
                )
        if "type" not in details:
            raise QapiError(position, f"expected a 'type' for '{name}' in {what}")
        return Member(
            name,
            self._type(details["type"], key),
            position,
            key.startswith("*"),
            self._condition(details.get("if"), key),
            self._features(details.get("features", []), key),
        )

    def _type(self, value: Value, key: str) -> str:
        if isinstance(value, str) and _NAME.fullmatch(value):
            return value
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) and _NAME.fullmatch(value[0]):
            return f"[{value[0]}]"
        raise self._error(key, f"expected a type's name, or a list of one type's name, for '{key.removeprefix('*')}'")

    def _string(self, key: str) -> str | None:
        value = self._data.get(key)
        if value is not None and not isinstance(value, str):
            raise self._error(key, f"expected a type's name as '{key}'")
        return value

    def _flag(self, key: str, default: bool = False) -> bool:
        value = self._data.get(key, default)
        if value in ("no", "yes"):  # the 2.x spelling
            return value == "yes"
        if not isinstance(value, bool):
            raise self._error(key, f"expected true or false as '{key}'")
        return value

    def _features(self, value: Value, key: str) -> list[str]:
        if not isinstance(value, list):
            raise self._error(key, "expected a list of features")
        features: list[str] = []
        for item in value:
            name = item.get("name") if isinstance(item, dict) else item
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise self._error(key, "expected each feature as a name or an object with 'name'")
            features.append(name)
        return features

    def _condition(self, value: Value | None, key: str) -> Condition:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return {"all": [str(item) for item in value]}  # the spelling before 6.1
        if isinstance(value, dict) and len(value) == 1:
            operator, operand = next(iter(value.items()))
            if operator in ("all", "any") and isinstance(operand, list):
                return {operator: [self._condition(item, key) for item in operand]}
            if operator == "not" and isinstance(operand, (str, dict)):
                return {operator: self._condition(operand, key)}
        raise self._error(key, "expected a condition: a symbol, or an object with one of 'all', 'any', 'not'")


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)

"""What changed between two schemas, in words, and which changes break clients.

Both sides are lists of SchemaInfo, so that a schema file, a saved introspection and a live server compare alike. A
change of what a client sends breaks it when less is accepted or more is asked for; a change of what it receives breaks
it when less is promised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

Entity = dict[str, Any]


class Change(NamedTuple):
    """One difference: where (``command block-commit, argument 'top'``), what, and whether it breaks clients."""

    where: str
    text: str
    breaking: bool

    def __str__(self) -> str:
        return f"{'breaks' if self.breaking else 'safe'}: {self.where}: {self.text}"


def diff(old: list[Entity], new: list[Entity]) -> list[Change]:
    """The changes from ``old`` to ``new``, those that break clients first."""
    changes = list(_Diff(_Side(old), _Side(new)).run())
    return sorted(dict.fromkeys(changes), key=lambda change: (not change.breaking, change.where))


class _Side:
    def __init__(self, entities: list[Entity]) -> None:
        self.commands: dict[str, Entity] = {}
        self.events: dict[str, Entity] = {}
        self._types: dict[str, Entity] = {}
        kinds = {"command": self.commands, "event": self.events}
        for entity in entities:
            kinds.get(str(entity.get("meta-type")), self._types)[str(entity.get("name"))] = entity

    def type(self, name: str) -> Entity:
        return self._types.get(name, {"meta-type": "builtin", "json-type": "value", "name": name})

    def shape(self, entity: Entity) -> str:
        """What the type looks like on the wire, in a word."""
        kind = str(entity["meta-type"])
        if kind == "builtin":
            return str(entity.get("json-type", "value"))
        return "string" if kind == "enum" else kind


class _Diff:
    def __init__(self, old: _Side, new: _Side) -> None:
        self._old = old
        self._new = new
        self._seen: set[tuple[str, str, bool]] = set()
        # Breadth first, so that a type that many commands share is told of where it is least deep.
        self._pending: deque[tuple[str, str, str, bool]] = deque()

    def run(self) -> Iterator[Change]:
        for kind, before, after in (
            ("command", self._old.commands, self._new.commands),
            ("event", self._old.events, self._new.events),
        ):
            for name in {**before, **after}:
                where = f"{kind} {name}"
                if name not in after:
                    yield Change(where, "is gone", True)
                elif name not in before:
                    yield Change(where, "is new", False)
        for name in sorted(self._old.commands.keys() & self._new.commands.keys()):
            yield from self._command(name, self._old.commands[name], self._new.commands[name])
        for name in sorted(self._old.events.keys() & self._new.events.keys()):
            old, new = self._old.events[name], self._new.events[name]
            where = f"event {name}"
            yield from self._features(where, old, new)
            self._later(f"{where}, data", old["arg-type"], new["arg-type"], False)
        while self._pending:
            yield from self._types(*self._pending.popleft())

    def _command(self, name: str, old: Entity, new: Entity) -> Iterator[Change]:
        where = f"command {name}"
        yield from self._features(where, old, new)
        if old.get("allow-oob", False) != new.get("allow-oob", False):
            lost = bool(old.get("allow-oob"))
            yield Change(where, f"can {'no longer' if lost else 'now'} be run out of band", lost)
        self._later(where, old["arg-type"], new["arg-type"], True)
        self._later(f"{where}, return", old["ret-type"], new["ret-type"], False)

    def _features(self, where: str, old: Entity, new: Entity) -> Iterator[Change]:
        before, after = set(old.get("features", ())), set(new.get("features", ()))
        for feature in sorted(before - after):
            yield Change(where, f"lost the feature '{feature}'", feature not in ("deprecated", "unstable"))
        for feature in sorted(after - before):
            yield Change(where, f"has the feature '{feature}' now", False)

    def _later(self, where: str, old_name: str, new_name: str, sent: bool) -> None:
        """Note two types at one place for comparison; ``sent`` says that clients send it, else they receive it."""
        if (old_name, new_name, sent) not in self._seen:
            self._seen.add((old_name, new_name, sent))
            self._pending.append((where, old_name, new_name, sent))

    def _types(self, where: str, old_name: str, new_name: str, sent: bool) -> Iterator[Change]:
        old, new = self._old.type(old_name), self._new.type(new_name)
        kinds = (old["meta-type"], new["meta-type"])
        if kinds == ("enum", "enum"):
            yield from self._enums(where, old, new, sent)
        elif kinds == ("object", "object"):
            yield from self._objects(where, old, new, sent)
        elif kinds == ("array", "array"):
            self._later(f"{where}[]", old["element-type"], new["element-type"], sent)
        elif "alternate" in kinds:
            yield from self._alternates(where, old, new, sent)
        elif self._old.shape(old) != self._new.shape(new):
            yield Change(where, f"was of type {self._old.shape(old)}, is {self._new.shape(new)}", True)
        elif kinds[0] != kinds[1]:
            narrower = new["meta-type"] == "enum"
            text = "takes only certain strings now" if narrower else "takes any string now"
            yield Change(where, text, narrower == sent)

    def _enums(self, where: str, old: Entity, new: Entity, sent: bool) -> Iterator[Change]:
        before, after = _values(old), _values(new)
        for value in before:
            if value not in after:
                yield Change(where, f"value '{value}' is gone", sent)
        for value in after:
            if value not in before:
                yield Change(where, f"value '{value}' is new", False)
            else:
                yield from self._features(f"{where}, value '{value}'", before[value], after[value])

    def _alternates(self, where: str, old: Entity, new: Entity, sent: bool) -> Iterator[Change]:
        before = self._alternatives(self._old, old)
        after = self._alternatives(self._new, new)
        for shape in before:
            if shape not in after:
                yield Change(where, f"is never {_article(shape)} any more", sent)
            else:
                self._later(where, before[shape], after[shape], sent)
        for shape in after:
            if shape not in before:
                yield Change(where, f"may be {_article(shape)} too now", not sent)

    def _alternatives(self, side: _Side, entity: Entity) -> dict[str, str]:
        if entity["meta-type"] != "alternate":
            return {side.shape(entity): str(entity["name"])}
        return {side.shape(side.type(member["type"])): member["type"] for member in entity["members"]}

    def _objects(self, where: str, old: Entity, new: Entity, sent: bool) -> Iterator[Change]:
        yield from self._features(where, old, new)
        noun = "argument" if sent else "member"
        yield from self._members(where, noun, old, new, sent)
        before = {variant["case"]: variant["type"] for variant in old.get("variants", ())}
        after = {variant["case"]: variant["type"] for variant in new.get("variants", ())}
        if old.get("tag") != new.get("tag") and before and after:
            yield Change(where, f"the tag was '{old.get('tag')}', is '{new.get('tag')}'", True)
        for case in (case for case in before if case in after):
            self._later(f"{where}, {new.get('tag')} '{case}'", before[case], after[case], sent)

    def _members(self, where: str, noun: str, old: Entity, new: Entity, sent: bool) -> Iterator[Change]:
        before = {member["name"]: member for member in old["members"]}
        after = {member["name"]: member for member in new["members"]}
        for name, member in before.items():
            place = f"{where}, {noun} '{name}'"
            if name not in after:
                yield Change(place, "is gone", True)
                continue
            was_optional, is_optional = "default" in member, "default" in after[name]
            if was_optional != is_optional:
                text = "is optional now" if is_optional else "is mandatory now"
                yield Change(place, text, is_optional != sent)
            yield from self._features(place, member, after[name])
            self._later(place, member["type"], after[name]["type"], sent)
        for name, member in after.items():
            if name not in before:
                mandatory = "default" not in member
                text = f"is new{' and mandatory' if mandatory and sent else ''}"
                yield Change(f"{where}, {noun} '{name}'", text, mandatory and sent)


def _values(entity: Entity) -> dict[str, Entity]:
    if "members" in entity:
        return {member["name"]: member for member in entity["members"]}
    return {value: {} for value in entity["values"]}


def _article(shape: str) -> str:
    return f"an {shape}" if shape[0] in "aeiou" else f"a {shape}" if shape != "null" else "null"

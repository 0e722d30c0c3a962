"""What the server that we talk to takes and returns, from its own query-qmp-schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Entity = dict[str, Any]


class Field(NamedTuple):
    """A member of an object: the name of its type in the live schema, and whether it may be left out."""

    type: str
    optional: bool


class LiveSchema:
    """A server's introspection, looked up by name. Types' names mean nothing outside the one server."""

    def __init__(self, entities: list[Entity]) -> None:
        self._types = {entity["name"]: entity for entity in entities if entity["meta-type"] not in ("command", "event")}
        self.commands = {entity["name"]: entity for entity in entities if entity["meta-type"] == "command"}
        self.events = {entity["name"]: entity for entity in entities if entity["meta-type"] == "event"}

    def kind(self, type_name: str) -> str:
        """``object``, ``enum``, ``array``, ``alternate``, or a builtin's JSON type (``string``, ``int``, ...)."""
        entity = self._types.get(type_name) or {}
        return str(entity.get("json-type") or entity.get("meta-type") or "value")

    def fields(self, type_name: str, given: Mapping[str, Any] | None = None) -> dict[str, Field]:
        """An object's members, with those that come along with the tag's value in ``given``."""
        entity = self._types.get(type_name) or {}
        fields = {member["name"]: Field(member["type"], "default" in member) for member in entity.get("members", ())}
        tag = entity.get("tag")
        chosen = (given or {}).get(tag) if tag else None
        for variant in entity.get("variants", ()):
            if variant["case"] == chosen:
                fields.update(self.fields(variant["type"], given))
        return fields

    def tag(self, type_name: str) -> str | None:
        """The member of a union that chooses its branch."""
        return (self._types.get(type_name) or {}).get("tag")

    def values(self, type_name: str) -> list[str]:
        """The values of an enum, the choices of a boolean, else none."""
        entity = self._types.get(type_name) or {}
        if entity.get("json-type") == "boolean":
            return ["on", "off"]
        if entity.get("meta-type") == "enum":
            return list(entity.get("values") or [member["name"] for member in entity["members"]])
        return [value for choice in self.choices(type_name) for value in self.values(choice)]

    def element(self, type_name: str) -> str:
        """What an array holds."""
        return str((self._types.get(type_name) or {}).get("element-type", ""))

    def choices(self, type_name: str) -> list[str]:
        """The types that an alternate may have."""
        entity = self._types.get(type_name) or {}
        return [member["type"] for member in entity["members"]] if entity.get("meta-type") == "alternate" else []

    def object_of(self, type_name: str) -> str | None:
        """The object type that a value of this type is or may be; None if it cannot be one."""
        if self.kind(type_name) == "object":
            return type_name
        return next((choice for choice in self.choices(type_name) if self.kind(choice) == "object"), None)

    def at(self, command: str, path: list[str], arguments: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
        """The object type that the arguments of ``command`` have at a dotted path, and what is given there."""
        entity = self.commands.get(command)
        type_name: str | None = entity["arg-type"] if entity else None
        given: Any = arguments
        for part in path:
            if type_name is None:
                break
            given = given if isinstance(given, Mapping) else {}
            field = self.fields(type_name, given).get(part) or self._in_any_variant(type_name, part)
            if self.kind(type_name) == "array":
                type_name = self.object_of(self.element(type_name))
            elif field is None:
                type_name = None
            elif self.kind(field.type) == "array":
                type_name = field.type
            else:
                type_name = self.object_of(field.type)
            given = given.get(part)
        return type_name, given if isinstance(given, Mapping) else {}

    def _in_any_variant(self, type_name: str, name: str) -> Field | None:
        for variant in (self._types.get(type_name) or {}).get("variants", ()):
            field = self.fields(variant["type"]).get(name)
            if field is not None:
                return field
        return None

    def describe(self, type_name: str, depth: int = 1) -> str:
        """A type in a few words: ``string``, ``[int]``, ``on|off``, ``{driver, file, ...}``."""
        kind = self.kind(type_name)
        if kind == "array":
            return f"[{self.describe(self.element(type_name), depth)}]"
        if kind == "alternate":
            return " or ".join(self.describe(choice, depth) for choice in self.choices(type_name))
        if kind == "enum":
            values = self.values(type_name)
            return "|".join(values if len(values) <= 8 else [*values[:8], "..."])
        if kind == "object":
            names = list(self.fields(type_name))
            return "{" + (", ".join(names[:6] + ["..."] * (len(names) > 6)) if depth else "...") + "}"
        return kind

"""Types of the contract, taken out of the compact tables when they are first asked for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ENUM = "enum"
OBJECT = "object"
ALTERNATE = "alternate"

BUILTINS: dict[str, str] = {
    "str": "string",
    "bool": "boolean",
    "number": "number",
    "null": "null",
    "any": "value",
    "int": "int",
    "int8": "int",
    "int16": "int",
    "int32": "int",
    "int64": "int",
    "uint8": "int",
    "uint16": "int",
    "uint32": "int",
    "uint64": "int",
    "size": "int",
}
"""Built-in types, and the JSON type that introspection gives them."""


class MemberSpec:
    """A member: its name, its type (``[X]`` for a list of X), whether it may be left out."""

    __slots__ = ("name", "optional", "type")

    def __init__(self, name: str, type: str, optional: bool) -> None:
        self.name = name
        self.type = type
        self.optional = optional


class TypeSpec:
    """One enum, object or alternate.

    ``members`` are an object's (those of the base first), or an alternate's alternatives. A union has a ``tag``, and
    ``branches`` from the tag's value to the object whose members come along. ``values`` are an enum's.
    """

    __slots__ = ("branches", "kind", "members", "name", "tag", "values")

    def __init__(
        self,
        name: str,
        kind: str,
        members: tuple[MemberSpec, ...] = (),
        tag: str = "",
        branches: dict[str, str] | None = None,
        values: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.kind = kind
        self.members = members
        self.tag = tag
        self.branches = branches or {}
        self.values = values


class Types:
    """All types by name. A simple union ``X`` brings the implicit ``XKind`` and ``q_obj_T-wrapper`` with it."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table
        self._specs: dict[str, TypeSpec] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._table or name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, name: str) -> TypeSpec:
        """The type ``name``; KeyError if there is none. Lists and built-in types are none."""
        spec = self._specs.get(name)
        if spec is None:
            text = self._table.get(name)
            spec = self._implicit(name) if text is None else self._decode(name, text)
            self._specs[name] = spec
        return spec

    def _implicit(self, name: str) -> TypeSpec:
        if name.endswith("Kind") and self._table.get(name[:-4], "").startswith("w"):
            return TypeSpec(name, ENUM, values=tuple(self[name[:-4]].branches))
        if name.startswith("q_obj_") and name.endswith("-wrapper"):
            return TypeSpec(name, OBJECT, (MemberSpec("data", name[6:-8], False),))
        if name == "q_empty":
            return TypeSpec(name, OBJECT)
        raise KeyError(name)

    def _decode(self, name: str, text: str) -> TypeSpec:
        kind, _, rest = text.partition(" ")
        if kind == "e":
            return TypeSpec(name, ENUM, values=tuple(rest.split()))
        if kind == "a":
            return TypeSpec(name, ALTERNATE, _members(rest.split()))
        if kind == "o":
            return TypeSpec(name, OBJECT, _members(rest.split()))
        common, _, branches = rest.partition("|")
        pairs = [(value, target) for value, _, target in (branch.partition("=") for branch in branches.split())]
        if kind == "w":
            wrapped = {value: f"q_obj_{target}-wrapper" for value, target in pairs}
            return TypeSpec(name, OBJECT, (MemberSpec("type", f"{name}Kind", False),), "type", wrapped)
        tag, *words = common.split()
        return TypeSpec(name, OBJECT, _members(words), tag, dict(pairs))


def _members(words: list[str]) -> tuple[MemberSpec, ...]:
    members: list[MemberSpec] = []
    for word in words:
        name, _, type_name = word.partition(":")
        members.append(MemberSpec(name.lstrip("?"), type_name, name.startswith("?")))
    return tuple(members)

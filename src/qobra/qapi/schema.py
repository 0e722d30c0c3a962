"""A schema's definitions as objects, and how they are found by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from qobra.qapi.doc import Doc
from qobra.qapi.error import Position, QapiError

BUILTINS: dict[str, str] = {
    "str": "string",
    "number": "number",
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
    "bool": "boolean",
    "null": "null",
    "any": "value",
    "QType": "string",
}
"""The language's own types, and the JSON type that introspection gives them."""

Condition = str | dict[str, "Condition"] | list["Condition"] | None


def element_type(type_name: str) -> str:
    """``X`` of ``[X]``; any other type is its own element."""
    return type_name[1:-1] if type_name.startswith("[") else type_name


@dataclass(slots=True)
class Member:
    """A member of a struct, an alternative of an alternate, or a branch of a union (``name`` is the tag's value).

    ``type`` is a type's name, in brackets where it is a list of them.
    """

    name: str
    type: str
    position: Position
    optional: bool = False
    condition: Condition = None
    features: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Definition:
    """What all definitions have. ``section`` is the file's name without ``.json``."""

    name: str
    position: Position
    doc: Doc
    section: str
    features: list[str]
    condition: Condition

    kind = ""

    @property
    def deprecated(self) -> bool:
        """Whether the schema says that it is to go."""
        return "deprecated" in self.features


@dataclass(slots=True)
class Enum(Definition):
    """Strings, each of which may have a condition and features of its own."""

    values: list[Member]

    kind = "enum"


@dataclass(slots=True)
class Struct(Definition):
    """An object: the members of ``base``, another struct, and its own."""

    base: str | None
    members: list[Member]

    kind = "struct"


@dataclass(slots=True)
class Union(Definition):
    """A base, a tag in it, and for each of the tag's values the struct whose members come along.

    In a ``simple`` union the tag is an implicit ``type`` and what comes along is one member, ``data``.
    """

    base: str | None
    members: list[Member]
    tag: str
    branches: list[Member]
    simple: bool

    kind = "union"


@dataclass(slots=True)
class Alternate(Definition):
    """One of several types, which the kind of JSON value tells apart."""

    members: list[Member]

    kind = "alternate"


@dataclass(slots=True)
class Command(Definition):
    """``data`` names the type of the arguments, which are else ``members``. ``returns`` is "" for nothing."""

    data: str | None
    members: list[Member]
    boxed: bool
    returns: str
    gen: bool
    success_response: bool
    allow_oob: bool
    allow_preconfig: bool

    kind = "command"


@dataclass(slots=True)
class Event(Definition):
    """``data`` names the type of what comes along, whose members are else ``members``."""

    data: str | None
    members: list[Member]
    boxed: bool

    kind = "event"


class Schema:
    """Definitions by name, in the order in which they were read.

    ``missing`` are the types that a stubbed include was to bring; they are taken for ``any``. ``skipped`` is what a
    lenient parse passed over.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Definition] = {}
        self.titles: dict[str, str] = {}
        self.missing: list[str] = []
        self.skipped: list[QapiError] = []

    def __iter__(self) -> Iterator[Definition]:
        return iter(self.definitions.values())

    def __len__(self) -> int:
        return len(self.definitions)

    def __getitem__(self, name: str) -> Definition:
        return self.definitions[name]

    def __contains__(self, name: str) -> bool:
        return name in self.definitions

    def add(self, definition: Definition) -> None:
        """Take in a definition. Raises QapiError where the name is taken."""
        name = definition.name
        if name in self.definitions:
            first = self.definitions[name].position
            raise QapiError(definition.position, f"expected a new name, '{name}' is defined at {first} already")
        if name in BUILTINS:
            raise QapiError(definition.position, f"expected a new name, '{name}' is a built-in type")
        self.definitions[name] = definition

    def commands(self) -> list[Command]:
        """The commands, in the order of the schema."""
        return [d for d in self if isinstance(d, Command)]

    def events(self) -> list[Event]:
        """The events, in the order of the schema."""
        return [d for d in self if isinstance(d, Event)]

    def types(self) -> list[Definition]:
        """All that is neither command nor event, in the order of the schema."""
        return [d for d in self if not isinstance(d, (Command, Event))]

    def members_of(self, name: str) -> list[Member]:
        """All members of a struct or union that every value has, those of the base first (without branches)."""
        definition = self.definitions.get(name)
        members: list[Member] = []
        seen: set[str] = set()
        while isinstance(definition, (Struct, Union)) and definition.name not in seen:
            seen.add(definition.name)
            members = definition.members + members
            definition = self.definitions.get(definition.base or "")
        return members

    def arguments_of(self, definition: Command | Event) -> list[Member]:
        """The members of a command's arguments or of an event's data, without branches."""
        return self.members_of(definition.data) if definition.data else definition.members

    def branches_of(self, name: str | None) -> list[Member]:
        """The branches of a union; none for any other type."""
        definition = self.definitions.get(name or "")
        return definition.branches if isinstance(definition, Union) else []

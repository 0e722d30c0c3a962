"""Check a schema: every name resolves, every discriminator is an enum, every alternate can be told apart."""

from __future__ import annotations

from qobra.qapi.error import QapiError
from qobra.qapi.schema import (
    BUILTINS,
    Alternate,
    Command,
    Definition,
    Enum,
    Event,
    Member,
    Schema,
    Struct,
    Union,
    element_type,
)

_INTEGERS = frozenset(name for name, json_type in BUILTINS.items() if json_type == "int")


def check_schema(schema: Schema, *, stubs: bool = False) -> None:
    """Raise QapiError at the first definition that makes no sense.

    With ``stubs`` a type that is not defined is noted in ``schema.missing`` and let pass.
    """
    checker = _Checker(schema, stubs)
    for definition in schema:
        checker.check(definition)
    schema.missing = sorted(checker.missing)


class _Checker:
    def __init__(self, schema: Schema, stubs: bool) -> None:
        self._schema = schema
        self._stubs = stubs
        self.missing: set[str] = set()

    def check(self, definition: Definition) -> None:
        if isinstance(definition, Struct):
            self._base(definition)
            self._members(definition, definition.members)
        elif isinstance(definition, Union):
            self._union(definition)
        elif isinstance(definition, Alternate):
            self._alternate(definition)
        elif isinstance(definition, (Command, Event)):
            self._payload(definition)

    def _known(self, definition: Definition, member: Member) -> None:
        name = element_type(member.type)
        if name in BUILTINS:
            return
        found = self._schema.definitions.get(name)
        if found is None:
            if not self._stubs:
                raise QapiError(
                    member.position, f"expected a known type for '{member.name}' of '{definition.name}', got '{name}'"
                )
            self.missing.add(name)
        elif isinstance(found, (Command, Event)):
            raise QapiError(
                member.position,
                f"expected a type for '{member.name}' of '{definition.name}', '{name}' is a {found.kind}",
            )

    def _members(self, definition: Definition, members: list[Member]) -> None:
        for member in members:
            self._known(definition, member)

    def _base(self, definition: Struct | Union) -> None:
        """The base is a struct (not the thing itself, however far round), and shares no member's name."""
        seen = {definition.name}
        names = {member.name for member in definition.members}
        current: Struct | Union = definition
        while current.base:
            base = self._schema.definitions.get(current.base)
            if base is None and self._stubs and current.base not in BUILTINS:
                self.missing.add(current.base)
                return
            if not isinstance(base, Struct):
                raise QapiError(
                    definition.position, f"expected a struct as base of '{definition.name}', got '{current.base}'"
                )
            if base.name in seen:
                raise QapiError(definition.position, f"expected a base of '{definition.name}' other than itself")
            for member in base.members:
                if member.name in names:
                    raise QapiError(
                        definition.position,
                        f"expected a new name, '{member.name}' of '{definition.name}' is in base '{base.name}' too",
                    )
                names.add(member.name)
            seen.add(base.name)
            current = base

    def _union(self, union: Union) -> None:
        self._base(union)
        self._members(union, union.members)
        self._members(union, union.branches)
        if not union.branches and union.simple:
            raise QapiError(union.position, f"expected branches in union '{union.name}'")
        if union.simple:
            return
        tag = next((member for member in self._schema.members_of(union.name) if member.name == union.tag), None)
        if tag is None:
            if self._stubs and union.base and union.base not in self._schema:
                return
            raise QapiError(
                union.position,
                f"expected the discriminator '{union.tag}' of union '{union.name}' among its base's members",
            )
        enum = self._schema.definitions.get(tag.type)
        if enum is None and self._stubs and tag.type not in BUILTINS:
            return
        if not isinstance(enum, Enum) or tag.optional:
            raise QapiError(union.position, f"expected a mandatory enum as discriminator of union '{union.name}'")
        values = {value.name for value in enum.values}
        common = {member.name for member in self._schema.members_of(union.name)}
        for branch in union.branches:
            if branch.name not in values:
                raise QapiError(
                    branch.position,
                    f"expected a value of '{enum.name}' as branch of '{union.name}', got '{branch.name}'",
                )
            self._branch(union, branch, common)

    def _branch(self, union: Union, branch: Member, common: set[str]) -> None:
        target = self._schema.definitions.get(branch.type)
        if target is None and self._stubs:
            return
        if not isinstance(target, (Struct, Union)):
            raise QapiError(
                branch.position,
                f"expected a struct or union for branch '{branch.name}' of '{union.name}', got '{branch.type}'",
            )
        if union.name in self._reached(target.name):
            raise QapiError(
                branch.position, f"expected branch '{branch.name}' of '{union.name}' not to lead back to '{union.name}'"
            )
        for member in self._schema.members_of(target.name):
            if member.name in common:
                raise QapiError(
                    branch.position,
                    f"expected a new name, '{member.name}' of branch '{branch.name}' is in the base of '{union.name}'",
                )

    def _reached(self, name: str) -> set[str]:
        """The types that are part of an object of type ``name`` by way of branches, itself included."""
        reached: set[str] = set()
        pending = [name]
        while pending:
            current = pending.pop()
            if current not in reached:
                reached.add(current)
                pending += [branch.type for branch in self._schema.branches_of(current)]
        return reached

    def _alternate(self, alternate: Alternate) -> None:
        """No two alternatives may look alike on the wire, or in key=value options, where all scalars are text."""
        taken: dict[str, str] = {}
        for member in alternate.members:
            self._known(alternate, member)
            for shape in self._shapes(alternate, member):
                if shape in taken:
                    raise QapiError(
                        member.position,
                        f"expected alternatives of '{alternate.name}' that can be told apart, "
                        f"'{member.name}' and '{taken[shape]}' may both be {shape}",
                    )
                taken[shape] = member.name

    def _shapes(self, alternate: Alternate, member: Member) -> list[str]:
        """What a value of the alternative may look like."""
        if member.type.startswith("["):
            return ["array"]
        definition = self._schema.definitions.get(member.type)
        if isinstance(definition, Enum):
            values = [value.name for value in definition.values]
            shapes = {
                "boolean": {"on", "off"}.intersection(values),
                "number": any(v[:1] in "-+0123456789" for v in values),
            }
            return ["string", *(shape for shape, is_meant in shapes.items() if is_meant)]
        if isinstance(definition, (Struct, Union)):
            return ["object"]
        shape = "number" if member.type in _INTEGERS else BUILTINS.get(member.type)
        if isinstance(definition, Alternate) or shape == "value":
            raise QapiError(
                member.position, f"expected another type than '{member.type}' for '{member.name}' of '{alternate.name}'"
            )
        if shape == "string":
            return ["string", "boolean", "number"]
        return [shape] if shape is not None else []

    def _payload(self, definition: Command | Event) -> None:
        self._members(definition, definition.members)
        if definition.data is not None:
            target = self._schema.definitions.get(definition.data)
            if target is None and self._stubs and definition.data not in BUILTINS:
                self.missing.add(definition.data)
            elif not isinstance(target, (Struct, Union)) or (isinstance(target, Union) and not definition.boxed):
                wanted = "a struct or union" if definition.boxed else "a struct"
                raise QapiError(
                    definition.position, f"expected {wanted} as 'data' of '{definition.name}', got '{definition.data}'"
                )
        if isinstance(definition, Command) and definition.returns:
            self._known(definition, Member("returns", definition.returns, definition.position))

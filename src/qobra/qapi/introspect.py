"""What ``query-qmp-schema`` returns: the commands and events served, and the types that they reach.

As QEMU does it: names of types are masked as decimal numbers in the order of their first use, integers of all widths
are ``int``, an array of X is called ``[X]``, and every value of a union's tag has a variant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qobra.qapi.contract import Contract, contract
from qobra.qapi.spec import ALTERNATE, BUILTINS, ENUM, MemberSpec, TypeSpec

Entity = dict[str, Any]
_EMPTY = "q_empty"


def introspect(commands: Iterable[str], events: Iterable[str], *, of: Contract | None = None) -> list[Entity]:
    """SchemaInfo of what is served by these names. Names that the contract does not know are left out.

    ``of`` is another contract than Qobra's own. The list is new at each call, and only depends on the names.
    """
    return _Introspection(of or contract()).run(set(commands), set(events))


class _Introspection:
    def __init__(self, of: Contract) -> None:
        self._contract = of
        self._numbers: dict[str, str] = {}
        self._used: dict[str, None] = {}

    def run(self, commands: set[str], events: set[str]) -> list[Entity]:
        entities: list[Entity] = []
        for name, command in self._contract.commands.items():
            if name not in commands:
                continue
            entity: Entity = {"name": name, "meta-type": "command", "arg-type": self._use(command.arg_type)}
            entity["ret-type"] = self._use(command.ret_type or _EMPTY)
            if command.oob:
                entity["allow-oob"] = True
            entities.append(self._with_features(entity, name))
        for name, event in self._contract.events.items():
            if name in events:
                entity = {"name": name, "meta-type": "event", "arg-type": self._use(event.arg_type)}
                entities.append(self._with_features(entity, name))
        done = 0
        while done < len(self._used):
            fresh = list(self._used)[done:]
            done += len(fresh)
            entities += [self._type(name) for name in fresh]
        return entities

    def _use(self, type_name: str) -> str:
        """Note that a type is used, and return the name it goes by."""
        if type_name.startswith("["):
            element = type_name[1:-1]
            type_name = "[int]" if BUILTINS.get(element) == "int" else type_name
            self._used.setdefault(type_name)
            return f"[{self._use(type_name[1:-1])}]"
        if BUILTINS.get(type_name) == "int":
            type_name = "int"
        self._used.setdefault(type_name)
        if type_name in BUILTINS:
            return type_name
        return self._numbers.setdefault(type_name, str(len(self._numbers)))

    def _type(self, type_name: str) -> Entity:
        name = self._use(type_name)
        if type_name.startswith("["):
            return {"name": name, "meta-type": "array", "element-type": name[1:-1]}
        if type_name in BUILTINS:
            return {"name": name, "meta-type": "builtin", "json-type": BUILTINS[type_name]}
        spec = self._contract.types[type_name]
        if spec.kind == ENUM:
            values = [self._with_features({"name": value}, f"{type_name}:{value}") for value in spec.values]
            entity = {"name": name, "meta-type": "enum", "members": values, "values": list(spec.values)}
        elif spec.kind == ALTERNATE:
            members = [{"type": self._use(member.type)} for member in spec.members]
            entity = {"name": name, "meta-type": "alternate", "members": members}
        else:
            entity = {"name": name, "meta-type": "object", "members": [self._member(spec, m) for m in spec.members]}
            if spec.tag:
                entity["tag"] = spec.tag
                entity["variants"] = self._variants(spec)
        return self._with_features(entity, type_name)

    def _member(self, spec: TypeSpec, member: MemberSpec) -> Entity:
        entity: Entity = {"name": member.name, "type": self._use(member.type)}
        if member.optional:
            entity["default"] = None
        return self._with_features(entity, f"{spec.name}:{member.name}")

    def _variants(self, spec: TypeSpec) -> list[Entity]:
        tag_type = next(member.type for member in spec.members if member.name == spec.tag)
        cases = [*spec.branches, *(v for v in self._contract.types[tag_type].values if v not in spec.branches)]
        return [{"case": case, "type": self._use(spec.branches.get(case, _EMPTY))} for case in cases]

    def _with_features(self, entity: Entity, key: str) -> Entity:
        features = self._contract.features.get(key)
        if features:
            entity["features"] = features.split()
        return entity

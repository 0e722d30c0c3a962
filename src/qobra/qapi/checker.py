"""Check values against types, with closures that are compiled per type when it is first used.

A checker takes a value and returns nothing, or raises :class:`Bad`, which picks up the path to the value on its way
out. The order in which things are looked at, and the words, are those of QEMU's input visitor: members in their order,
then the tag's branch, and at last what should not be there.
"""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.qapi.spec import ALTERNATE, ENUM, MemberSpec, Types, TypeSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[Any], None]
    Visit = Callable[[dict[str, Any]], int]
    """Checks the members that an object has, and returns how many it saw."""

MISSING = "Parameter '%s' is missing"
UNEXPECTED = "Parameter '%s' is unexpected"
WRONG_TYPE = "Invalid parameter type for '%%s', expected: %s"
OUT_OF_RANGE = "Parameter '%%s' expects %s"

_ABSENT: Any = object()
_LIMITS = {
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
}


class Bad(Exception):
    """A value that does not fit. ``path`` grows outwards: a name, or a position in a list.

    ``text`` has one ``%s`` for the place, unless it is ``fixed``; ``whole`` says whether that is the whole path or just
    the last name, as QEMU does it for ranges and alternates.
    """

    def __init__(self, text: str, *path: str | int, whole: bool = True, fixed: bool = False) -> None:
        super().__init__()
        self.text = text
        self.fixed = fixed
        self.path: list[str | int] = list(path)
        self.whole = whole

    def error(self, prefix: str = "", *, keyval: bool = False) -> QobraError:
        """The error to report; ``prefix`` is the path to the value that was checked."""
        if self.fixed:
            return QobraError(self.text)
        if not self.whole:
            last = self.path[0] if self.path else (prefix or "null")
            return QobraError(self.text % (last if isinstance(last, str) else "null"))
        place = prefix
        for step in reversed(self.path):
            if isinstance(step, int):
                place += f".{step}" if keyval else f"[{step}]"
            else:
                place += f".{step}" if place else step
        return QobraError(self.text % (place or "null"))


class Checkers:
    """Compiled checkers of the types in a table."""

    def __init__(self, types: Types) -> None:
        self._types = types
        self._checks: dict[str, Check] = {}
        self._visits: dict[str, Visit] = {}

    def check(self, type_name: str) -> Check:
        """The checker of a type, which may be built in or a list (``[X]``)."""
        found = self._checks.get(type_name)
        if found is None:
            found = self._checks[type_name] = self._compile(type_name)
        return found

    def _compile(self, type_name: str) -> Check:
        builtin = BUILTIN_CHECKS.get(type_name)
        if builtin is not None:
            return builtin
        if type_name.startswith("["):
            return self._list(type_name[1:-1])
        spec = self._types[type_name]
        if spec.kind == ENUM:
            return _enum(spec)
        if spec.kind == ALTERNATE:
            return self._alternate(spec)
        return self._object(spec)

    def _late(self, type_name: str) -> Check:
        """The checker, or one that looks it up at first use: types refer to each other in circles."""
        found = BUILTIN_CHECKS.get(type_name) or self._checks.get(type_name)
        if found is not None:
            return found
        if not type_name.startswith("[") and self._types[type_name].kind == ENUM:
            return self.check(type_name)

        def later(value: Any) -> None:
            self.check(type_name)(value)

        return later

    def _list(self, element: str) -> Check:
        check = self._late(element)

        def check_list(value: Any) -> None:
            if not isinstance(value, list):
                raise Bad(WRONG_TYPE % "array")
            at = 0
            try:
                for at, item in enumerate(value):  # noqa: B007
                    check(item)
            except Bad as bad:
                bad.path.append(at)
                raise

        return check_list

    def _alternate(self, spec: TypeSpec) -> Check:
        by_shape = {self._shape(member.type): self._late(member.type) for member in spec.members}
        if float in by_shape:
            by_shape.setdefault(int, by_shape[float])
        name = spec.name

        def check_alternate(value: Any) -> None:
            check = by_shape.get(type(value))
            if check is None:
                raise Bad(WRONG_TYPE % name, whole=False)
            check(value)

        return check_alternate

    def _shape(self, type_name: str) -> type:
        """The Python type that a value of a type has."""
        return shape_of(self._types, type_name)

    def _object(self, spec: TypeSpec) -> Check:
        visit = self.visit(spec.name)
        types = self._types

        def check_object(value: Any) -> None:
            if not isinstance(value, dict):
                raise Bad(WRONG_TYPE % "object")
            if visit(value) != len(value):
                known = member_names(types, spec.name, value)
                for name in value:
                    if name not in known:
                        raise Bad(UNEXPECTED, str(name))

        return check_object

    def visit(self, type_name: str) -> Visit:
        """The part of an object's checker that leaves unknown members alone."""
        found = self._visits.get(type_name)
        if found is None:
            found = self._visits[type_name] = self._compile_visit(self._types[type_name])
        return found

    def _compile_visit(self, spec: TypeSpec) -> Visit:
        visit_members = self._visit_members(spec.members)
        if not spec.tag:
            return visit_members
        tag, branches = spec.tag, spec.branches

        def visit_union(value: dict[str, Any]) -> int:
            seen = visit_members(value)
            branch = branches.get(value[tag])
            return seen if branch is None else seen + self.visit(branch)(value)

        return visit_union

    def _visit_members(self, specs: tuple[MemberSpec, ...]) -> Visit:
        # The exact Python type of a member, where that alone proves it right, saves a call.
        members = [(m.name, m.optional, _EXACT.get(m.type, _ABSENT), self._late(m.type)) for m in specs]

        def visit_members(value: dict[str, Any]) -> int:
            seen = 0
            for name, optional, exact, check in members:
                item = value.get(name, _ABSENT)
                if item is _ABSENT:
                    if optional:
                        continue
                    raise Bad(MISSING, name)
                seen += 1
                if type(item) is exact:
                    continue
                try:
                    check(item)
                except Bad as bad:
                    bad.path.append(name)
                    raise
            return seen

        return visit_members


def member_names(types: Types, type_name: str, value: dict[str, Any]) -> set[str]:
    """The members that an object of a type may have, given the tag that ``value`` carries."""
    spec = types[type_name]
    names = {member.name for member in spec.members}
    branch = spec.branches.get(value.get(spec.tag, "")) if spec.tag else None
    return names | member_names(types, branch, value) if branch else names


def shape_of(types: Types, type_name: str) -> type:
    """The Python type that JSON values of a type have."""
    if type_name.startswith("["):
        return list
    shape = _SHAPES.get(type_name)
    if shape is not None:
        return shape
    return str if types[type_name].kind == ENUM else dict


def _enum(spec: TypeSpec) -> Check:
    values = frozenset(spec.values)

    def check_enum(value: Any) -> None:
        if not isinstance(value, str):
            raise Bad(WRONG_TYPE % "string")
        if value not in values:
            raise Bad(f"Invalid parameter '{value}'", fixed=True)

    return check_enum


def _check_str(value: Any) -> None:
    if not isinstance(value, str):
        raise Bad(WRONG_TYPE % "string")


def _check_bool(value: Any) -> None:
    if not isinstance(value, bool):
        raise Bad(WRONG_TYPE % "boolean")


def _check_number(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Bad(WRONG_TYPE % "number")


def _check_null(value: Any) -> None:
    if value is not None:
        raise Bad(WRONG_TYPE % "null")


def _check_any(value: Any) -> None:
    pass


def _check_int(value: Any) -> None:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise Bad(WRONG_TYPE % "integer")


def _check_uint64(value: Any) -> None:
    # Negative numbers wrap around, as they always have in QMP.
    if type(value) is not int or not -(2**63) <= value < 2**64:
        raise Bad(OUT_OF_RANGE % "uint64")


def _ranged(name: str, low: int, high: int) -> Check:
    wide = _check_int if low < 0 else _check_uint64

    def check_range(value: Any) -> None:
        wide(value)
        if not low <= value <= high:
            raise Bad(OUT_OF_RANGE % f"{name}_t", whole=False)

    return check_range


BUILTIN_CHECKS: dict[str, Check] = {
    "str": _check_str,
    "bool": _check_bool,
    "number": _check_number,
    "null": _check_null,
    "any": _check_any,
    "int": _check_int,
    "int64": _check_int,
    "uint64": _check_uint64,
    "size": _check_uint64,
    **{name: _ranged(name, low, high) for name, (low, high) in _LIMITS.items()},
}
_EXACT: dict[str, type] = {"str": str, "bool": bool}
_SHAPES: dict[str, type] = {
    "str": str,
    "bool": bool,
    "null": type(None),
    "number": float,
    **dict.fromkeys((*_LIMITS, "int", "int64", "uint64", "size"), int),
}

"""Turn the strings of key=value options into values of their types.

What :func:`qobra.qapi.keyval.parse` returns has only strings, dicts and lists in it; the type says which string is a
number. The order of checks and the words are those of QEMU's keyval input visitor.
"""

from __future__ import annotations

from qobra.qapi.checker import (
    BUILTIN_CHECKS,
    MISSING,
    OUT_OF_RANGE,
    UNEXPECTED,
    WRONG_TYPE,
    Bad,
    member_names,
)
from qobra.qapi.spec import ALTERNATE, BUILTINS, ENUM, Types, TypeSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TRUE = frozenset(("on", "yes", "true", "y"))
_FALSE = frozenset(("off", "no", "false", "n"))
_SUFFIXES = "BKMGTPE"
_NO_TEXT = "Parameters '%s.*' are unexpected"


def convert(types: Types, type_name: str, value: Any) -> Any:
    """The value of a type that ``value``, made of strings, stands for. Raises :class:`qobra.qapi.checker.Bad`."""
    if type_name.startswith("["):
        return _list(types, type_name[1:-1], value)
    if type_name in BUILTINS:
        return _scalar(type_name, value)
    spec = types[type_name]
    if spec.kind == ENUM:
        return _enum(spec, value)
    if spec.kind == ALTERNATE:
        return _alternate(types, spec, value)
    if not isinstance(value, dict):
        raise Bad(WRONG_TYPE % "object")
    result = _members(types, spec, value)
    if len(result) != len(value):
        known = member_names(types, type_name, value)
        for name in value:
            if name not in known:
                raise Bad(UNEXPECTED, name)
    return result


def _members(types: Types, spec: TypeSpec, value: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for member in spec.members:
        if member.name not in value:
            if not member.optional:
                raise Bad(MISSING, member.name)
            continue
        try:
            result[member.name] = convert(types, member.type, value[member.name])
        except Bad as bad:
            bad.path.append(member.name)
            raise
    branch = spec.branches.get(result[spec.tag]) if spec.tag else None
    return result | _members(types, types[branch], value) if branch else result


def _list(types: Types, element: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Bad(WRONG_TYPE % "array")
    result: list[Any] = []
    for at, item in enumerate(value):
        try:
            result.append(convert(types, element, item))
        except Bad as bad:
            bad.path.append(at)
            raise
    return result


def _enum(spec: TypeSpec, value: Any) -> str:
    if not isinstance(value, str):
        raise Bad(_NO_TEXT)
    if value not in spec.values:
        raise Bad(f"Parameter '%s' does not accept value '{value.replace('%', '%%')}'", whole=False)
    return value


def _alternate(types: Types, spec: TypeSpec, value: Any) -> Any:
    for member in spec.members:
        if _may_be(types, member.type, value):
            return convert(types, member.type, value)
    raise Bad(WRONG_TYPE % spec.name, whole=False)


def _may_be(types: Types, type_name: str, value: Any) -> bool:
    if type_name.startswith("["):
        return isinstance(value, list)
    if type_name == "str" or (type_name not in BUILTINS and types[type_name].kind == ENUM):
        return isinstance(value, str)
    return type_name not in BUILTINS and isinstance(value, dict)


def _scalar(type_name: str, value: Any) -> Any:
    if type_name == "any":
        return value
    if not isinstance(value, str):
        raise Bad(_NO_TEXT)
    if type_name == "str":
        return value
    if type_name == "bool":
        if value in _TRUE or value in _FALSE:
            return value in _TRUE
        raise Bad(OUT_OF_RANGE % "'on' or 'off'")
    if type_name == "null":
        if value:
            raise Bad(WRONG_TYPE % "null")
        return None
    if type_name == "number":
        return _number(value)
    if type_name == "size":
        return _size(value)
    number = _integer(value, signed=not type_name.startswith("u"))
    BUILTIN_CHECKS[type_name](number)
    return number


def _integer(text: str, *, signed: bool) -> int:
    """A number as C's strtol with base 0 reads it."""
    digits = text.lstrip().lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-") if digits[:1] in ("+", "-") else digits
    try:
        if digits.startswith("0x"):
            number = sign * int(digits, 16)
        elif digits.startswith("0") and digits.isdigit():
            number = sign * int(digits, 8)
        elif digits.isascii() and digits.isdigit():
            number = sign * int(digits)
        else:
            raise ValueError
    except ValueError:
        raise Bad(OUT_OF_RANGE % "integer") from None
    if not -(2**63) <= number < (2**63 if signed else 2**64):
        raise Bad(OUT_OF_RANGE % "integer")
    return number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise Bad(OUT_OF_RANGE % "number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise Bad(OUT_OF_RANGE % "number")
    return number


def _size(text: str) -> int:
    size = parse_size(text)
    if size is None:
        raise Bad(OUT_OF_RANGE % "size")
    return size


def parse_size(text: str) -> int | None:
    """Bytes of a size such as ``64k``, ``1.5G`` or ``0x1000``; None if it is no size or needs more than 64 bits."""
    body = text.strip()
    shift = 0
    hexadecimal = body[:2].lower() == "0x"
    if not hexadecimal and body[-1:].upper() in _SUFFIXES and body[-1:]:
        shift = 10 * _SUFFIXES.index(body[-1].upper())
        body = body[:-1]
    try:
        if hexadecimal:
            size = int(body, 16)
        else:
            whole, point, fraction = body.partition(".")
            if (
                not (whole + fraction).isascii()
                or not whole.isdigit()
                or (point and fraction and not fraction.isdigit())
            ):
                return None
            if fraction and int(fraction) and not shift:
                return None
            size = int(whole) << shift
            if fraction:
                size += (int(fraction) << shift) // 10 ** len(fraction)
    except ValueError:
        return None
    return size if size < 2**64 else None

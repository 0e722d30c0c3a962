"""Options of nodes that come from texts (``--image-opts``, ``json:`` names): values of the types that the schema says.

Unlike blockdev-add's arguments they may be strings where the schema wants numbers or booleans, and may leave out what
can be guessed: the format is probed, and a child that has a file name is a ``file``.
"""

from __future__ import annotations

from qobra.block.vertex import TEXTS
from qobra.errors import QobraError
from qobra.units import BOOLEANS, NotANumber, OutOfRange, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object


Options = dict[str, Any]

_SCALARS = frozenset(("int", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "number"))


def typed(options: Options) -> Options:
    """``options`` with proper values all the way down. Raises QobraError for a value or an option that cannot be.

    What was given as text and is something else now is kept as it was given too, for the node's ``json:`` name.
    """
    from qobra.qapi.contract import contract

    types = contract().types
    union = types["BlockdevOptions"]
    driver = options.get("driver")
    branch = union.branches.get(driver) if isinstance(driver, str) else None
    members = {member.name: member.type for member in union.members}
    if branch:
        members.update({member.name: member.type for member in types[branch].members})
    result: Options = {}
    for name, value in options.items():
        kind = members.get(name, "")
        if kind.startswith("[") and isinstance(value, dict):
            value = _listed(name, value)
        if isinstance(value, dict) and (kind in ("BlockdevRef", "BlockdevRefOrNull") or not kind):
            try:
                result[name] = _child(value)
            except QobraError as error:
                raise error.prefixed("Could not open backing file: ") if name == "backing" else error
        elif kind == "[BlockdevRef]" and isinstance(value, list):
            result[name] = [_child(each) for each in value]
        elif not kind:
            if branch:
                _refuse(str(driver), name)
            result[name] = value
        else:
            if kind == "BlockdevCacheOptions" and isinstance(value, dict) and branch:
                # Old commands take ``writeback`` for a node; texts have it for a drive only, which has taken it off.
                for unknown in value.keys() - ({member.name for member in types[kind].members} - {"writeback"}):
                    _refuse(str(driver), f"{name}.{unknown}")
            result[name] = _value(name, kind, value)
    texts = {
        name: value
        for name, value in options.items()
        if isinstance(value, str) and isinstance(result[name], bool | int)
    }
    if texts:
        result[TEXTS] = texts
    return result


def _listed(name: str, value: Options) -> list[Any]:
    """The list that ``name.0``, ``name.1``, ... stand for; one that was given without a number is all there is."""
    if not any(map(str.isdigit, value)):
        return [value]
    result = [value[str(number)] for number in range(len(value)) if str(number) in value]
    if len(result) != len(value):
        raise QobraError(f"Invalid parameter '{name}'")
    return result


def _child(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "driver" not in value and "filename" in value:
        value = {"driver": "file", **value}
    return typed(value)


def _refuse(driver: str, name: str) -> None:
    """A format knows all its options; a protocol may have older ones that only it can judge."""
    from qobra.block.node import drivers

    node_class = drivers.find(driver)
    if node_class is None:
        raise QobraError(f"Unknown driver '{driver}'")
    if node_class.is_format or node_class.is_filter:
        raise QobraError(f"Block format '{driver}' does not support the option '{name}'")
    if node_class.is_leaf:
        raise QobraError(f"Block protocol '{driver}' doesn't support the option '{name}'")


def _value(name: str, kind: str, value: Any) -> Any:
    if isinstance(value, str):
        if kind == "bool":
            if value not in BOOLEANS:
                raise QobraError(f"Parameter '{name}' expects 'on' or 'off'")
            return BOOLEANS[value]
        if kind == "size":
            return _size(name, value)
        if kind in _SCALARS:
            try:
                return int(value, 0)
            except ValueError:
                return _size(name, value)  # the schema is not strict about what counts bytes
        return value
    if name == "encrypt" and isinstance(value, dict) and "format" not in value:
        return value  # the image knows
    if isinstance(value, (dict, list)) and _all_texts(value):
        from qobra.qapi.contract import contract

        return contract().check(kind, value, path=name, keyval=True)
    return value


def _size(name: str, text: str) -> int:
    try:
        return parse_size(text)
    except NotANumber:
        raise QobraError(
            f"Parameter '{name}' expects a non-negative number below 2^64\n"
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
            "and exabytes, respectively."
        )
    except OutOfRange:
        raise QobraError(f"Value '{text}' is out of range for parameter '{name}'")


def _all_texts(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_all_texts(each) for each in value.values())
    if isinstance(value, list):
        return all(_all_texts(each) for each in value)
    return isinstance(value, str)

"""Options of nodes that come from texts (``--image-opts``, ``json:`` names): values of the types that the schema says.

Unlike blockdev-add's arguments they may be strings where the schema wants numbers or booleans, and may leave out what
can be guessed: the format is probed, and a child that has a file name is a ``file``.
"""

from __future__ import annotations

from qobra.block.filename import driver_of_path, flat_name
from qobra.block.vertex import TEXTS
from qobra.errors import QobraError
from qobra.units import BOOLEANS, NotANumber, OutOfRange, integer, not_a_size, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any

    from qobra.qapi.spec import Types
else:
    Any = object


Options = dict[str, Any]

_SCALARS = frozenset(("int", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "number"))

_COUNTS = frozenset(
    ("aio-max-batch", "cache-clean-interval", "latency-ns", "open-timeout", "reconnect-delay", "vote-threshold")
)
"""Options that count something other than bytes; what they may be is their drivers' to say."""
_RULES = ("[BlkdebugInjectErrorOptions]", "[BlkdebugSetStateOptions]")
DISCARD_WORDS = {"ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
"""What texts have for a discard mode, and the mode."""


class _Given(dict[str, Any]):
    """What was given as text. Only :func:`typed` makes these, so options that have passed it are known by them."""


def typed(options: Options, *, file_follows: bool = False) -> Options:
    """``options`` with proper values all the way down; ``file_follows``: the file is given in another way.

    Raises QobraError for a value or an option that cannot be. What was given as text and is something else now is
    kept as it was given too, for the node's ``json:`` name.
    """
    node = _OptionsOfNode(options, file_follows)
    result: Options = {}
    texts: Options = {}
    for name, value in options.items():
        if isinstance(value, _Given):
            texts.update(value)
            continue
        kind = node.members.get(name, "")
        if kind.startswith("[") and isinstance(value, dict):
            value = _listed(name, kind, value)
        if value == {} and kind == "SocketAddress":
            continue  # none
        result[name] = node.typed(name, kind, value)
        if kind in _RULES and _are_objects(value):
            for index, (given, rule) in enumerate(zip(value, result[name], strict=True)):
                texts.update(_texts(given, rule, f"{name}.{index}."))
    texts.update(_texts(options, result))
    if texts:
        result[TEXTS] = _Given(texts)
    return result


def _texts(given: Options, result: Options, prefix: str = "") -> Options:
    """What was ``given`` as text and is something else in ``result``, by its name after ``prefix``."""
    return {
        prefix + name: value
        for name, value in given.items()
        if isinstance(value, str) and isinstance(result.get(name), bool | int)
    }


class _OptionsOfNode:
    """What the options of one node may be. ``members`` has the types of those that the schema knows for its driver."""

    def __init__(self, options: Options, file_follows: bool) -> None:
        from qobra.qapi.contract import contract

        self._types = contract().types
        union = self._types["BlockdevOptions"]
        driver = options.get("driver")
        self._driver = driver if isinstance(driver, str) else ""
        branch = union.branches.get(self._driver)
        self.members = {member.name: member.type for member in union.members}
        if branch:
            self.members.update({member.name: member.type for member in self._types[branch].members})
        self._is_known = bool(branch)
        self._lacks_file = "file" in self.members and "file" not in options and not file_follows

    def typed(self, name: str, kind: str, value: Any) -> Any:
        """The proper value of an option of type ``kind``, which is empty for one that is unknown. Raises QobraError."""
        if name == "driver":
            if not isinstance(value, str):
                raise QobraError("Must specify either driver or file")
            return value
        if kind == "BlockdevRef" and (not value or not isinstance(value, str | dict)):
            raise QobraError(f'A block device must be specified for "{name}"')
        if isinstance(value, dict) and kind in ("BlockdevRef", "BlockdevRefOrNull", ""):
            if not kind:
                self._refuse_unknown(name, flat_name(name, value))
            try:
                return _child(value)
            except QobraError as error:
                raise error.prefixed("Could not open backing file: ") if name == "backing" else error
        if kind == "[BlockdevRef]" and isinstance(value, list):
            return [_child(each) for each in value]
        if not kind:
            self._refuse_unknown(name, name)
            return value
        if not isinstance(value, dict) and _is_structure(self._types, kind):
            self._refuse(name)
        if isinstance(value, dict | list) and value and (kind in ("bool", "size") or kind in _SCALARS):
            self._refuse(flat_name(name, value))
        return self._structure(name, kind, value)

    def _structure(self, name: str, kind: str, value: Any) -> Any:
        if kind == "BlockdevCacheOptions" and isinstance(value, dict):
            # Old commands take ``writeback`` for a node; texts have it for a drive only, which has taken it off.
            self._refuse_members(name, value.keys() - (self._names(kind) - {"writeback"}))
        if kind == "Qcow2OverlapChecks" and isinstance(value, dict):
            self._refuse_members(name, value.keys() - self._names("Qcow2OverlapCheckFlags"))
            return {
                each: _text(each, flag) if each == "template" else _switch(f"{name}.{each}", flag)
                for each, flag in value.items()
            }
        if kind in _RULES and _are_objects(value):
            from qobra.block.filter._blkdebug_config import typed_rules

            return typed_rules(name, value)
        return _value(name, kind, value)

    def _names(self, kind: str) -> set[str]:
        return {member.name for member in self._types[kind].members}

    def _refuse_unknown(self, name: str, shown: str) -> None:
        # Whether there are backing files is said once the node is open.
        if name != "backing":
            self._refuse(shown)

    def _refuse_members(self, name: str, unknown: Iterable[str]) -> None:
        for member in unknown:
            self._refuse(f"{name}.{member}")

    def _refuse(self, name: str) -> None:
        if self._is_known:
            _refuse(self._driver, name, self._lacks_file)


def _listed(name: str, kind: str, value: Options) -> list[Any]:
    """The list that ``name.0``, ``name.1``, ... stand for; one that was given without a number is all there is."""
    if not any(map(str.isdigit, value)):
        return [value]
    result = [value[str(number)] for number in range(len(value)) if str(number) in value]
    if len(result) != len(value):
        if kind in _RULES:
            unused = next(key for key in value if not key.isdigit() or int(key) >= len(result))
            raise QobraError(f"Unused option '{flat_name(unused, value[unused])}' for [{name}]")
        raise QobraError(f"Invalid parameter '{name}'")
    return result


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _is_structure(types: Types, kind: str) -> bool:
    from qobra.qapi.spec import OBJECT

    return kind in types and types[kind].kind == OBJECT


def _child(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "driver" not in value and "filename" in value:
        if not isinstance(value["filename"], str):
            raise QobraError("Must specify either driver or file")
        value = {"driver": driver_of_path(value["filename"]), **value}
    return typed(value)


def _refuse(driver: str, name: str, lacks_file: bool) -> None:
    """A format knows all its options; a protocol may have older ones that only it can judge.

    A format that ``lacks_file`` says that first.
    """
    from qobra.block.node import drivers

    node_class = drivers.find(driver)
    if node_class is None:
        raise QobraError(f"Unknown driver '{driver}'")
    if not node_class.is_protocol():
        if lacks_file:
            raise QobraError('A block device must be specified for "file"')
        raise QobraError(f"Block format '{driver}' does not support the option '{name}'")
    if not node_class.takes_old_options:
        raise QobraError(f"Block protocol '{driver}' doesn't support the option '{name}'")


def _value(name: str, kind: str, value: Any) -> Any:
    """``value`` as the type ``kind`` of the schema wants it, where that can be told without the rest of the options."""
    if kind == "str":
        return _text(name, value)
    if kind == "bool":
        return _switch(name, value)
    if kind == "size" or kind in _SCALARS:
        return _number(name, kind, value)
    from qobra.qapi.contract import contract
    from qobra.qapi.spec import ENUM

    types = contract().types
    if kind in types and types[kind].kind == ENUM:
        return _word(name, types[kind].values, value)
    if name == "encrypt" and isinstance(value, dict) and "format" not in value:
        return value  # the image knows
    if isinstance(value, int | float):
        return _text(name, value)  # one of several types, of which a number is none
    if isinstance(value, (dict, list)) and _all_texts(value):
        # What is wrong with an address is told without saying whose it is.
        return contract().check(kind, value, path="" if kind == "SocketAddress" else name, keyval=True)
    return value


def _text(name: str, value: Any) -> str:
    """What is no text in a ``json:`` name but has to be one."""
    if isinstance(value, str):
        return value
    if name == "filename":
        raise QobraError("The 'file' block driver requires a file name")
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return str(value)
    raise QobraError(f"Invalid parameter type for '{name}', expected: string")


def _switch(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value not in BOOLEANS:
        raise QobraError(f"Parameter '{name}' expects 'on' or 'off'")
    return BOOLEANS[value]


def _number(name: str, kind: str, value: Any) -> int:
    counts = name in _COUNTS
    if isinstance(value, str):
        number = integer(value) if kind != "size" else None
        if number is None:
            if counts:
                raise QobraError(f"Parameter '{name}' expects a number")
            number = _size(name, value)  # the schema is not strict about what counts bytes
        value = number
    if not isinstance(value, int) or isinstance(value, bool) or (value < 0 and not counts):
        raise QobraError(f"Parameter '{name}' expects a number") if counts else not_a_size(name)
    return value


def _word(name: str, words: Collection[str], value: Any) -> str:
    """A value of an enumeration."""
    text = _text(name, value)
    if name == "discard":
        if text not in DISCARD_WORDS:
            raise QobraError("Invalid discard option")
        return DISCARD_WORDS[text]
    if text not in words:
        raise QobraError(f"invalid parameter value: {text}")
    return text


def _size(name: str, text: str) -> int:
    try:
        return parse_size(text)
    except NotANumber:
        raise not_a_size(name)
    except OutOfRange:
        raise QobraError(f"Value '{text}' is out of range for parameter '{name}'")


def _all_texts(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_all_texts(each) for each in value.values())
    if isinstance(value, list):
        return all(_all_texts(each) for each in value)
    return isinstance(value, str)

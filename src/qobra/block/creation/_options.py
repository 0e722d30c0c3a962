"""Creation options of a format: their list, their values, their texts."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.registry import Registry
from qobra.units import BOOLEANS, UINT64_MAX, NotANumber, OutOfRange, integer, not_a_size, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NamedTuple

    from qobra.block.layer import BlockLayer
else:
    Any = object
    from qobra.records import NamedTuple


Values = dict[str, Any]
"""Option to value: str, int or bool, as the option's kind says."""

STRING, SIZE, NUMBER, BOOL = "str", "size", "num", "bool (on/off)"


class Option(NamedTuple):
    """One option. ``default`` is a value that is told (in ``Formatting ...``) and used where none was given."""

    name: str
    kind: str
    help: str
    default: str | int | bool | None = None


class Format:
    """The options of one format, in the order in which they are told."""

    def __init__(
        self,
        options: Iterable[Option],
        convert: Callable[[Values], Values],
        amend: Iterable[Option] = (),
        measured: Callable[[Values, BlockLayer], Values] | None = None,
    ) -> None:
        self.options = {option.name: option for option in options}
        self.convert = convert
        """The options as members of BlockdevCreateOptions (without driver and file). Raises QobraError."""
        self.amend_options = {option.name: option for option in amend}
        self.measured = measured or (lambda values, _layer: convert(values))
        """As :attr:`convert`, of those that the space which an image takes depends on: no others are looked at."""


formats: Registry[Format] = Registry("creation options", ["qobra.block.creation"])


def convert_value(option: Option, text: str) -> str | int | bool:
    """The value that ``text`` stands for. Raises QobraError in QEMU's words."""
    if option.kind == BOOL:
        if text not in BOOLEANS:
            raise QobraError(f"Parameter '{option.name}' expects 'on' or 'off'")
        return BOOLEANS[text]
    if option.kind == NUMBER:
        number = integer(text)
        if number is None:
            raise QobraError(f"Parameter '{option.name}' expects a number")
        if not -UINT64_MAX <= number <= UINT64_MAX:
            raise QobraError(f"Value '{text}' is too large for parameter '{option.name}'")
        return number
    if option.kind == SIZE:
        try:
            return parse_size(text)
        except NotANumber:
            raise not_a_size(option.name)
        except OutOfRange:
            raise QobraError(f"Value '{text}' is out of range for parameter '{option.name}'")
    return text


def parse_values(known: dict[str, Option], pairs: Iterable[tuple[str, str]]) -> Values:
    """Typed values of ``name=value`` pairs; a later one wins. Raises QobraError."""
    values: Values = {}
    for name, text in pairs:
        if name not in known:
            raise QobraError(f"Invalid parameter '{name}'")
        values[name] = convert_value(known[name], text)
    return values


def listed(known: dict[str, Option]) -> list[str]:
    """The lines of ``-o help``."""
    lines = []
    for name in sorted(known):
        option = known[name]
        lines.append(f"  {name + '=<' + option.kind + '>':<22} - {option.help}")
    return lines


def text_of(value: str | int | bool) -> str:
    """A typed value as it would be written."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def told(known: dict[str, Option], values: Values) -> str:
    """The values, defaults among them, as ``Formatting`` tells them."""
    parts = []
    for name, option in known.items():
        value = values.get(name, option.default)
        if value is not None:
            parts.append(f"{name}={text_of(value).replace(',', ',,')}")
    return " ".join(parts)


def dashed(values: Values, names: Iterable[str]) -> Values:
    """Those of ``names`` that have a value, with hyphens as the schema writes them."""
    return {name.replace("_", "-"): values[name] for name in names if name in values}

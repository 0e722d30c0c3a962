"""``-object``: options as QEMU's machines take them.

All are read before the first object is made, and what is wrong with a text names the option; what an object itself has
against its properties does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.chardev.options import pairs
from qobra.cli._options import json_object
from qobra.errors import QobraError
from qobra.object.number_list import NumberList
from qobra.object.property import Enum, Int, Property, Size
from qobra.object.tree import check_identifier

if TYPE_CHECKING:
    from qobra.object.qom import Object
    from qobra.object.tree import ObjectTree

# Objects that other options refer to come early; those that refer to other options come late.
_LATE = ("qtest", "rng-egd", "filter-")


class Definition:
    """An object that is to be made."""

    def __init__(self, type_name: str, id: str, properties: dict[str, Any]) -> None:
        self.type_name = type_name
        self.id = id
        self.properties = properties

    @property
    def late(self) -> bool:
        """Whether it is made once there are network backends and devices."""
        return self.type_name.startswith(_LATE)

    def create(self, objects: ObjectTree) -> None:
        """Make it. Raises QobraError."""
        objects.create(self.type_name, self.id, self.properties)


def definition(objects: ObjectTree, value: str) -> Definition:
    """The object that an option's value describes, JSON or ``key=value,...``. Raises QobraError."""
    is_text = not value.startswith("{")
    given = _collected(value) if is_text else json_object(value)
    for required in ("qom-type", "id"):
        if required not in given:
            raise QobraError(f"Parameter '{required}' is missing")
        if not isinstance(given[required], str) and not is_text:
            raise QobraError(f"Invalid parameter type for '{required}', expected: string")
    type_name, id = (_last(given.pop(name)) for name in ("qom-type", "id"))
    if is_text:
        check_identifier(id)
    cls = objects.find_type(type_name)
    if cls is None or cls.abstract:
        raise QobraError(f"invalid object type: {type_name}")
    return Definition(type_name, id, _converted(cls(objects), given) if is_text else _known(cls(objects), given))


def _collected(value: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for key, text in pairs(value, "qom-type"):
        given.setdefault(key, []).append(text)
    return given


def _last(value: Any) -> str:
    return str(value[-1] if isinstance(value, list) else value)


def _known(example: Object, given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in example.properties():
            raise QobraError(f"Parameter '{name}' is unexpected")
    return given


def _converted(example: Object, given: dict[str, list[str]]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, texts in given.items():
        prop = example.properties().get(name)
        if prop is None:
            raise QobraError(f"Invalid parameter '{name}'")
        properties[name] = prop.convert(texts) if isinstance(prop, NumberList) else _number_or_other(prop, texts[-1])
    return properties


def _number_or_other(prop: Property, text: str) -> Any:
    if isinstance(prop, Enum):
        return prop.parse(text)
    if not isinstance(prop, Int):
        return prop.convert(text)
    kind = "a size" if isinstance(prop, Size) else "an int64" if prop.width in ("int", "int64") else "a uint64"
    try:
        value: int = prop.convert(text)
    except QobraError:
        raise QobraError(f"Parameter '{prop.name}' expects {kind} value")
    if not -(1 << 63) <= value < 1 << 64:
        raise QobraError(f"Parameter '{prop.name}' expects {kind} value")
    return value

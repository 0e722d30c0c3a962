"""``-object``: options as QEMU's machines take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.chardev.options import pairs
from qobra.cli._options import json_object
from qobra.errors import QobraError
from qobra.object.number_list import NumberList

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree


def options(objects: ObjectTree, value: str) -> tuple[dict[str, Any], bool]:
    """The type, id and properties of an object, and whether these are texts. Raises QobraError."""
    is_text = not value.startswith("{")
    given = _from_text(objects, value) if is_text else json_object(value)
    for required in ("qom-type", "id"):
        if required not in given:
            raise QobraError(f"Parameter '{required}' is missing")
    return given, is_text


def _from_text(objects: ObjectTree, value: str) -> dict[str, Any]:
    # A property that is a list has all values that it was given, others have the last one.
    given: dict[str, Any] = {}
    for key, text in pairs(value, "qom-type"):
        given.setdefault(key, []).append(text)
    cls = objects.find_type(given.get("qom-type", [""])[-1])
    properties = cls.class_properties() if cls is not None else {}
    return {key: texts if isinstance(properties.get(key), NumberList) else texts[-1] for key, texts in given.items()}

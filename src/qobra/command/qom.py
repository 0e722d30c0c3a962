"""The object model over QMP: list, read and set what is in the tree; describe types."""

from __future__ import annotations

from typing import Any

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.machine import Machine
from qobra.object.property import Property
from qobra.object.qom import Interface, Object
from qobra.qmp.registry import command


@command("qom-list")
def qom_list(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The properties of an object, its children among them."""
    found = machine.objects.resolve(args["path"], tells_ambiguous=True)
    listed = [{"name": prop.name, "type": prop.type} for prop in found.properties().values()]
    listed += [{"name": name, "type": f"child<{child.type_name}>"} for name, child in found.children.items()]
    return listed


@command("qom-get")
def qom_get(machine: Machine, args: dict[str, Any]) -> Any:
    """A property's value."""
    return machine.objects.resolve(args["path"]).get(args["property"])


@command("qom-set")
def qom_set(machine: Machine, args: dict[str, Any]) -> None:
    """Set a property."""
    machine.objects.resolve(args["path"]).set(args["property"], args["value"])


@command("qom-list-types")
def qom_list_types(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The types, those that implement ``implements`` only, abstract ones too if asked for."""
    implements, abstract = args.get("implements"), args.get("abstract", False)
    result = []
    for name, cls in machine.objects.all_types().items():
        if (cls.abstract and not abstract) or (implements is not None and not cls.implements(implements)):
            continue
        info: dict[str, Any] = {"name": name}
        if cls.abstract:
            info["abstract"] = True
        parent = cls.parent_type()
        if parent is not None:
            info["parent"] = parent
        result.append(info)
    return result


@command("qom-list-properties")
def qom_list_properties(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The properties of a type."""
    name = args["typename"]
    cls = machine.objects.find_type(name)
    if cls is None:
        raise QobraError(f"Class '{name}' not found", DEVICE_NOT_FOUND)
    if issubclass(cls, Interface):
        raise QobraError("Parameter 'typename' expects a QOM type")
    return [describe(prop) for prop in _properties(machine, cls).values()]


def _properties(machine: Machine, cls: type[Object]) -> dict[str, Property]:
    # An object shows what only its instances have, such as the properties of the device that a proxy carries.
    return cls.class_properties() if cls.abstract else cls(machine.objects).properties()


def describe(prop: Property, *, with_default: bool = False) -> dict[str, Any]:
    """ObjectPropertyInfo of the reference; only lists of devices tell of defaults, and of what may be chosen."""
    info: dict[str, Any] = {"name": prop.name, "type": prop.type}
    description = prop.description or ("/".join(prop.choices()) if with_default else "")
    if description:
        info["description"] = description
    if with_default and prop.show_default and prop.default is not None:
        info["default-value"] = prop.show(prop.default)
    return info

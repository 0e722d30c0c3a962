"""What is said of types and their properties to people who ask: ``-object help``, ``-object TYPE,help``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.object.property import Property
    from qobra.object.tree import ObjectTree


def asks_help(value: str) -> bool:
    """Whether an option's value only asks what there is."""
    return not {"help", "?"}.isdisjoint(value.split(","))


def object_help(objects: ObjectTree, value: str) -> str:
    """What ``--object help`` or ``--object TYPE,help`` prints: the types, or a type's properties."""
    type_name = value.split(",")[0].removeprefix("qom-type=")
    found = objects.find_type(type_name)
    if found is None:
        types = objects.all_types()
        names = sorted(name for name, each in types.items() if each.user_creatable and not each.abstract)
        return "List of user creatable objects:\n" + "".join(f"  {name}\n" for name in names)
    properties = (found.class_properties() if found.abstract else found(objects).properties()).values()
    lines = sorted(property_line(prop) for prop in properties if prop.writable and not prop.type.startswith("child<"))
    return f"{type_name} options:\n" + "".join(lines) if lines else f"There are no options for {type_name}.\n"


def property_line(prop: Property, *, with_default: bool = False) -> str:
    """What lists for people say of a property."""
    left, text = f"  {prop.name}=<{prop.type}>", prop.description or ("/".join(prop.choices()) if with_default else "")
    if with_default and prop.default is not None and prop.show_default:
        import json

        text += f" (default: {json.dumps(prop.show(prop.default))})"
    return f"{left:<24} - {text}\n" if text else f"{left}\n"

"""What is said of devices to people who ask: ``-device help``, ``-device TYPE,help``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.devices import ALIASES
from qobra.machine.plug import device_class
from qobra.machine.qdev import Device
from qobra.object.help import property_line

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_CATEGORIES = (
    *("Controller/Bridge/Hub", "USB", "Storage", "Network", "Input", "Display", "Sound"),
    *("Misc", "CPU", "Watchdog", "Uncategorized"),
)


def types(tree: ObjectTree, *, all_of_them: bool = False) -> str:
    """The types that users can plug in, or all of them, by what they are for."""
    known = tree.all_types()
    aliases = {name: alias for alias, name in ALIASES.items() if alias != name}
    groups: dict[str, list[str]] = {category: [] for category in _CATEGORIES}
    for name, cls in sorted(known.items()):
        if not issubclass(cls, Device) or cls.abstract or not (cls.pluggable or all_of_them):
            continue
        # A function that carries a device is what the device is.
        carried = known.get(cls.backend_type)
        inner = carried.category if carried is not None and issubclass(carried, Device) else None
        category = cls.category or inner or "Uncategorized"
        bus = f", bus {cls.bus_type}" if cls.bus_type else ""
        alias = f', alias "{aliases[name]}"' if name in aliases else ""
        description = f', desc "{cls.description}"' if cls.description else ""
        user = "" if cls.pluggable else ", no-user"
        groups[category].append(f'name "{name}"{bus}{alias}{description}{user}\n')
    shown = [f"{category} devices:\n{''.join(lines)}" for category, lines in groups.items() if lines]
    return "\n".join(shown)


def properties(tree: ObjectTree, type_name: str) -> str:
    """The properties of a type. Raises QobraError where there is no such device."""
    try:
        device = device_class(tree, type_name)(tree)
    except QobraError:
        raise QobraError(f"Device '{type_name}' not found")
    shown = (prop for name, prop in device.properties().items() if name not in Device.BASE_PROPERTIES)
    lines = sorted(property_line(prop, with_default=True) for prop in shown)
    return f"{device.type_name} options:\n" + "".join(lines)

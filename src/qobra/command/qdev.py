"""Devices over QMP: plug in, unplug, describe."""

from __future__ import annotations

from typing import Any

from qobra.command.qom import describe
from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.machine import Machine
from qobra.machine.plug import plug_in, remove_device
from qobra.machine.qdev import Device
from qobra.qmp.registry import command, older_form


@command("device_add", needs="board")
def device_add(machine: Machine, args: dict[str, Any]) -> None:
    """Plug a device in. Values are texts, as on the command line."""
    plug_in(machine, args, keyval=True)


def _is_unusual(args: dict[str, Any]) -> bool:
    return "driver" not in args or not all(isinstance(value, str) for value in args.values())


@older_form("device_add", _is_unusual)
def device_add_of_values(machine: Machine, args: dict[str, Any]) -> None:
    """Values are taken as their texts would be, an id excepted; what has none is passed over.

    What is wrong with an id is told before a driver is missed.
    """
    texts = {name: option_text(value) for name, value in args.items() if name != "id" or isinstance(value, str)}
    device_add(machine, {name: text for name, text in texts.items() if text is not None})


def option_text(value: Any) -> str | None:
    """The text of an option for a JSON value; None for what cannot be one (null, lists, objects)."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 64):
        return f"{float(value):.17g}"
    return str(value) if isinstance(value, int | str) else None


@command("device_del", needs="board")
def device_del(machine: Machine, args: dict[str, Any]) -> None:
    """Ask a device to leave."""
    remove_device(machine, args["id"])


@command("device-list-properties", needs="board")
def device_list_properties(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The properties of a device type that users can set."""
    name = args["typename"]
    cls = machine.objects.find_type(name)
    if cls is None:
        raise QobraError(f"Device '{name}' not found", DEVICE_NOT_FOUND)
    if not issubclass(cls, Device) or cls.abstract:
        raise QobraError("Parameter 'typename' expects a non-abstract device type")
    device = cls(machine.objects)
    return [
        describe(prop, with_default=True)
        for prop in device.properties().values()
        if prop.name not in Device.BASE_PROPERTIES and not prop.type.startswith("child<")
    ]

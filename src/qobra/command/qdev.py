"""Devices over QMP: plug in, unplug, describe."""

from __future__ import annotations

from typing import Any

from qobra.command.qom import describe
from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device, remove_device
from qobra.machine.qdev import Device
from qobra.qmp.registry import command


@command("device_add", needs="board")
def device_add(machine: Machine, args: dict[str, Any]) -> None:
    """Plug a device in. Values may be texts, as on the command line."""
    add_device(machine, args, keyval=True)


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

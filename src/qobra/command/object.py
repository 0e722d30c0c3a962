"""Objects that users create: object-add and object-del."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("object-add")
def object_add(machine: Machine, args: dict[str, Any]) -> None:
    """Create an object; whatever is no argument of the command is a property of the object."""
    properties = {name: value for name, value in args.items() if name not in ("qom-type", "id", "props")}
    if "props" in args:
        if not isinstance(args["props"], dict):
            raise QobraError("Invalid parameter type for 'props', expected: dict")
        twice = next((name for name in args["props"] if name in properties), None)
        if twice is not None:
            raise QobraError(f"Parameter '{twice}' is given both by itself and in 'props'")
        properties |= args["props"]
    machine.objects.create(args["qom-type"], args["id"], properties)


@command("object-del")
def object_del(machine: Machine, args: dict[str, Any]) -> None:
    """Delete an object that nothing uses."""
    machine.objects.delete(args["id"])

"""device_add and device_del: how users put devices into a machine and take them out, before it runs and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.devices import find_device_class
from qobra.machine.qdev import Bus, Device, SystemBus
from qobra.object.tree import is_identifier

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.object.tree import ObjectTree


def plug_in(machine: Machine, options: dict[str, Any], *, keyval: bool) -> None:
    """What users ask for: :func:`add_device`, at once or (a primary of :mod:`qobra.machine.failover`) in its time."""
    board = machine.board
    if "failover_pair_id" in options and "driver" in options and board is not None:
        cls = device_class(machine.objects, options["driver"])
        bus = _choose_bus(board.system_bus, cls, options.get("bus"))
        if board.failover.hides(options, keyval=keyval):
            if board.ready:
                _check_hotplug(bus)
            return
    add_device(machine, options, keyval=keyval)


def add_device(machine: Machine, options: dict[str, Any], *, keyval: bool) -> Device:
    """Create the device that ``options`` (``driver``, ``bus``, ``id``, then properties) describe, and realize it.

    With ``keyval`` values may be option texts. Raises QobraError in QEMU's words; nothing is left behind then.
    """
    options = dict(options)
    bus_name, id = options.pop("bus", None), options.pop("id", None)
    if id is not None and not (isinstance(id, str) and is_identifier(id)):
        raise QobraError("Parameter 'id' expects an identifier")
    driver = options.pop("driver", None)
    if not isinstance(driver, str):
        raise QobraError("Parameter 'driver' is missing")
    board = machine.board
    if board is None:
        raise QobraError("this machine has no board to plug devices into")
    cls = device_class(machine.objects, driver)
    hotplugged = board.ready
    if not cls.pluggable or (hotplugged and not cls.hotpluggable_class):
        raise QobraError("Parameter 'driver' expects a pluggable device type")
    if cls.bus_type == SystemBus.type_name and driver not in board.dynamic_devices:
        raise QobraError("Parameter 'driver' expects a dynamic sysbus device type for the machine")
    bus = _choose_bus(board.system_bus, cls, bus_name)
    if hotplugged:
        _check_hotplug(bus)
    if hotplugged and bus is None and not board.can_hotplug(cls):
        raise QobraError(f"Device '{driver}' can not be hotplugged on this machine")
    if id is not None and id in board.peripheral.children:
        raise QobraError(f"Duplicate device ID '{id}'")

    device = cls(machine.objects)
    device.hotplugged = hotplugged
    if bus is not None:
        bus.insert(device)
    try:
        if id is not None:
            device.user_id = id
            board.peripheral.add_child(id, device)
        else:
            board.peripheral_anon.add_child(f"device[{board.anonymous_devices}]", device)
            board.anonymous_devices += 1
        if "drive" in options:
            board.check_no_global(device, "drive", options["drive"])
        board.apply_globals(device)
        for name, value in options.items():
            device.set(name, value, keyval=keyval)
        device.set_realized(True)
    except BaseException:
        device.realized = False
        device.unparent()
        raise
    return device


def remove_device(machine: Machine, id: str) -> None:
    """device_del: have the device ``id`` (or at that path) leave; DEVICE_DELETED says when it has."""
    unplug(find_device(machine, id))


def find_device(machine: Machine, id: str) -> Device:
    """The device with that id or at that path. Raises QobraError (DeviceNotFound)."""
    try:
        found = machine.objects.resolve(id if id.startswith("/") else f"/machine/peripheral/{id}")
    except QobraError:
        raise QobraError(f"Device '{id}' not found", DEVICE_NOT_FOUND)
    if not isinstance(found, Device):
        raise QobraError(f"{id} is not a hotpluggable device")
    return found


def unplug(device: Device) -> None:
    """Have ``device`` leave, as far as it and its bus allow."""
    board = device.board
    again = device.unplug_again_ns
    if device.unplug_pending and (again is None or board.clock.now_ns() < again):
        raise QobraError(f"Device {device.describe()} is already in the process of unplug")
    if device.bus is None:
        board.request_unplug(device)
        return
    _check_hotplug(device.bus)
    if not device.hotpluggable_class or not device.pluggable:
        raise QobraError(f"Device '{device.type_name}' does not support hotplugging")
    device.check_unplug()
    device.bus.request_unplug(device)


def _check_hotplug(bus: Bus | None) -> None:
    if bus is not None and not bus.hotplug:
        raise QobraError(f"Bus '{bus.bus_name}' does not support hotplugging")


def device_class(tree: ObjectTree, driver: str) -> type[Device]:
    """The concrete device class ``driver``; QobraError where it is none."""
    cls = find_device_class(tree, driver)
    if cls is None:
        raise QobraError(f"'{driver}' is not a valid device model name")
    if cls.abstract:
        raise QobraError("Parameter 'driver' expects a non-abstract device type")
    return cls


def all_buses(bus: Bus) -> Iterator[Bus]:
    """``bus`` and every bus that hangs off it, in the order in which QEMU looks for a free one."""
    yield bus
    for device in reversed(bus.devices):
        for child in reversed(device.buses()):
            yield from all_buses(child)


def _choose_bus(root: Bus, cls: type[Device], name: Any) -> Bus | None:
    if name is not None:
        if not isinstance(name, str):
            raise QobraError("Invalid parameter type for 'bus', expected: string")
        bus = _find_bus(root, name)
        if cls.bus_type is None or not bus.implements(cls.bus_type):
            raise QobraError(f"Device '{cls.type_name}' can't go on {bus.type_name} bus")
        if bus.full:
            raise QobraError(f"Bus '{name}' is full")
        return bus
    if cls.bus_type is None:
        return None
    candidates = [bus for bus in all_buses(root) if bus.implements(cls.bus_type)]
    free = [bus for bus in candidates if not bus.full]
    if not free:
        raise QobraError(f"No '{cls.bus_type}' bus found for device '{cls.type_name}'")
    return free[0]


def _find_bus(root: Bus, path: str) -> Bus:
    # A bus by its name, by the id of its device, or by steps "bus/device/bus".
    parts = [part for part in path.split("/") if part]
    buses = list(all_buses(root))
    if not parts:
        raise QobraError(f"Bus '{path}' not found")
    if path.startswith("/"):
        bus: Bus | None = root
    else:
        first = parts.pop(0)
        bus = next((b for b in buses if b.bus_name == first), None)
    if bus is None:
        raise QobraError(f"Bus '{path}' not found")
    while parts:
        step = parts.pop(0)
        device = next((d for d in bus.devices if step in (d.user_id, d.type_name)), None)
        if device is None:
            raise QobraError(f"Device '{step}' not found", DEVICE_NOT_FOUND)
        below = list(device.buses())
        if parts:
            step = parts.pop(0)
            below = [child for child in below if child.bus_name == step]
        if not below:
            raise QobraError(f"Bus '{path}' not found")
        bus = below[0]
    return bus

"""Devices and the object model for people."""

from __future__ import annotations

import json
from typing import Any

from qobra.chardev.options import split
from qobra.errors import QobraError
from qobra.json_reader import parse_text
from qobra.machine.device_help import properties, types
from qobra.machine.machine import Machine
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.plug import plug_in
from qobra.machine.qdev import Bus, Device
from qobra.object.help import asks_help
from qobra.object.property import Size
from qobra.object.qom import Object
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command
from qobra.units import size_text


@hmp_command(
    "device_add",
    args="device:O",
    params="driver[,prop=value][,...]",
    help="plug a device in, with -device's options",
    needs="board",
)
def device_add(machine: Machine, args: dict[str, Any]) -> str | None:
    """Plug a device in, or tell of devices."""
    options = split(args["device"], "driver")
    if asks_help(args["device"]):
        driver = options.get("driver", "")
        try:
            return types(machine.objects) if asks_help(driver) else properties(machine.objects, driver)
        except QobraError as error:
            return f"{error}\n"
    plug_in(machine, options, keyval=True)
    return None


@hmp_command(
    "device_del", args="id:s", params="device", help="ask the guest to let go of a device, and unplug it", needs="board"
)
def device_del(machine: Machine, args: dict[str, Any]) -> None:
    """Ask a device to leave."""
    dispatch.call(machine, "device_del", {"id": args["id"]})


@hmp_command("info qdm", help="the types of devices, those of the boards too", needs="board")
def info_qdm(machine: Machine, args: dict[str, Any]) -> str:
    """The types of devices by what they are for; ``no-user`` are those that users cannot plug in."""
    return types(machine.objects, all_of_them=True)


@hmp_command("qom-list", args="path:s?", params="path", help="the properties of an object")
def qom_list(machine: Machine, args: dict[str, Any]) -> str:
    """The properties of an object."""
    if "path" not in args:
        return "/\n"
    listed = dispatch.call(machine, "qom-list", {"path": args["path"]})
    return "".join(f"{each['name']} ({each['type']})\n" for each in listed)


@hmp_command("qom-get", args="path:s,property:s", params="path property", help="the value of an object's property")
def qom_get(machine: Machine, args: dict[str, Any]) -> str:
    """A property, as JSON."""
    value = dispatch.call(machine, "qom-get", {"path": args["path"], "property": args["property"]})
    return json.dumps(value, indent=4) + "\n"


@hmp_command(
    "qom-set",
    args="json:-j,path:s,property:s,value:S",
    params="[-j] path property value",
    help="change an object's property (-j: to a JSON value)",
)
def qom_set(machine: Machine, args: dict[str, Any]) -> None:
    """Set a property from text, or from JSON."""
    value = parse_text(args["value"]) if args.get("json") else args["value"]
    machine.objects.resolve(args["path"]).set(args["property"], value, keyval=not args.get("json"))


@hmp_command("info qom-tree", args="path:s?", params="[path]", help="the objects, as a tree")
def info_qom_tree(machine: Machine, args: dict[str, Any]) -> str:
    """What is in the tree."""
    path = args.get("path", "/machine")
    try:
        start = machine.objects.resolve(path)
    except QobraError:
        return f"Path '{path}' could not be resolved.\n"
    return "\n".join(_tree_lines(start, 0)) + "\n"


def _tree_lines(item: Object, depth: int) -> list[str]:
    lines = [f"{'  ' * depth}/{item.name} ({item.type_name})"]
    for _name, child in sorted(item.children.items()):
        lines += _tree_lines(child, depth + 1)
    return lines


@hmp_command("info qtree", help="buses, and the devices on them", needs="board")
def info_qtree(machine: Machine, args: dict[str, Any]) -> str:
    """Buses and what is on them."""
    assert machine.board is not None
    return "\n".join(_bus_lines(machine.board.system_bus, 0)) + "\n"


def _bus_lines(bus: Bus, indent: int) -> list[str]:
    pad = " " * indent
    lines = [f"{pad}bus: {bus.bus_name}", f"{pad}  type {bus.type_name}"]
    for device in reversed(bus.devices):
        lines += _device_lines(device, indent + 2)
    return lines


def _device_lines(device: Device, indent: int) -> list[str]:
    pad = " " * (indent + 2)
    lines = [f'{" " * indent}dev: {device.type_name}, id "{device.user_id or ""}"']
    for way, lists in (("in", device.gpio_in), ("out", device.gpio_out)):
        lines += [f'{pad}gpio-{way} "{name or ""}" {len(gpios)}' for name, gpios in lists.items()]
    properties = device.class_properties()
    for name in dict.fromkeys((*device.shown_first, *properties)):
        prop = properties[name]
        if name not in Device.BASE_PROPERTIES and name not in _HIDDEN and prop.readable and prop.show_default:
            value = device.get(name)
            if isinstance(prop, Size):
                shown = f"{value} ({size_text(value)})"
            elif name == "addr" and isinstance(device, PciDevice):
                shown = f"{value >> 3:02x}.{value & 7:x}" if value >= 0 else "<unset>"
            else:
                shown = _show(value)
            lines.append(f"{pad}{name} = {shown}")
    if isinstance(device, PciDevice) and device.realized:
        lines += [pad + line for line in (_pci_line(device), *_bar_lines(device))]
    for bus in reversed(device.buses()):
        lines += _bus_lines(bus, indent + 2)
    return lines


_HIDDEN = frozenset({"bootindex"})
"""Properties that are for whoever makes a device."""


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value} (0x{value & ((1 << 64) - 1):x})"
    return f'"{value}"' if isinstance(value, str) else json.dumps(value)


def _pci_line(device: PciDevice) -> str:
    code = device.word(regs.CLASS)
    title = regs.CLASS_NAMES.get(code, f"Class {code:04x}")
    place = f"{device.pci_bus.number:02x}:{device.slot:02x}.{device.function}"
    own = f"{device.word(regs.VENDOR_ID):04x}:{device.word(regs.DEVICE_ID):04x}"
    sub = f"{device.word(regs.SUBSYSTEM_VENDOR):04x}:{device.word(regs.SUBSYSTEM_ID):04x}"
    return f"class {title}, addr {place}, pci id {own} (sub {sub})"


def _bar_lines(device: PciDevice) -> list[str]:
    lines = []
    for number, bar in sorted(device.bars.items()):
        address, last = device.bar_address(bar), (1 << 64) - 1
        start = last if address is None else address
        kind = "i/o" if bar.flags & regs.BAR_IO else "mem"
        lines.append(f"bar {number}: {kind} at 0x{start:x} [0x{start + bar.size - 1 & last:x}]")
    return lines

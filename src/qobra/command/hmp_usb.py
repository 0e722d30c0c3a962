"""USB devices for people."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.machine.qdev import Bus
from qobra.machine.usb.bus import UsbBus
from qobra.machine.usb.device import SPEED_MBIT
from qobra.qmp.hmp import hmp_command


@hmp_command("info usb", help="USB devices, with their addresses and ports", needs="board")
def info_usb(machine: Machine, args: dict[str, Any]) -> str:
    """The devices of each bus, in the order in which they came."""
    assert machine.board is not None
    buses = list(_usb_buses(machine.board.system_bus))
    if not buses:
        raise QobraError("USB support not enabled")
    lines = []
    for number, bus in enumerate(buses):
        for port in bus.used:
            device = port.device
            if device is not None:
                place = f"Device {number}.{device.address}, Port {port.path}, Speed {SPEED_MBIT[device.speed]} Mb/s"
                named = f", ID: {device.user_id}" if device.user_id else ""
                lines.append(f"  {place}, Product {device.product}{named}\n")
    return "".join(lines)


def _usb_buses(bus: Bus) -> list[UsbBus]:
    found = [bus] if isinstance(bus, UsbBus) else []
    for device in bus.devices:
        for below in device.buses():
            found += _usb_buses(below)
    return found

"""``-usbdevice``: one of a few USB devices, on the controller of the board or whichever else there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.plug import all_buses, plug_in

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_DRIVERS = {"keyboard": "usb-kbd", "mouse": "usb-mouse", "tablet": "usb-tablet"}


def plug(machine: Machine, value: str) -> None:
    """Plug in what ``value`` names. Raises QobraError."""
    if ":" in value:
        raise QobraError("usbdevice parameters are not supported anymore")
    if value not in _DRIVERS:
        raise QobraError(f"could not add USB device '{value}'")
    board = machine.board
    if board is None or not any(bus.implements("usb-bus") for bus in all_buses(board.system_bus)):
        raise QobraError(
            f"no usb bus to attach usbdevice {value}, please try -machine usb=on "
            "and check that the machine model supports USB"
        )
    plug_in(machine, {"driver": _DRIVERS[value]}, keyval=True)

"""What a PC's firmware is told of the devices to boot from: in which order, and with which geometry.

Devices are named by their path as Open Firmware has it (IEEE 1275, annex A of its PCI binding), which SeaBIOS and OVMF
know: ``/pci@i0cf8/scsi@3/channel@0/disk@1,0``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.qdev import Device

_CLASSES = {0x0100: "scsi", 0x0101: "ide", 0x0200: "ethernet", 0x0300: "display", 0x0601: "isa", 0x0604: "pci-bridge"}
_SERIAL_BUS = 0x0C03
# What a device has below it that is booted from.
_UNITS = {"virtio-blk-device": "/disk@0,0", "vhost-user-blk": "/disk@0,0", "nvme": "/namespace@1,0"}
_NIC_UNIT = "/ethernet-phy@0"


def files(board: Board) -> dict[str, bytes]:
    """The firmware's files ``bootorder`` and ``bios-geometry``.

    Raises QobraError where two devices of the command line want the same place.
    """
    places = {index: f"/rom@{file}" for index, file in board.rom_places.items()}
    geometry = ""
    for device in find_devices(board, "device"):
        path = _path(device) if _is_bootable(device) else None
        if path is None:
            continue
        index = device.bootindex
        if isinstance(index, int) and index >= 0:
            if index in places and not board.ready:
                raise QobraError(f"The bootindex {index} has already been used")
            places.setdefault(index, path)
        shape = [getattr(device, name, 0) or 0 for name in ("lcyls", "lheads", "lsecs")]
        if any(shape):
            geometry += f"{path} {shape[0]} {shape[1]} {shape[2]}\n"
    order = ([board.boot_first] if board.boot_first else []) + [places[index] for index in sorted(places)]
    if board.boot.get("strict"):
        order.append("HALT")
    return {"bootorder": _text("\n".join(order)), "bios-geometry": _text(geometry)}


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _is_bootable(device: Device) -> bool:
    return device.bootindex is not None or getattr(device, "lcyls", None) is not None


def _path(device: Device) -> str | None:
    unit = _NIC_UNIT if device.category == "Network" else _UNITS.get(device.type_name, "")
    path = ""
    here: Any = device
    while here is not None and here.bus is not None and here.bus.type_name != "System":
        path = _node(here) + path
        here = here.bus.owner
    return f"/pci@i0cf8{path}{unit}" if path else None


def _node(device: Any) -> str:
    kind = device.bus.type_name
    if kind in ("PCI", "PCIE"):
        function = f",{device.function:x}" if device.function else ""
        return f"/{_pci_name(device)}@{device.devfn >> 3:x}{function}"
    if kind == "IDE":
        number = device.bus.owner.buses().index(device.bus)
        return f"/drive@{number:x}/disk@{device.unit:x}"
    if kind == "SCSI":
        return f"/channel@{device.channel:x}/disk@{device.scsi_id:x},{device.lun:x}"
    if kind == "usb-bus":
        return f"/storage@{device.at.path if device.at else device.port}"
    if kind == "nvme-bus":
        return f"/namespace@{device.nsid:x},{device.namespace.eui64:016x}"
    return ""  # what a function carries is at the function's place


def _pci_name(device: Any) -> str:
    if device.class_id == _SERIAL_BUS:
        return "usb"
    name = _CLASSES.get(device.class_id)
    return name or f"pci{device.vendor_id:04x},{device.device_id:04x}"

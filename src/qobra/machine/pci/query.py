"""PciInfo of the reference: buses, functions, regions."""

from __future__ import annotations

from typing import Any

from qobra.machine.board import Board
from qobra.machine.pci import regs
from qobra.machine.pci.bus import PciBus
from qobra.machine.pci.device import Bar, PciDevice
from qobra.machine.plug import all_buses


def root_buses(board: Board) -> list[PciBus]:
    """The buses that hang off the board itself."""
    return [bus for bus in all_buses(board.system_bus) if isinstance(bus, PciBus) and bus.parent_bridge is None]


def bus_info(bus: PciBus) -> dict[str, Any]:
    """One bus."""
    return {"bus": bus.number, "devices": _functions(bus, bus.number)}


def _functions(bus: PciBus, number: int) -> list[dict[str, Any]]:
    return [_function(device, number) for _devfn, device in sorted(bus.functions.items()) if device.realized]


def _function(device: PciDevice, number: int) -> dict[str, Any]:
    class_code = device.word(regs.CLASS)
    class_info: dict[str, Any] = {"class": class_code}
    if class_code in regs.CLASS_NAMES:
        class_info["desc"] = regs.CLASS_NAMES[class_code]
    identity = {"device": device.word(regs.DEVICE_ID), "vendor": device.word(regs.VENDOR_ID)}
    if device.header_type & 0x7F == 0:
        identity["subsystem"] = device.word(regs.SUBSYSTEM_ID)
        identity["subsystem-vendor"] = device.word(regs.SUBSYSTEM_VENDOR)
    pin = device.config[regs.INTERRUPT_PIN]
    info: dict[str, Any] = {
        "bus": number,
        "slot": device.slot,
        "function": device.function,
        "class_info": class_info,
        "id": identity,
        "irq_pin": pin,
        "qdev_id": device.user_id or "",
        "regions": [_region(device, bar) for _number, bar in sorted(device.bars.items())],
    }
    if pin:
        info["irq"] = device.config[regs.INTERRUPT_LINE]
    if device.secondary is not None:
        info["pci_bridge"] = _bridge(device, device.secondary)
    return info


def _region(device: PciDevice, bar: Bar) -> dict[str, Any]:
    address = device.bar_address(bar)
    region: dict[str, Any] = {
        "bar": bar.number,
        "type": "io" if bar.flags & regs.BAR_IO else "memory",
        "address": -1 if address is None else address,
        "size": bar.size,
    }
    if not bar.flags & regs.BAR_IO:
        region["prefetch"] = bool(bar.flags & regs.BAR_PREFETCH)
        region["mem_type_64"] = bool(bar.flags & regs.BAR_MEM64)
    return region


def _bridge(device: PciDevice, secondary: PciBus) -> dict[str, Any]:
    word = device.word
    memory_base, memory_limit = (word(regs.MEMORY_BASE) & 0xFFF0) << 16, (word(regs.MEMORY_LIMIT) & 0xFFF0) << 16
    prefetch_base = (word(regs.PREFETCH_BASE) & 0xFFF0) << 16 | device.dword(regs.PREFETCH_BASE_HIGH) << 32
    prefetch_limit = (word(regs.PREFETCH_LIMIT) & 0xFFF0) << 16 | device.dword(regs.PREFETCH_LIMIT_HIGH) << 32
    io_base, io_limit = (device.config[regs.IO_BASE] & 0xF0) << 8, (device.config[regs.IO_LIMIT] & 0xF0) << 8
    info: dict[str, Any] = {
        "bus": {
            "number": device.config[regs.PRIMARY_BUS],
            "secondary": device.config[regs.SECONDARY_BUS],
            "subordinate": device.config[regs.SUBORDINATE_BUS],
            "io_range": {"base": io_base, "limit": io_limit | 0xFFF},
            "memory_range": {"base": memory_base, "limit": memory_limit | 0xFFFFF},
            "prefetchable_range": {"base": prefetch_base, "limit": prefetch_limit | 0xFFFFF},
        }
    }
    if device.config[regs.SECONDARY_BUS]:
        functions = _functions(secondary, device.config[regs.SECONDARY_BUS])
        if functions:
            info["devices"] = functions
    return info

"""What the firmware of a PC finds in its CMOS memory: sizes, drives, boot order (Ralf Brown's list, CMOS.LST).

Cells that the firmware of old left to the vendor hold what SeaBIOS looks for there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

BOOT_DEVICES = {"a": 1, "b": 1, "c": 2, "d": 3, "n": 4}
_FLOPPY_TYPES = {"120": 2, "144": 4, "288": 5}
_FLOPPIES, _EQUIPMENT = 0x10, 0x14
_FPU, _POINTER, _FLOPPY = 0x02, 0x04, 0x01
_DISK_TYPES, _TRANSLATIONS = 0x12, 0x39
_USER_DEFINED = 47
_PLACES = ((0x19, 0x1B), (0x1A, 0x24))
_TRANSLATION_CODES = {"none": 0, "lba": 1, "large": 2, "rechs": 3}


def fill(board: PcBoard) -> None:
    """Write all cells."""
    cmos = board.rtc.cmos
    _memory(board, cmos)
    codes = [BOOT_DEVICES[letter] for letter in board.boot_order()]
    first, second, third = codes + [0] * (3 - len(codes))
    cmos[0x38] = third << 4 | (not board.floppy_boot_check)
    cmos[0x3D] = second << 4 | first
    cmos[0x5F] = len(board.cpus) - 1
    _floppies(board, cmos)
    _disks(board, cmos)


def check_order(order: str) -> None:
    """Raises QobraError for letters of devices that a PC does not boot from."""
    if len(order) > 3:
        raise QobraError("Too many boot devices for PC")
    for letter in order:
        if letter not in BOOT_DEVICES:
            raise QobraError(f"Invalid boot device for PC: '{letter}'")


def _memory(board: PcBoard, cmos: bytearray) -> None:
    base, extended = 640, min(max(board.low_memory - (1 << 20), 0) >> 10, 0xFFFF)
    above = min(max(board.low_memory - (16 << 20), 0) >> 16, 0xFFFF)
    high = max(board.ram_size - board.low_memory, 0) >> 16
    for index, size, value in ((0x15, 2, base), (0x17, 2, extended), (0x30, 2, extended), (0x34, 2, above)):
        cmos[index : index + size] = value.to_bytes(size, "little")
    cmos[0x5B:0x5E] = (high & 0xFFFFFF).to_bytes(3, "little")


def _floppies(board: PcBoard, cmos: bytearray) -> None:
    bus = board.fdc.floppies if board.fdc is not None else None
    drives = [bus.drive(number) for number in (0, 1)] if bus is not None else [None, None]
    first, second = (_FLOPPY_TYPES.get(each.drive_type, 0) if each is not None else 0 for each in drives)
    count = bool(first) + bool(second)
    cmos[_FLOPPIES] = first << 4 | second
    cmos[_EQUIPMENT] = _FPU | _POINTER | (_FLOPPY | count - 1 << 6 if count else 0)


def _disks(board: PcBoard, cmos: bytearray) -> None:
    disks = _ide_disks(board)
    cmos[_DISK_TYPES] = (0xF0 if disks[0] else 0) | (0x0F if disks[1] else 0)
    for disk, (type_cell, first) in zip(disks, _PLACES, strict=False):
        cmos[type_cell] = _USER_DEFINED if disk else 0
        cmos[first : first + 9] = _geometry(disk) if disk else bytes(9)
    cmos[_TRANSLATIONS] = sum(_TRANSLATION_CODES[disk.translation] << 2 * i for i, disk in enumerate(disks) if disk)


def _ide_disks(board: PcBoard) -> list[Any]:
    """The disks of the four places of the two channels, None where there is none."""
    if board.ide is None or board.ide_units != 2:
        return [None] * 4
    units = [bus.unit(number) for bus in board.ide.buses() for number in (0, 1)]
    return [unit if unit is not None and unit.implements("ide-hd") else None for unit in units]


def _geometry(disk: Any) -> bytes:
    cylinders, heads, sectors = disk.geometry
    low_high: bytes = cylinders.to_bytes(2, "little")
    return low_high + bytes((heads, 0xFF, 0xFF, 0xC0 | (heads > 8) << 3)) + low_high + bytes((sectors,))

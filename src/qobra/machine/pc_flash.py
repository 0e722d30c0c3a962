"""Firmware in flash: what ``-drive if=pflash`` shows below 4 GiB of a PC, and in the ISA area below 1 MiB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.device.cfi_pflash01 import Pflash

if TYPE_CHECKING:
    from qobra.machine.drive import DriveInfo
    from qobra.machine.pc import PcBoard

_TOP, _SECTOR, _LIMIT = 1 << 32, 4096, 8 << 20
_UNITS = 2


def plug(board: PcBoard, drives: list[DriveInfo]) -> None:
    """Put flash banks for drives 0 and 1 below each other, from 4 GiB down. Raises QobraError for their sizes."""
    places = {drive.index: drive for drive in drives if drive.interface == "pflash" and drive.index < _UNITS}
    base = _TOP
    for index, drive in sorted(places.items()):
        name, size = drive.backend.name, drive.backend.length
        if not size or size % _SECTOR:
            raise QobraError(
                f"system firmware block device {name} has invalid size {size}",
                hint=f"its size must be a non-zero multiple of 0x{_SECTOR:x}",
            )
        if _TOP - base + size > _LIMIT:
            raise QobraError(f"combined size of system firmware exceeds {_LIMIT} bytes")
        base -= size
        bank: Any = Pflash(board.tree)
        bank.base = base
        bank.values |= {"num-blocks": size // _SECTOR, "sector-length": _SECTOR, "width": 1}
        bank.set("drive", name)
        drive.claimed = True
        if index == 0:
            board.bios_mapping.remove()
        board.place(bank, f"system.flash{index}")
        if index == 0:
            board.show_firmware(bank.flash.view)

"""Firmware in flash: what ``-drive if=pflash`` shows below 4 GiB of a PC, and in the ISA area below 1 MiB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.device.cfi_pflash01 import Pflash

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

_TOP, _SECTOR, _LIMIT = 1 << 32, 4096, 8 << 20


def plug(board: PcBoard, images: dict[int, str]) -> None:
    """Put the flash banks below each other, from 4 GiB down. Raises QobraError for their sizes."""
    base = _TOP
    for index, name in sorted(images.items()):
        bank: Any = Pflash(board.tree)
        bank.set("drive", name)
        size = bank.backend.length
        if not size or size % _SECTOR:
            raise QobraError(
                f"system firmware block device {name} has invalid size {size}",
                hint=f"its size must be a non-zero multiple of 0x{_SECTOR:x}",
            )
        if _TOP - base + size > _LIMIT:
            raise QobraError(f"combined size of system firmware exceeds {_LIMIT} bytes")
        base -= size
        bank.base = base
        bank.values |= {"num-blocks": size // _SECTOR, "sector-length": _SECTOR, "width": 1}
        if index == 0:
            board.bios_mapping.remove()
        board.place(bank, f"system.flash{index}")
        if index == 0:
            board.show_firmware(bank.flash.view)

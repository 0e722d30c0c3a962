"""What a target answers in the name of logical units that it has not (SPC-4, sections 6.4 and 6.39)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.scsi.opcodes import INQUIRY, REPORT_LUNS, REQUEST_SENSE, TEST_UNIT_READY
from qobra.machine.scsi.sense import INVALID_FIELD, INVALID_OPCODE, LUN_NOT_SUPPORTED, NO_SENSE, Sense

if TYPE_CHECKING:
    from qobra.machine.scsi.bus import ScsiDevice

_NOTHING_HERE, _COULD_BE_HERE = 0x3F, 0x7F
"""Peripheral qualifiers 1 and 3, of no known device type."""
_PAGES, _OBSOLETE = 0x1, 0x2
_INQUIRY_BYTES = 36


def answer(unit: ScsiDevice, lun: int, cdb: bytes) -> bytes:
    """The data that ``cdb`` returns for ``lun``, of whose target ``unit`` is a unit. Raises Sense.

    Number 0 is that of the target itself, which knows a few commands.
    """
    code = cdb[0]
    if code == INQUIRY:
        return _inquiry(lun, cdb)
    if code == REQUEST_SENSE:
        sense = unit.last_sense or Sense(NO_SENSE, 0) if not lun else Sense(*LUN_NOT_SUPPORTED)
        return sense.data()[: cdb[4]]
    if lun:
        raise Sense(*LUN_NOT_SUPPORTED)
    if code == REPORT_LUNS:
        return unit.scsi_bus.report_luns(unit.scsi_id, cdb)
    if code != TEST_UNIT_READY:
        raise Sense(*INVALID_OPCODE)
    return b""


def _inquiry(lun: int, cdb: bytes) -> bytes:
    room = int.from_bytes(cdb[3:5], "big")
    if cdb[1] & _OBSOLETE or cdb[2]:
        raise Sense(*INVALID_FIELD)
    kind = _COULD_BE_HERE if lun else _NOTHING_HERE
    if cdb[1] & _PAGES:
        return bytes((kind, 0, 0, 1, 0))[:room]  # the list of pages, with nothing but itself
    if lun:
        return bytes((kind,)).ljust(_INQUIRY_BYTES, b"\0")[:room]
    length = min(room, _INQUIRY_BYTES)
    head = bytes((kind, 0, 5, 0x12, max(0, length - 5), 0, 0, 0x12))
    return (head + b"QEMU".ljust(8) + b"QEMU TARGET".ljust(16) + b"2.5\0")[:room]

"""How much a command transfers, and which way, as its command block says (SPC-4, SBC-3, MMC-6)."""

from __future__ import annotations

from qobra.machine.scsi.disk import (
    MODE_SELECT,
    MODE_SELECT_10,
    PREVENT_REMOVAL,
    READ,
    READ_CAPACITY,
    RELEASE,
    RELEASE_10,
    RESERVE,
    RESERVE_10,
    REZERO,
    SEEK_10,
    SEND_DIAGNOSTIC,
    START_STOP,
    SYNCHRONIZE,
    SYNCHRONIZE_16,
    UNMAP,
    VERIFY,
    WRITE,
    WRITE_SAME,
    WRITE_SAME_16,
    block_range,
)

NONE, TO_HOST, TO_DEVICE = "none", "to host", "to device"

_SILENT = frozenset(
    (0x00, REZERO, START_STOP, PREVENT_REMOVAL, SYNCHRONIZE, SYNCHRONIZE_16, RESERVE, RELEASE)
    + (RESERVE_10, RELEASE_10, SEEK_10, 0xBB, 0xA6, *VERIFY)
)
_SENT = frozenset((MODE_SELECT, MODE_SELECT_10, UNMAP, SEND_DIAGNOSTIC, WRITE_SAME, WRITE_SAME_16, *WRITE))
_INQUIRY, _MECHANISM_STATUS, _READ_DVD = 0x12, 0xBD, 0xAD


def expected(cdb: bytes, block: int) -> tuple[str, int]:
    """The direction and the number of bytes of a command for a unit with blocks of ``block`` bytes."""
    code = cdb[0]
    if code in _SILENT:
        return NONE, 0
    if code in READ or code in WRITE:
        length = block_range(cdb)[1] * block
    elif code in (WRITE_SAME, WRITE_SAME_16):
        length = 0 if cdb[1] & 1 else block
    elif code == READ_CAPACITY:
        length = 8
    elif code == _INQUIRY:
        length = int.from_bytes(cdb[3:5], "big")
    elif code in (_MECHANISM_STATUS, _READ_DVD):
        length = int.from_bytes(cdb[8:10], "big")
    else:
        length = _allocation(cdb)
    if not length:
        return NONE, 0
    return (TO_DEVICE if code in _SENT else TO_HOST), length


def _allocation(cdb: bytes) -> int:
    group = cdb[0] >> 5
    if group == 0:
        return cdb[4]
    if group in (1, 2):
        return int.from_bytes(cdb[7:9], "big")
    if group == 4:
        return int.from_bytes(cdb[10:14], "big")
    return int.from_bytes(cdb[6:10], "big") if group == 5 else 0

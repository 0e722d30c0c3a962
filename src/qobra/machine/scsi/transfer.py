"""How much a command transfers, and which way, as its command block says (SPC-4, SBC-3, MMC-6)."""

from __future__ import annotations

from qobra.machine.scsi.opcodes import (
    FORMAT_UNIT,
    MODE_SELECT,
    MODE_SELECT_10,
    PREVENT_REMOVAL,
    READ,
    READ_CAPACITY,
    RELEASE,
    RESERVE,
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
)

NONE, TO_HOST, TO_DEVICE = "none", "to host", "to device"

_SILENT = frozenset(
    (0x00, REZERO, START_STOP, PREVENT_REMOVAL, SYNCHRONIZE, SYNCHRONIZE_16, RESERVE, RELEASE, SEEK_10, 0xBB)
    # Commands of tapes, changers and defects, and those that look for data or lock caches.
    + (0x0B, 0x10, 0x11, 0x19, 0x33, 0x34, 0x36, 0x3D, 0x3F, 0x53, 0x80, 0x82, 0x85, 0x90, 0x92, 0xA1, 0xA7)
)
_SENT = frozenset(
    (MODE_SELECT, MODE_SELECT_10, UNMAP, SEND_DIAGNOSTIC, WRITE_SAME, WRITE_SAME_16, *WRITE, *VERIFY)
    # Commands that copy, search, write buffers and long blocks, select logs, send cues and reserve.
    + (0x07, 0x18, 0x24, 0x30, 0x31, 0x32, 0x38, 0x39, 0x3A, 0x3B, 0x40, 0x4C, 0x5D, 0x5F, 0xB0, 0xB1, 0xB2, 0xB6, 0xBF)
)
_INQUIRY, _RECEIVE_DIAGNOSTIC, _MECHANISM_STATUS, _READ_DVD = 0x12, 0x1C, 0xBD, 0xAD
_WRITE_BUFFER, _READ_BUFFER = 0x3B, 0x3C
_REPORT_KEY, _SEND_KEY = 0xA3, 0xA4
_CD_BLOCK = 2048
_DEFECTS_FOLLOW, _COMPARE = 0x10, 0x02


def expected(cdb: bytes, block: int) -> tuple[str, int]:
    """The direction and the number of bytes of a command for a unit with blocks of ``block`` bytes."""
    code = cdb[0]
    if code in _SILENT:
        return NONE, 0
    if code in READ or code in WRITE or (code in VERIFY and cdb[1] & _COMPARE):
        length = block_range(cdb)[1] * block
    elif code == FORMAT_UNIT:
        return _format_list(cdb, block)
    elif code in VERIFY:
        length = 0
    elif code in (WRITE_SAME, WRITE_SAME_16):
        length = 0 if cdb[1] & 1 else block
    elif code == READ_CAPACITY:
        length = 8
    elif code in (_INQUIRY, _RECEIVE_DIAGNOSTIC):
        length = int.from_bytes(cdb[3:5], "big")
    elif code in (_WRITE_BUFFER, _READ_BUFFER):
        length = int.from_bytes(cdb[6:9], "big")
    elif code in (_MECHANISM_STATUS, _READ_DVD) or (code in (_REPORT_KEY, _SEND_KEY) and block == _CD_BLOCK):
        length = int.from_bytes(cdb[8:10], "big")
    else:
        length = _allocation(cdb)
    if not length:
        return NONE, 0
    return (TO_DEVICE if code in _SENT else TO_HOST), length


def _format_list(cdb: bytes, block: int) -> tuple[str, int]:
    # FORMAT UNIT is followed by a list only if it says so: its header, and a descriptor where the medium is a CD.
    if not cdb[1] & _DEFECTS_FOLLOW:
        return NONE, 0
    return TO_DEVICE, 12 if block == _CD_BLOCK else 4


def _allocation(cdb: bytes) -> int:
    group = cdb[0] >> 5
    if group == 0:
        return cdb[4]
    if group in (1, 2):
        return int.from_bytes(cdb[7:9], "big")
    if group == 4:
        return int.from_bytes(cdb[10:14], "big")
    return int.from_bytes(cdb[6:10], "big") if group == 5 else 0


def block_range(cdb: bytes) -> tuple[int, int]:
    """The first block and the number of blocks of a command, by its length group."""
    group = cdb[0] >> 5
    if group == 0:
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    if group in (1, 2):
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
    if group == 5:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big")
    return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")

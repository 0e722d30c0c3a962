"""Answers of CD and DVD drives that do not depend on the way to the drive (MMC-6): tables of contents, profiles, ..."""

from __future__ import annotations

from collections.abc import Callable

from qobra.machine.scsi import sense
from qobra.machine.scsi.sense import Sense

SECTOR, RAW_SECTOR = 2048, 2352
_CD_MAX_SECTORS = 80 * 60 * 75
_PROFILE_CD, _PROFILE_DVD = 0x0008, 0x0010


def toc(cdb: bytes, sectors: int, form: int) -> bytes:
    """READ TOC of a medium of ``sectors`` with one data track, in the format ``form``. Raises Sense."""
    in_time, first = bool(cdb[1] & 2), cdb[6]
    length = int.from_bytes(cdb[7:9], "big")
    if form == 0:
        if first > 1 and first != 0xAA:
            raise Sense(*sense.INVALID_FIELD)
        body = bytes((1, 1))
        if first <= 1:
            body += bytes((0, 0x14, 1, 0)) + _where(0, in_time)
        body += bytes((0, 0x16, 0xAA, 0)) + _where(sectors, in_time)
    elif form == 1:
        body = bytes((1, 1)) + bytes(8)  # one session, which begins where the medium does
    elif form == 2:
        body = bytes((1, 1))
        for point, tail in ((0xA0, b"\0\1\0\0"), (0xA1, b"\0\1\0\0"), (0xA2, _where(sectors, in_time))):
            body += bytes((1, 0x14, 0, point, 0, 0, 0)) + tail
        body += bytes((1, 0x14, 0, 1, 0, 0, 0)) + _where(0, in_time)
    else:
        raise Sense(*sense.INVALID_FIELD)
    return (len(body).to_bytes(2, "big") + body)[:length]


def configuration(cdb: bytes, sectors: int, *, whole: bool = True) -> bytes:
    """GET CONFIGURATION; ``sectors`` is 0 without a medium. Only ``whole`` tells more than profiles. Raises Sense."""
    if cdb[1] & 0x03 > 2:
        raise Sense(*sense.INVALID_FIELD)
    current = (_PROFILE_DVD if sectors > _CD_MAX_SECTORS else _PROFILE_CD) if sectors else 0
    profiles = b"".join(p.to_bytes(2, "big") + bytes((int(p == current), 0)) for p in (_PROFILE_DVD, _PROFILE_CD))
    body = bytes((0, 0, 0x03, len(profiles))) + profiles
    if whole:
        body += bytes((0, 1, 0x0B, 8, 0, 0, 0, 1, 1, 0, 0, 0))
        body += bytes((0, 3, 0x0B, 4, 0x39, 0, 0, 0))
    answer = (len(body) + 4).to_bytes(4, "big") + bytes(2) + current.to_bytes(2, "big") + body
    return answer[: int.from_bytes(cdb[7:9], "big")]


def event_status(cdb: bytes, take_event: Callable[[], tuple[int, int]]) -> bytes:
    """GET EVENT STATUS NOTIFICATION; ``take_event()`` gives event and state when media are asked for. Raises Sense."""
    if not cdb[1] & 1:
        raise Sense(*sense.INVALID_FIELD)  # only polling
    length = int.from_bytes(cdb[7:9], "big")
    if not cdb[4] & 0x10:
        return bytes((0, 0, 0x80, 0x10))[:length]
    event, state = take_event()
    return bytes((0, 4, 4, 0x10, event, state, 0, 0))[:length]


def disc_information(cdb: bytes) -> bytes:
    """READ DISC INFORMATION of a finished disc with one session. Raises Sense."""
    if cdb[1] & 7:
        raise Sense(*sense.INVALID_FIELD)
    answer = bytearray(34)
    answer[1], answer[2] = 32, 0x0E
    answer[3] = answer[4] = answer[5] = answer[6] = 1
    answer[7] = 0x20
    return bytes(answer)[: int.from_bytes(cdb[7:9], "big")]


def dvd_structure(cdb: bytes, sectors: int) -> bytes:
    """READ DVD STRUCTURE: the physical format. Raises Sense."""
    if sectors <= _CD_MAX_SECTORS:
        raise Sense(sense.ILLEGAL_REQUEST, 0x30, 0x00)  # not this kind of medium
    if cdb[7] != 0 or cdb[6] or cdb[1]:
        raise Sense(*sense.INVALID_FIELD)
    body = bytearray(2048)
    body[0:4] = bytes((1, 15, 1, 0))
    body[5:8] = (0x30000).to_bytes(3, "big")
    body[9:12] = (sectors - 1).to_bytes(3, "big")
    return ((len(body) + 2).to_bytes(2, "big") + bytes(2) + bytes(body))[: int.from_bytes(cdb[8:10], "big")]


def mechanism_status(cdb: bytes) -> bytes:
    """MECHANISM STATUS of a drive without a changer."""
    return bytes((0, 0, 0, 0, 0, 1, 0, 0))[: int.from_bytes(cdb[8:10], "big")]


def read_cd_range(cdb: bytes, sectors: int) -> tuple[int, int]:
    """READ CD: the first sector and how many; none where no user data are asked for. Raises Sense."""
    block, count = int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:9], "big")
    kind = cdb[9] & 0xF8
    if not count or not kind:
        return block, 0
    if kind not in (0x10, 0xF8):
        raise Sense(*sense.INVALID_FIELD)
    if block + count > sectors:
        raise Sense(*sense.LBA_OUT_OF_RANGE)
    return block, count


def raw_sector(sector: int, data: bytes) -> bytes:
    """A frame of 2352 bytes as on the disc: synchronization, address, mode 1, the data; nothing to correct errors."""
    frames = sector + 150
    address = bytes((frames // 75 // 60 & 0xFF, frames // 75 % 60, frames % 75))
    return b"\0" + b"\xff" * 10 + b"\0" + address + b"\x01" + data.ljust(SECTOR, b"\0") + bytes(288)


def _where(sector: int, in_time: bool) -> bytes:
    if not in_time:
        return (sector & 0xFFFFFFFF).to_bytes(4, "big")
    frames = sector + 150
    return bytes((0, frames // 75 // 60 & 0xFF, frames // 75 % 60, frames % 75))

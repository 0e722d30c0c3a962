"""The multimedia commands of CD and DVD drives (MMC-6), for SCSI and for packets over ATA alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.scsi import sense
from qobra.machine.scsi.disk import ScsiDisk
from qobra.machine.scsi.sense import Sense

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend

READ_TOC, GET_CONFIGURATION, GET_EVENT_STATUS, READ_DISC_INFORMATION = 0x43, 0x46, 0x4A, 0x51
MECHANISM_STATUS, READ_DVD_STRUCTURE, READ_CD, SET_CD_SPEED = 0xBD, 0xAD, 0xBE, 0xBB
SECTOR = 2048
_CD_MAX_SECTORS = 80 * 60 * 75
_PROFILE_CD, _PROFILE_DVD = 0x0008, 0x0010


class CdDrive(ScsiDisk):
    """A CD and DVD drive with a tray."""

    type_name = "scsi-cd-base"
    abstract = True
    peripheral_type = 5
    default_product = "QEMU CD-ROM"
    is_removable = True
    has_tray = True

    # A medium that is only read is not unmapped, and turns as it likes.
    max_unmap_size = None
    rotation_rate = None

    _media_event = 0
    _eject_requested = False

    # -- the tray

    def medium(self) -> BlockBackend:
        if self.tray_open:
            raise Sense(*sense.NO_MEDIUM_TRAY_OPEN)
        return super().medium()

    def eject_request(self, force: bool) -> None:
        self._eject_requested = True
        if force:
            self.medium_locked = False

    def move_tray(self, opened: bool) -> None:
        self.tray_open = opened
        self._media_event = 3 if opened else 2

    def medium_changed(self) -> None:
        self.tray_open = False if self.backend is not None and self.backend.node is not None else self.tray_open
        self._eject_requested = False
        if self.backend is not None and self.backend.node is not None:
            self._media_event = 2
            self.attention = sense.MEDIUM_CHANGED

    def start_stop(self, cdb: bytes) -> bytes:
        if cdb[4] & 2 and not cdb[4] >> 4:
            opening = not cdb[4] & 1
            if opening and self.medium_locked and not self.tray_open:
                raise Sense(*sense.REMOVAL_PREVENTED)
            if opening != self.tray_open:
                self._guest_moves_tray(opening)
        return b""

    def _guest_moves_tray(self, opened: bool) -> None:
        from qobra.block.media import tell_tray

        self.tray_open = opened
        backend = self.backend
        if backend is not None:
            self.machine.control.post(lambda: tell_tray(backend, opened=opened))

    def prevent_removal(self, cdb: bytes) -> bytes:
        self.medium_locked = bool(cdb[4] & 1)
        return b""

    # -- commands

    def other_command(self, cdb: bytes, data: bytes) -> bytes:
        commands: dict[int, Callable[[bytes], bytes]] = {
            READ_TOC: self._read_toc,
            GET_CONFIGURATION: self._get_configuration,
            GET_EVENT_STATUS: self._event_status,
            READ_DISC_INFORMATION: self._disc_information,
            MECHANISM_STATUS: lambda cdb: bytes((0, 0, 0, 0, 0, 1, 0, 0))[: int.from_bytes(cdb[8:10], "big")],
            READ_DVD_STRUCTURE: self._dvd_structure,
            SET_CD_SPEED: lambda _cdb: b"",
            READ_CD: self._read_cd,
        }
        call = commands.get(cdb[0])
        if call is None:
            return super().other_command(cdb, data)
        return call(cdb)

    def mode_pages(self) -> dict[int, bytes]:
        capabilities = bytearray(20)
        capabilities[0], capabilities[1], capabilities[2], capabilities[3] = 0x3B, 0x00, 0x7F, 0xFF
        capabilities[4] = 0x2D | (0x02 if self.medium_locked else 0)
        capabilities[6:8] = (50 * 176).to_bytes(2, "big")
        capabilities[8:10] = (2).to_bytes(2, "big")
        capabilities[10:12] = (2048).to_bytes(2, "big")
        capabilities[12:14] = (16 * 176).to_bytes(2, "big")
        capabilities[16:18] = (16 * 176).to_bytes(2, "big")
        capabilities[18:20] = (16 * 176).to_bytes(2, "big")
        # Retries on reading; no audio is played.
        return super().mode_pages() | {0x01: bytes((0x80, 0x20)) + bytes(8), 0x0E: bytes(14), 0x2A: bytes(capabilities)}

    @property
    def _sectors(self) -> int:
        return self.backend.length // SECTOR if self.backend is not None else 0

    def _read_toc(self, cdb: bytes) -> bytes:
        self.medium()
        in_time, form, first = bool(cdb[1] & 2), cdb[2] & 0x0F, cdb[6]
        form = form or cdb[9] >> 6
        length = int.from_bytes(cdb[7:9], "big")
        if form == 0:
            if first > 1 and first != 0xAA:
                raise Sense(*sense.INVALID_FIELD)
            body = bytes((1, 1))
            if first <= 1:
                body += bytes((0, 0x14, 1, 0)) + _where(0, in_time)
            body += bytes((0, 0x16, 0xAA, 0)) + _where(self._sectors, in_time)
        elif form == 1:
            body = bytes((1, 1, 0, 0x14, 1, 0)) + _where(0, in_time)
        elif form == 2:
            body = bytes((1, 1))
            for point, tail in ((0xA0, b"\0\1\0\0"), (0xA1, b"\0\1\0\0"), (0xA2, _where(self._sectors, in_time))):
                body += bytes((1, 0x14, 0, point, 0, 0, 0)) + tail
            body += bytes((1, 0x14, 0, 1, 0, 0, 0)) + _where(0, in_time)
        else:
            raise Sense(*sense.INVALID_FIELD)
        return (len(body).to_bytes(2, "big") + body)[:length]

    def _get_configuration(self, cdb: bytes) -> bytes:
        if cdb[1] & 0x03 > 2:
            raise Sense(*sense.INVALID_FIELD)
        present = self.backend is not None and self.backend.node is not None and not self.tray_open
        current = 0
        if present:
            current = _PROFILE_DVD if self._sectors > _CD_MAX_SECTORS else _PROFILE_CD
        profiles = b"".join(p.to_bytes(2, "big") + bytes((int(p == current), 0)) for p in (_PROFILE_DVD, _PROFILE_CD))
        body = bytes((0, 0, 0x03, len(profiles))) + profiles
        body += bytes((0, 1, 0x0B, 8, 0, 0, 0, 1, 1, 0, 0, 0))
        body += bytes((0, 3, 0x03, 4, 0x29, 0, 0, 0))
        answer = (len(body) + 4).to_bytes(4, "big") + bytes(2) + current.to_bytes(2, "big") + body
        return answer[: int.from_bytes(cdb[7:9], "big")]

    def _event_status(self, cdb: bytes) -> bytes:
        if not cdb[1] & 1:
            raise Sense(*sense.INVALID_FIELD)  # only polling
        length = int.from_bytes(cdb[7:9], "big")
        if not cdb[4] & 0x10:
            return bytes((0, 2, 0x80, 0x10))[:length]
        event, self._media_event = self._media_event, 0
        if self._eject_requested:
            event, self._eject_requested = 1, False
        state = (1 if self.tray_open else 0) | (2 if self.backend is not None and self.backend.node is not None else 0)
        return bytes((0, 6, 4, 0x10, event, state, 0, 0))[:length]

    def _disc_information(self, cdb: bytes) -> bytes:
        self.medium()
        if cdb[1] & 7:
            raise Sense(*sense.INVALID_FIELD)
        answer = bytearray(34)
        answer[1], answer[2] = 32, 0x0E
        answer[3] = answer[4] = answer[5] = answer[6] = 1
        answer[7] = 0x20
        return bytes(answer)[: int.from_bytes(cdb[7:9], "big")]

    def _dvd_structure(self, cdb: bytes) -> bytes:
        self.medium()
        if cdb[7] != 0 or cdb[6] or cdb[1]:
            raise Sense(*sense.INVALID_FIELD)
        if self._sectors <= _CD_MAX_SECTORS:
            raise Sense(sense.ILLEGAL_REQUEST, 0x30, 0x00)  # not this kind of medium
        body = bytearray(2048)
        body[0:4] = bytes((1, 15, 1, 0))
        body[5:8] = (0x30000).to_bytes(3, "big")
        body[9:12] = (self._sectors - 1).to_bytes(3, "big")
        return ((len(body) + 2).to_bytes(2, "big") + bytes(2) + bytes(body))[: int.from_bytes(cdb[8:10], "big")]

    def _read_cd(self, cdb: bytes) -> bytes:
        block, count = int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:9], "big")
        backend = self.medium()
        if not count:
            return b""
        if block + count > self._sectors:
            raise Sense(*sense.LBA_OUT_OF_RANGE)
        if cdb[9] & 0xF8 == 0x10:
            return backend.read(block * SECTOR, count * SECTOR)
        if not cdb[9] & 0xF8:
            return b""
        raise Sense(*sense.INVALID_FIELD)


def _where(sector: int, in_time: bool) -> bytes:
    if not in_time:
        return sector.to_bytes(4, "big")
    frames = sector + 150
    return bytes((0, frames // 75 // 60 & 0xFF, frames // 75 % 60, frames % 75))

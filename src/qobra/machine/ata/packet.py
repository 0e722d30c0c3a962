"""The packet commands of a CD drive, as far as they can be answered at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.scsi import mmc, sense
from qobra.machine.scsi.sense import Sense

if TYPE_CHECKING:
    from qobra.machine.ata.atapi import PacketDevice

TEST_UNIT_READY, REQUEST_SENSE, INQUIRY, START_STOP, PREVENT_REMOVAL = 0x00, 0x03, 0x12, 0x1B, 0x1E
READ_CAPACITY, READ_10, SEEK, READ_TOC, GET_CONFIGURATION, GET_EVENT_STATUS = 0x25, 0x28, 0x2B, 0x43, 0x46, 0x4A
READ_DISC_INFORMATION, MODE_SENSE, READ_12, READ_DVD_STRUCTURE = 0x51, 0x5A, 0xA8, 0xAD
SET_SPEED, MECHANISM_STATUS, READ_CD = 0xBB, 0xBD, 0xBE

_IN_SPITE_OF_ATTENTION = frozenset((REQUEST_SENSE, INQUIRY, GET_CONFIGURATION, GET_EVENT_STATUS))
_NEED_MEDIUM = frozenset(
    (TEST_UNIT_READY, READ_CAPACITY, READ_10, SEEK, READ_TOC, READ_DISC_INFORMATION, READ_12, READ_DVD_STRUCTURE)
    + (READ_CD,)
)
_WITHOUT_DATA = frozenset((TEST_UNIT_READY, START_STOP, PREVENT_REMOVAL, SEEK, SET_SPEED, READ_10, READ_12, READ_CD))


class NoRoom(Exception):
    """The host takes no bytes by PIO, but the command has some: refused as an ATA command."""


class AttentionWaits(Exception):
    """The guest has yet to ask why the last command failed, which was to tell it something."""


class ReadSectors:
    """The answer to a command is on the medium: ``count`` sectors from ``sector`` on.

    ``raw``: with the frames around their 2048 bytes.
    """

    __slots__ = ("count", "raw", "sector")

    def __init__(self, sector: int, count: int, *, raw: bool = False) -> None:
        self.sector = sector
        self.count = count
        self.raw = raw


class PacketCommands:
    """The commands of one drive."""

    def __init__(self, drive: PacketDevice) -> None:
        self._drive = drive
        self._handlers: dict[int, Callable[[bytes], bytes | ReadSectors | None]] = {
            TEST_UNIT_READY: lambda _cdb: None,
            REQUEST_SENSE: self._request_sense,
            INQUIRY: self._inquiry,
            START_STOP: self._start_stop,
            PREVENT_REMOVAL: self._prevent_removal,
            READ_CAPACITY: self._read_capacity,
            READ_10: self._read,
            READ_12: self._read,
            SEEK: self._seek,
            READ_TOC: lambda cdb: mmc.toc(cdb, drive.sectors, cdb[9] >> 6),  # where it was before MMC-2
            GET_CONFIGURATION: lambda cdb: mmc.configuration(cdb, drive.sectors if drive.loaded else 0, whole=False),
            GET_EVENT_STATUS: lambda cdb: mmc.event_status(cdb, drive.take_media_event),
            READ_DISC_INFORMATION: mmc.disc_information,
            MODE_SENSE: self._mode_sense,
            READ_DVD_STRUCTURE: lambda cdb: mmc.dvd_structure(cdb, drive.sectors),
            SET_SPEED: lambda _cdb: None,
            MECHANISM_STATUS: mmc.mechanism_status,
            READ_CD: self._read_cd,
        }

    def execute(self, cdb: bytes) -> bytes | ReadSectors | None:
        """What the command gives: data, where they are, or None. Raises Sense, NoRoom and AttentionWaits."""
        drive, code = self._drive, cdb[0]
        if code not in _IN_SPITE_OF_ATTENTION:
            failure = drive.failure
            if failure is not None and failure.key == sense.UNIT_ATTENTION:
                raise AttentionWaits
            if drive.loaded and drive.changed:
                # A guest that does not poll for events sees the medium go first and then another one.
                first, drive.changed = drive.changed == 1, 2 if drive.changed == 1 else 0
                raise Sense(*(sense.NO_MEDIUM if first else sense.MEDIUM_CHANGED))
        if code in _NEED_MEDIUM and not drive.loaded:
            raise Sense(*sense.NO_MEDIUM)
        handler = self._handlers.get(code)
        if handler is None:
            raise Sense(*sense.INVALID_OPCODE)
        if code not in _WITHOUT_DATA and not drive.moves_by_dma and not drive.byte_limit:
            raise NoRoom
        return handler(cdb)

    def _request_sense(self, cdb: bytes) -> bytes:
        drive = self._drive
        failure = drive.failure
        if failure is not None and failure.key == sense.UNIT_ATTENTION:
            drive.failure = Sense(sense.NO_SENSE, failure.code)  # is told once, but for its code
        data = bytearray((failure or Sense(0, 0)).data())
        data[0] |= 0x80
        return bytes(data)[: cdb[4]]

    def _inquiry(self, cdb: bytes) -> bytes:
        drive, length = self._drive, cdb[4]
        if cdb[1] & 1:
            return self._vital_data(cdb[2])[:length]
        if cdb[2]:
            raise Sense(*sense.INVALID_FIELD)
        answer = bytes((0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0)) + b"QEMU".ljust(8) + b"QEMU DVD-ROM".ljust(16)
        return (answer + (drive.ver or "").encode("ascii", "replace")[:4].ljust(4))[:length]

    def _vital_data(self, page: int) -> bytes:
        drive = self._drive
        if page == 0x00:
            body = bytes((0x00, 0x83))
        elif page == 0x83:
            # The serial number as a vendor's text, the model as T10's, and the world-wide name.
            serial = drive.serial_text.encode("ascii", "replace")[:20].ljust(20)
            body = bytes((0x02, 0x00, 0, len(serial))) + serial
            model = b"ATA     " + (drive.model or drive.default_model).encode("ascii", "replace")[:40].ljust(40)
            model += serial
            body += bytes((0x02, 0x01, 0, len(model))) + model
            if drive.wwn:
                body += bytes((0x01, 0x03, 0, 8)) + drive.wwn.to_bytes(8, "big")
        else:
            raise Sense(*sense.INVALID_FIELD)
        return bytes((0x05, page)) + len(body).to_bytes(2, "big") + body

    def _start_stop(self, cdb: bytes) -> None:
        drive = self._drive
        if cdb[4] & 0xF0 or not cdb[4] & 2:
            return
        opening = not cdb[4] & 1
        if opening and not drive.tray_open and drive.medium_locked:
            inserted = drive.backend is not None and drive.backend.node is not None
            raise Sense(sense.NOT_READY if inserted else sense.ILLEGAL_REQUEST, 0x53)
        drive.guest_moves_tray(opening)

    def _prevent_removal(self, cdb: bytes) -> None:
        self._drive.medium_locked = bool(cdb[4] & 1)

    def _read_capacity(self, _cdb: bytes) -> bytes:
        return max(self._drive.sectors - 1, 0).to_bytes(4, "big") + mmc.SECTOR.to_bytes(4, "big")

    def _read(self, cdb: bytes) -> ReadSectors | None:
        sector = int.from_bytes(cdb[2:6], "big")
        count = int.from_bytes(cdb[7:9] if cdb[0] == READ_10 else cdb[6:10], "big")
        return self._sectors(sector, count)

    def _sectors(self, sector: int, count: int, *, raw: bool = False) -> ReadSectors | None:
        drive = self._drive
        if not count:
            return None
        if sector + count > drive.sectors:
            drive.refuse_sectors()
            raise Sense(*sense.LBA_OUT_OF_RANGE)
        if not drive.moves_by_dma and not drive.byte_limit:
            raise NoRoom
        return ReadSectors(sector, count, raw=raw)

    def _read_cd(self, cdb: bytes) -> ReadSectors | None:
        raw = cdb[9] & 0xF8 == 0xF8
        return self._sectors(*mmc.read_cd_range(cdb, self._drive.sectors), raw=raw)

    def _seek(self, cdb: bytes) -> None:
        if int.from_bytes(cdb[2:6], "big") >= self._drive.sectors:
            raise Sense(*sense.LBA_OUT_OF_RANGE)

    def _mode_sense(self, cdb: bytes) -> bytes:
        if cdb[2] >> 6 == 3:
            raise Sense(*sense.SAVING_NOT_SUPPORTED)
        code = cdb[2] & 0x3F
        if cdb[2] >> 6 or code not in (0x01, 0x0E, 0x2A):
            raise Sense(*sense.INVALID_FIELD)
        if code == 0x01:
            page = bytes((0x01, 0x06, 0x00, 0x05)) + bytes(4)
        elif code == 0x0E:
            page = bytes((0x0E, 14)) + bytes(14)
        else:
            body = bytearray(22)
            body[0:2] = 0x2A, 20
            body[2], body[4], body[5] = 0x3B, 0x71, 0x60
            body[6] = 0x29 | (0x02 if self._drive.medium_locked else 0)
            body[8:10] = body[14:16] = (704).to_bytes(2, "big")
            body[11], body[12:14] = 2, (512).to_bytes(2, "big")
            page = bytes(body)
        answer = (len(page) + 6).to_bytes(2, "big") + b"\x70" + bytes(5) + page
        return answer[: int.from_bytes(cdb[7:9], "big")]

"""The multimedia commands of CD and DVD drives (MMC-6) behind SCSI."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.scsi import mmc, sense
from qobra.machine.scsi.mmc import SECTOR
from qobra.machine.scsi.opcodes import (
    GET_CONFIGURATION,
    GET_EVENT_STATUS,
    MECHANISM_STATUS,
    READ_DISC_INFORMATION,
    READ_DVD_STRUCTURE,
)
from qobra.machine.scsi.removable import RemovableDisk
from qobra.machine.scsi.sense import Sense

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend


class CdDrive(RemovableDisk):
    """A CD and DVD drive with a tray."""

    abstract = True
    peripheral_type = 5
    default_product = "QEMU CD-ROM"

    # A medium that is only read is not unmapped, and turns as it likes.
    max_unmap_size = None
    rotation_rate = None

    def writable(self) -> BlockBackend:
        self.medium()
        raise Sense(*sense.WRITE_PROTECTED)  # the node below may be writable, the medium is not

    def device_specific(self) -> int:
        return 0  # MMC has none

    # -- commands

    def other_command(self, cdb: bytes, data: bytes) -> bytes:
        commands: dict[int, Callable[[bytes], bytes]] = {
            GET_CONFIGURATION: lambda cdb: mmc.configuration(cdb, self.sectors if self.loaded else 0),
            GET_EVENT_STATUS: lambda cdb: mmc.event_status(cdb, self.take_media_event),
            READ_DISC_INFORMATION: self._disc_information,
            MECHANISM_STATUS: mmc.mechanism_status,
            READ_DVD_STRUCTURE: self._dvd_structure,
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
    def sectors(self) -> int:
        return self.backend.length // SECTOR if self.backend is not None else 0

    def _disc_information(self, cdb: bytes) -> bytes:
        self.medium()
        return mmc.disc_information(cdb)

    def _dvd_structure(self, cdb: bytes) -> bytes:
        self.medium()
        return mmc.dvd_structure(cdb, self.sectors)

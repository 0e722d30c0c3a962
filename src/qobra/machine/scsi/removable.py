"""Drives behind SCSI whose medium comes and goes: who moves and locks the tray, what the guest hears of it (SBC-3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.scsi import mmc, sense
from qobra.machine.scsi.disk import ScsiDisk
from qobra.machine.scsi.opcodes import READ_TOC
from qobra.machine.scsi.sense import Sense
from qobra.machine.tray import CdTray
from qobra.machine.vmstate import VmState, flag

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend


class RemovableDisk(CdTray, ScsiDisk):
    """A block device with a tray. Where ``is_removable`` is false, the medium stays, and nothing here matters."""

    abstract = True

    _changed = False

    vmstate = VmState(flag("_changed"))

    def medium(self) -> BlockBackend:
        if self.tray_open:
            raise Sense(*sense.NO_MEDIUM)
        return super().medium()

    def tray_moved(self) -> None:
        # A guest that does not poll for events sees the medium go first and then another one.
        self._changed = not self.tray_open
        self.tell(sense.MEDIUM_GONE)

    def attention_reported(self) -> None:
        if self._changed:
            self._changed = False
            self.tell(sense.MEDIUM_CHANGED)

    def reset(self) -> None:
        super().reset()
        self.close_and_unlock()

    def start_stop(self, cdb: bytes) -> bytes:
        if self.is_removable and cdb[4] & 2 and not cdb[4] >> 4:
            opening = not cdb[4] & 1
            if opening and self.medium_locked and not self.tray_open:
                raise Sense(*(sense.REMOVAL_PREVENTED if self.loaded else sense.REMOVAL_PREVENTED_NO_MEDIUM))
            self.guest_moves_tray(opening)
        return b""

    def prevent_removal(self, cdb: bytes) -> bytes:
        self.medium_locked = self.is_removable and bool(cdb[4] & 1)
        return b""

    @property
    def sectors(self) -> int:
        """How many of the units in which a table of contents counts the medium has."""
        return self.blocks

    def other_command(self, cdb: bytes, data: bytes) -> bytes:
        if cdb[0] == READ_TOC:
            self.medium()
            return mmc.toc(cdb, self.sectors, cdb[2] & 0x0F)
        return super().other_command(cdb, data)

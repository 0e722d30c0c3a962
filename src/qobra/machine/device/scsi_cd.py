"""``scsi-cd``: a SCSI CD drive."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.scsi.cdrom import CdDrive
from qobra.machine.scsi.mmc import SECTOR


@registry.register("scsi-cd")
class ScsiCd(CdDrive):
    """A drive behind a SCSI host adapter."""

    type_name = "scsi-cd"
    description = "virtual SCSI CD-ROM"

    def realize(self) -> None:
        self.realize_disk(SECTOR)

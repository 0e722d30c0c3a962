"""``ide-hd``: a disk on an ATA cable, parallel or serial."""

from __future__ import annotations

from qobra.machine.ata.disk import Disk
from qobra.machine.devices import registry
from qobra.object.property import Int


@registry.register("ide-hd")
class IdeHd(Disk):
    """A disk."""

    type_name = "ide-hd"
    description = "virtual IDE disk"

    lcyls = Int(0, type="uint32")
    lheads = Int(0, type="uint32")
    lsecs = Int(0, type="uint32")

    def realize(self) -> None:
        self.realize_disk()

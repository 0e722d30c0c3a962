"""``ide-cd``: a CD and DVD drive on an ATA cable, parallel or serial."""

from __future__ import annotations

from qobra.machine.ata.atapi import PacketDevice
from qobra.machine.devices import registry


@registry.register("ide-cd")
class IdeCd(PacketDevice):
    """A CD drive."""

    type_name = "ide-cd"
    description = "virtual IDE CD-ROM"

    def realize(self) -> None:
        self.realize_drive()

"""``pvscsi``: VMware's paravirtual SCSI adapter."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.pvscsi.adapter import PvScsiAdapter
from qobra.machine.vmstate import VmState


@registry.register("pvscsi")
class PvScsi(PvScsiAdapter):
    """An adapter."""

    type_name = "pvscsi"

    vmstate = VmState()

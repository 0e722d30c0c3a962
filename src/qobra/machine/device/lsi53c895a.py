"""``lsi53c895a``: LSI Logic's SCSI adapter, which managers call ``lsilogic``."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.lsi.adapter import LsiAdapter
from qobra.machine.vmstate import VmState


@registry.register("lsi53c895a")
class Lsi53C895A(LsiAdapter):
    """An adapter."""

    type_name = "lsi53c895a"

    vmstate = VmState()

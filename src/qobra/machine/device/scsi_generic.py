"""``scsi-generic``: a SCSI device of the host, whose commands it carries out itself."""

from __future__ import annotations

from typing import Any

from qobra.machine.blockdev import PlainFrontEnd
from qobra.machine.boot_index import BootIndex
from qobra.machine.devices import registry
from qobra.machine.scsi.passthrough import PassedThrough
from qobra.object.property import Bool, Int


@registry.register("scsi-generic")
class ScsiGeneric(PassedThrough, PlainFrontEnd):
    """A unit that answers nothing itself. Its backend is a ``host_device``."""

    type_name = "scsi-generic"
    description = "pass through generic scsi device (/dev/sg*)"
    lengths_known = False

    share_rw: Any = Bool(False)
    io_timeout = Int(30, type="uint32", name="io_timeout")
    bootindex: Any = BootIndex()

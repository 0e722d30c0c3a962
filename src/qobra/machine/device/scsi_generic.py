"""``scsi-generic``: a SCSI device of the host, whose commands it carries out itself."""

from __future__ import annotations

from typing import Any

from qobra.machine.blockdev import PlainFrontEnd
from qobra.machine.boot_index import BootIndex
from qobra.machine.devices import registry
from qobra.machine.scsi import passthrough
from qobra.machine.scsi.bus import Result, ScsiDevice
from qobra.object.property import Bool, Int


@registry.register("scsi-generic")
class ScsiGeneric(ScsiDevice, PlainFrontEnd):
    """A unit that answers nothing itself. Its backend is a ``host_device``."""

    type_name = "scsi-generic"
    description = "pass through generic scsi device (/dev/sg*)"
    lengths_known = False

    share_rw: Any = Bool(False)
    io_timeout = Int(30, type="uint32", name="io_timeout")
    bootindex: Any = BootIndex()

    def realize(self) -> None:
        backend = self.realize_block()
        self._unit = passthrough.HostUnit(passthrough.find_host_device(backend.node))
        iothread = getattr(self.scsi_bus.owner, "iothread", None)
        if iothread is not None:
            backend.move(iothread)

    def state_blocked(self) -> str | None:
        return "the state of the host's device cannot be moved"

    def carry_out(self, cdb: bytes, data: bytes, room: int) -> Result:
        return self._unit.execute(passthrough.block_of(cdb), data, room, timeout_ms=self.io_timeout * 1000)

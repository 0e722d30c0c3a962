"""``scsi-generic``: a SCSI device of the host, whose commands it carries out itself."""

from __future__ import annotations

from typing import Any

from qobra.machine.blockdev import PlainFrontEnd
from qobra.machine.boot_index import BootIndex
from qobra.machine.devices import registry
from qobra.machine.scsi import passthrough
from qobra.machine.scsi.bus import Result, ScsiDevice
from qobra.machine.scsi.sense import INVALID_OPCODE, Sense
from qobra.object.property import Bool, Int

_LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
"""Bytes of a command block, by the upper three bits of its code."""


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
        length = _LENGTHS.get(cdb[0] >> 5)
        if length is None:
            raise Sense(*INVALID_OPCODE)
        return self._unit.execute(cdb[:length], data, room, timeout_ms=self.io_timeout * 1000)

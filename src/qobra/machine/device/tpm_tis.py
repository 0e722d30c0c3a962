"""``tpm-tis``: a TPM that guests reach by a FIFO, at the place where PCs have it."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.tpm import front_end
from qobra.machine.tpm.ppi import PresenceMemory
from qobra.machine.tpm.tis import Tis
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool, Int

BASE = 0xFED40000


@registry.register("tpm-tis")
class TpmTis(front_end.TpmFrontEnd, IsaDevice):
    """The registers in memory, an ISA interrupt, and the memory of physical presence."""

    type_name = "tpm-tis"
    interfaces = (front_end.INTERFACE, "acpi-dev-aml-interface")
    category = "Misc"
    tpm_model = "tpm-tis"

    irq = Int(5, type="uint32")
    tpmdev = front_end.tpmdev_property()
    ppi = Bool(True)

    vmstate = VmState(part("_tis", "_presence"))

    def realize(self) -> None:
        if self.irq > 15:
            raise QobraError(f"IRQ {self.irq} is outside valid range of 0 to 15")
        self.take_backend()
        self._tis = Tis(self.backend, self.irq, self.line(self.irq).set)
        self._mapping = self.board.memory.map(BASE, self._tis.registers, priority=1)
        self._presence = PresenceMemory(self.board) if self.ppi else None

    def unrealize(self) -> None:
        self._mapping.remove()
        if self._presence is not None:
            self._presence.close()
        self.release_backend()
        super().unrealize()

    def reset(self) -> None:
        if self._presence is not None:
            self._presence.reset()
        front_end.start_backend(self, self.backend)
        self._tis.reset()

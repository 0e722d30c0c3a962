"""``tpm-crb``: a TPM 2.0 that guests reach by a command response buffer."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.qdev import Device
from qobra.machine.tpm import crb, front_end
from qobra.machine.tpm.ppi import PresenceMemory
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool


@registry.register("tpm-crb")
class TpmCrb(front_end.TpmFrontEnd, Device):
    """The registers, at the one place where PCs have them, and the memory of physical presence."""

    type_name = "tpm-crb"
    interfaces = (front_end.INTERFACE,)
    category = "Misc"
    architectures = frozenset(("x86_64",))
    tpm_model = "tpm-crb"

    tpmdev = front_end.tpmdev_property()
    ppi = Bool(True)

    vmstate = VmState(part("_crb", "_presence"))

    def realize(self) -> None:
        self.take_backend()
        self._crb = crb.Crb(self.board, self.backend)
        self._presence = PresenceMemory(self.board) if self.ppi else None

    def unrealize(self) -> None:
        self._crb.close()
        if self._presence is not None:
            self._presence.close()
        self.release_backend()

    def reset(self) -> None:
        if self._presence is not None and self._presence.reset():
            self._crb.overwrite()
        front_end.start_backend(self, self.backend)
        self._crb.reset()

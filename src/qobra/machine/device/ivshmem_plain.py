"""``ivshmem-plain``: the memory of a backend as a PCI function, without interrupts."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.ivshmem.device import IvshmemDevice
from qobra.machine.memory_slots import claim_backend, release_backend
from qobra.machine.vmstate import VmState
from qobra.object.property import Link


@registry.register("ivshmem-plain")
class IvshmemPlain(IvshmemDevice):
    """Machines that map the same file see what the others write."""

    type_name = "ivshmem-plain"

    memdev = Link("memory-backend")

    vmstate = VmState()

    def realize(self) -> None:
        if self.memdev is None:
            raise QobraError("You must specify a 'memdev'")
        if self.memdev.mapped:
            raise QobraError(f"can't use already busy memdev: {self.memdev.id}")
        self.show_memory(self.memdev.ram)
        claim_backend(self.memdev)

    def unrealize(self) -> None:
        super().unrealize()
        release_backend(self.memdev)

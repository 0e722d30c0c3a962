"""``ivshmem-doorbell``: memory that a server hands out, and interrupts between the machines that share it."""

from __future__ import annotations

import os

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.ivshmem.device import IvshmemDevice
from qobra.machine.ivshmem.server import ServerConnection
from qobra.machine.memory import Ram
from qobra.machine.pci.msix import Msix
from qobra.machine.serial16550 import find_chardev
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int, String

_MAX_VECTORS = 2048


@registry.register("ivshmem-doorbell")
class IvshmemDoorbell(IvshmemDevice):
    """Each of ``vectors`` is an event that the others can cause, and interrupts by a message of its own."""

    type_name = "ivshmem-doorbell"

    chardev = String(type="str", description="ID of a chardev to use as a backend")
    vectors = Int(1, type="uint32")

    vmstate = VmState(part("msix"))

    def realize(self) -> None:
        chardev = find_chardev(self.board, self.chardev, self.type_name)
        if chardev is None:
            raise QobraError("You must specify a 'chardev'")
        if not 1 <= self.vectors <= _MAX_VECTORS:
            raise QobraError(f"vectors must be between 1 and {_MAX_VECTORS}")
        self.server = ServerConnection(chardev, self.vectors, self._rung)
        descriptor = self.server.open()
        self.position = self.server.id or 0
        try:
            size = os.fstat(descriptor).st_size
            if not size:
                raise QobraError("the shared memory is empty")
            self.ram = Ram("ivshmem.shmem", size, fd=descriptor, shared=True)
        except (OSError, ValueError, QobraError) as error:
            os.close(descriptor)
            self.server.close()
            raise QobraError(f"cannot map the shared memory: {error}")
        try:
            self.show_memory(self.ram)
            self.msix = Msix(self, self.vectors, bar=1)
        except QobraError:
            self.unrealize()
            raise

    def unrealize(self) -> None:
        self.server.close()
        super().unrealize()
        self.ram.close()

    def reset(self) -> None:
        super().reset()
        self.msix.reset()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        self.msix.config_written(offset, width)

    def ring(self, peer: int, vector: int) -> None:
        self.server.ring(peer, vector)

    def _rung(self, vector: int) -> None:
        self.machine.control.post(self._signal, vector)

    def _signal(self, vector: int) -> None:
        if self.realized:
            self.msix.notify(vector)

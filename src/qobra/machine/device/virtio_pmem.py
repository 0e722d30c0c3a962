"""virtio-pmem: a file of the host as memory that persists when the guest asks for it (virtio 1.2, section 5.19)."""

from __future__ import annotations

import os
from functools import partial
from struct import Struct

from qobra.machine.devices import registry
from qobra.machine.virtio.memory_device import VirtioMemoryDevice, VirtioMemoryPci
from qobra.machine.virtio.queue import Queue, VirtioError
from qobra.machine.vmstate import VmState
from qobra.machine.worker import DeviceWorker

_CONFIG = Struct("<QQ")
_REQUEST, _RESPONSE = Struct("<I"), Struct("<I")
_FLUSH = 0
_OK, _FAILED = 0, 1


@registry.register("virtio-pmem")
class VirtioPmem(VirtioMemoryDevice):
    """The memory of a backend; a flush writes it to where the backend keeps it."""

    type_name = "virtio-pmem"
    category = "Misc"
    device_number = 27
    config_size = _CONFIG.size
    memory_kind = "virtio-pmem"

    vmstate = VmState()

    def realize(self) -> None:
        self.check_backend("can't use already busy memdev: ")
        self.claim_memory()
        self.add_queue(128)
        self._worker = DeviceWorker("pmem")
        self._epoch = 0

    def unrealize(self) -> None:
        self._epoch += 1
        self._worker.close()
        super().unrealize()

    def device_reset(self) -> None:
        self._epoch += 1

    def read_config(self) -> bytes:
        return _CONFIG.pack(self.memory_address, self.memory_length)

    def kicked(self, queue: Queue) -> None:
        self._worker.run(partial(self._serve, queue, self._epoch))

    def _serve(self, queue: Queue, epoch: int) -> None:
        while epoch == self._epoch and (buffer := self.pop(queue)) is not None:
            if buffer.readable_length < _REQUEST.size or buffer.writable_length < _RESPONSE.size:
                self.machine.control.post(self.fail, VirtioError("virtio-pmem request not proper"))
                return
            status = self._flush()
            if epoch != self._epoch:
                return
            self.push(queue, buffer, buffer.scatter(_RESPONSE.pack(status)))
        if epoch == self._epoch:
            self.notify(queue)

    def _flush(self) -> int:
        # A backend without a file has nothing that could persist.
        if self.ram.fd < 0:
            return _FAILED
        try:
            os.fsync(self.ram.fd)
        except OSError:
            return _FAILED
        return _OK

    @property
    def working(self) -> bool:
        """Whether a flush is still going on."""
        return self._worker.busy


@registry.register("virtio-pmem-pci")
class VirtioPmemPci(VirtioMemoryPci):
    """virtio-pmem as a PCI function."""

    type_name = "virtio-pmem-pci"
    ancestors = {"virtio-pmem-pci-base": ("memory-device",)}
    backend_type = "virtio-pmem"
    device_id = 0x105B

    vmstate = VmState()

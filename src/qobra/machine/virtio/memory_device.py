"""What virtio devices with memory of their own have in common: their place in the board's range, their backend."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.memory_backend import MemoryBackend
from qobra.machine.memory_slots import MemoryDevice, claim_backend, release_backend, slots_of
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.pci import VirtioPci
from qobra.object.property import Int, Link


class VirtioMemoryDevice(VirtioDevice, MemoryDevice):
    """A virtio device that maps its backend at ``memaddr``."""

    architectures = frozenset(("x86_64",))
    abstract = True

    memaddr = Int(0, type="uint64")
    memdev = Link("memory-backend")

    @property
    def memory_length(self) -> int:
        backend: MemoryBackend | None = self.memdev
        return int(backend.size) if backend is not None else 0

    @property
    def owner_device(self) -> Any:
        """The device that the user plugged: the PCI function."""
        return self.parent

    @property
    def memory_id(self) -> str | None:
        id: str | None = self.owner_device.user_id
        return id

    def claim_memory(self) -> None:
        """Find a place and show the memory there. Raises QobraError in QEMU's words."""
        slots = slots_of(self.board)
        self._backend: MemoryBackend = self.memdev
        self.values["memaddr"] = self.memory_address = slots.place(self, self.memaddr)
        assert self._backend.ram is not None
        self.ram = self._backend.ram
        self._mapping = self.board.memory.map(self.memory_address, self.ram, size=self.memory_length)
        claim_backend(self._backend)
        slots.devices.append(self)

    def unrealize(self) -> None:
        slots_of(self.board).devices.remove(self)
        self._mapping.remove()
        release_backend(self._backend)
        self.queues.clear()

    def check_backend(self, busy: str) -> None:
        """Whether there is a backend that is free; ``busy`` is the text for one that is not, up to its id."""
        backend: MemoryBackend | None = self.memdev
        if backend is None:
            raise QobraError("'memdev' property must be set")
        if backend.mapped:
            raise QobraError(f"{busy}{backend.id}")

    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "memaddr": self.memory_address,
            "size": self.plugged_size,
            "memdev": self._backend.path(),
        }
        if self.memory_id is not None:
            info["id"] = self.memory_id
        return info


class VirtioMemoryPci(VirtioPci):
    """A function whose memory stays: users cannot unplug it."""

    architectures = frozenset(("x86_64",))
    abstract = True
    class_id = 0x00FF
    fixed_legacy = "on"
    vectors: Any = 0
    ioeventfd: Any = None

    def check_unplug(self) -> None:
        raise QobraError("virtio based memory devices cannot be unplugged.")

"""``memory-backend-ram``: anonymous memory."""

from __future__ import annotations

from qobra.machine.memory import Ram
from qobra.machine.memory_backend import MemoryBackend
from qobra.object.types import registry


@registry.register("memory-backend-ram")
class MemoryBackendRam(MemoryBackend):
    """Memory of this process."""

    type_name = "memory-backend-ram"
    user_creatable = True

    def allocate(self) -> Ram:
        return Ram(self.name, self.size, shared=self.share)

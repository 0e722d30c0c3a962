"""``memory-backend-memfd``: memory with a file descriptor that other programs can be given."""

from __future__ import annotations

import os
from mmap import PAGESIZE

from qobra.errors import QobraError
from qobra.machine.memory import Ram
from qobra.machine.memory_backend import MemoryBackend, keep_value
from qobra.object.property import Bool, Size
from qobra.object.types import registry

_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_HUGETLB = 1, 2, 4
_HUGE_SHIFT = 26
_F_ADD_SEALS = 1033
_SEAL_SHRINK, _SEAL_GROW, _SEAL_SEAL = 2, 4, 1


@registry.register("memory-backend-memfd")
class MemoryBackendMemfd(MemoryBackend):
    """Memory of the kernel's, shared by default."""

    type_name = "memory-backend-memfd"
    user_creatable = True

    share = Bool(True, guard=keep_value, description="Mark the memory as private to QEMU or shared")
    hugetlb = Bool(False, description="Use huge pages")
    hugetlbsize = Size(0, type="int", guard=keep_value, description="Huge pages size (ex: 2M, 1G)")
    seal = Bool(True, description="Seal growing & shrinking")

    @property
    def alignment(self) -> int:
        return (self.hugetlbsize or super().alignment) if self.hugetlb else PAGESIZE

    def allocate(self) -> Ram:
        import fcntl

        flags = _MFD_CLOEXEC | (_MFD_ALLOW_SEALING if self.seal else 0)
        if self.hugetlb:
            flags |= _MFD_HUGETLB
            if self.hugetlbsize:
                flags |= (self.hugetlbsize.bit_length() - 1) << _HUGE_SHIFT
        fd = os.memfd_create("memory-backend-memfd", flags)
        try:
            os.ftruncate(fd, self.size)
        except OSError as error:
            os.close(fd)
            raise QobraError.from_os(f"failed to resize memfd to {self.size}", error)
        if self.seal:
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_GROW | _SEAL_SHRINK | _SEAL_SEAL)
        return Ram(self.name, self.size, fd=fd, shared=self.share)

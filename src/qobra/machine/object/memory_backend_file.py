"""``memory-backend-file``: memory in a file."""

from __future__ import annotations

import mmap
import os

from qobra.errors import QobraError
from qobra.machine.memory import Ram
from qobra.machine.memory_backend import MemoryBackend, keep
from qobra.machine.ram import open_backing
from qobra.object.property import Bool, Size, String
from qobra.object.types import registry


@registry.register("memory-backend-file")
class MemoryBackendFile(MemoryBackend):
    """Memory that is a file's contents; with ``share`` the file sees what the guest writes."""

    type_name = "memory-backend-file"
    user_creatable = True
    required = ("size", "mem-path")

    discard_data = Bool(False)
    mem_path = String(guard=keep("mem-path"))
    align = Size(0, type="int", guard=keep("align"))
    pmem = Bool(False, guard=keep("pmem"))
    readonly = Bool(False, guard=keep("readonly"))

    @property
    def alignment(self) -> int:
        return self.align or mmap.PAGESIZE

    def allocate(self) -> Ram:
        if self.align % mmap.PAGESIZE:
            raise QobraError(f"alignment 0x{self.align:x} must be multiples of page size 0x{mmap.PAGESIZE:x}")
        try:
            fd = open_backing(self.mem_path, self.size, read_only=self.readonly)
        except OSError as error:
            raise QobraError.from_os(f"can't open backing store {self.mem_path} for guest RAM", error)
        length = os.fstat(fd).st_size
        if length < self.size:
            os.close(fd)
            raise QobraError(f"backing store size 0x{length:x} does not match 'size' option 0x{self.size:x}")
        return Ram(self.name, self.size, fd=fd, shared=self.share, readonly=self.readonly)

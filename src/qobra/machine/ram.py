"""Where RAM comes from: anonymous memory, a file, or a memory backend that the user created."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.memory import Ram
from qobra.machine.memory_backend import MemoryBackend

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree


def default_backend(tree: ObjectTree, name: str, size: int, path: str | None) -> str:
    """Create the backend that a machine has unless its user brings one; in a file if ``path`` is given."""
    properties: dict[str, Any] = {"size": size}
    if path is not None:
        properties["mem-path"] = path
    tree.create("memory-backend-ram" if path is None else "memory-backend-file", name, properties)
    return name


def open_backing(path: str, size: int, *, read_only: bool = False) -> int:
    """A file for memory, at least ``size`` bytes long; in a directory a file without a name. Raises OSError."""
    if os.path.isdir(path):
        fd = os.open(path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    else:
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    if not read_only and os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)
    return fd


def backend_ram(tree: ObjectTree, id: str, size: int) -> Ram:
    """The RAM of the user's memory backend ``id``, which must have ``size`` bytes and be free. Raises QobraError."""
    backend = tree.find(id)
    if not isinstance(backend, MemoryBackend):
        raise QobraError(f"Memory backend '{id}' not found")
    if backend.mapped:
        raise QobraError(f"memory backend '{id}' can't be used multiple times.")
    if backend.size != size:
        raise QobraError("Machine memory size does not match the size of the memory backend")
    backend.mapped = True
    backend.in_use += 1
    assert backend.ram is not None
    return backend.ram

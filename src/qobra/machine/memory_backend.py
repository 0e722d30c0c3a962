"""Memory that users create for machines and devices: what the kinds of memory backend have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from qobra.errors import QobraError
from qobra.machine.memory import Ram
from qobra.object.number_list import NumberList
from qobra.object.property import Bool, Enum, Int, Link, Size
from qobra.object.qom import Object

_MAX_NODE = 127
_HUGE_PAGE = 2 << 20


def keep_value(backend: MemoryBackend) -> None:
    """The guard of a property that does not change once the memory is there. Raises QobraError."""
    if backend.ram is not None:
        raise QobraError("cannot change property value")


def keep(name: str) -> Callable[[MemoryBackend], None]:
    """The same for property ``name``, which is named in the error."""

    def guard(backend: MemoryBackend) -> None:
        if backend.ram is not None:
            raise QobraError(f"cannot change property '{name}' of {backend.type_name}")

    return guard


def _keep_size(backend: MemoryBackend) -> None:
    if backend.ram is not None:
        raise QobraError(f"cannot change property size of {backend.type_name} ")


def _set_size(backend: MemoryBackend, value: int) -> None:
    if not value:
        raise QobraError(f"property 'size' of {backend.type_name} doesn't take value '0'")
    backend.values["size"] = value


def _set_threads(backend: MemoryBackend, value: int) -> None:
    if value <= 0:
        raise QobraError(f"property 'prealloc-threads' of {backend.type_name} doesn't take value '{value}'")
    backend.values["prealloc-threads"] = value


class MemoryBackend(Object):
    """Memory with an id. ``ram`` is the memory; ``mapped`` says that a machine or device has it."""

    type_name = "memory-backend"
    interfaces = ("user-creatable",)
    abstract = True
    required: tuple[str, ...] = ("size",)

    merge = Bool(True, description="Mark memory as mergeable")
    dump = Bool(True, description="Set to 'off' to exclude from core dump")
    prealloc = Bool(False, description="Preallocate memory")
    prealloc_threads = Int(1, width="uint32", set=_set_threads, description="Number of CPU threads to use for prealloc")
    size = Size(0, type="int", set=_set_size, guard=_keep_size, description="Size of the memory region (ex: 500M)")
    prealloc_context = Link("thread-context", description="Context to use for creating CPU threads for preallocation")
    host_nodes = NumberList(maximum=_MAX_NODE, description="Binds memory to the list of NUMA host nodes")
    policy = Enum(
        "HostMemPolicy", ("default", "preferred", "bind", "interleave"), "default", description="Set the NUMA policy"
    )
    share = Bool(False, guard=keep_value, description="Mark the memory as private to QEMU or shared")
    reserve = Bool(True, guard=keep_value, description="Reserve swap space (or huge pages) if applicable")

    ram: Ram | None = None
    mapped = False

    def complete(self) -> None:
        board = self.machine.board
        if board is not None:
            self.values.setdefault("merge", board.mem_merge)
            self.values.setdefault("dump", board.dump_guest_core)
        if not self.size:
            raise QobraError("can't create backend with size 0")
        if self.policy == "default" and self.host_nodes:
            raise QobraError(
                "host-nodes must be empty for policy default, "
                "or you should explicitly specify a policy other than default"
            )
        if self.policy != "default" and not self.host_nodes:
            raise QobraError(f"host-nodes must be set for policy {self.policy}")
        if self.prealloc and not self.reserve:
            raise QobraError("'prealloc=on' and 'reserve=off' are incompatible")
        try:
            self.ram = self.allocate()
        except (OSError, OverflowError, ValueError) as error:
            text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise QobraError(f"cannot set up guest memory '{self.name}': {text}")
        self.ram.advise(merge=self.merge, dump=self.dump)
        if self.host_nodes:
            from qobra.machine import host_numa

            host_numa.bind(self.ram.view, self.policy, self.host_nodes)
        if self.prealloc:
            context = self.prealloc_context
            if context is not None:
                context.run(self._touch)
            else:
                self._touch()

    @property
    def alignment(self) -> int:
        """What addresses and sizes of devices with this memory are multiples of, in bytes."""
        return _HUGE_PAGE

    def allocate(self) -> Ram:
        """Get the memory. Raises OSError."""
        raise NotImplementedError

    def can_be_deleted(self) -> bool:
        return super().can_be_deleted() and not self.mapped

    def finalize(self) -> None:
        if self.ram is not None:
            self.ram.close()

    def _touch(self) -> None:
        assert self.ram is not None
        view = self.ram.view
        if view.readonly:
            return
        for offset in range(0, len(view), 4096):
            view[offset] = view[offset]

    def describe(self) -> dict[str, Any]:
        """Memdev of the reference."""
        return {
            "id": self.name,
            "size": self.size,
            "merge": self.merge,
            "dump": self.dump,
            "prealloc": self.prealloc,
            "share": self.share,
            "reserve": self.reserve,
            "host-nodes": list(self.host_nodes),
            "policy": self.policy,
        }

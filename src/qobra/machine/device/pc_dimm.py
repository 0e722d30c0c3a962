"""``pc-dimm``: a memory module that is plugged in."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.memory_backend import MemoryBackend
from qobra.machine.memory_slots import MemorySlots
from qobra.machine.qdev import Device
from qobra.object.property import Int, Link, Property


@registry.register("pc-dimm")
class PcDimm(Device):
    """The memory of a backend, in a slot and at an address of the board."""

    type_name = "pc-dimm"
    description = "DIMM memory module"

    addr = Int(0, type="uint64")
    node = Int(0, type="uint32")
    slot = Int(-1, type="int32")
    memdev = Link("memory-backend")
    size = Property("uint64", None, get=lambda self: self.ram_length, writable=False, show_default=False)

    @property
    def ram_length(self) -> int:
        """Bytes of the module."""
        backend: MemoryBackend | None = self.memdev
        return int(backend.size) if backend is not None else 0

    @property
    def _slots(self) -> MemorySlots:
        slots: Any = self.board.memory_slots_of()
        if slots is None:
            raise QobraError("memory devices (e.g. for memory hotplug) are not supported by the machine")
        return slots  # type: ignore[no-any-return]

    def realize(self) -> None:
        backend: MemoryBackend | None = self.memdev
        if backend is None:
            raise QobraError("'memdev' property must be set")
        if backend.mapped:
            raise QobraError(f"can't use already busy memdev: {backend.id}")
        nodes = max(1, len(self.board.numa.nodes))
        if self.node >= nodes:
            raise QobraError(
                f"'DIMM property node has value {self.node}' which exceeds the number of numa nodes: {nodes}"
            )
        slots = self._slots
        slots.place(self)
        assert backend.ram is not None
        self._mapping = self.board.memory.map(self.addr, backend.ram)
        backend.mapped = True
        backend.in_use += 1
        self._backend = backend
        slots.dimms[self.slot] = self
        if self.hotplugged:
            slots.acpi.plugged(self.slot)

    def unrealize(self) -> None:
        slots = self._slots
        self._mapping.remove()
        self._backend.mapped = False
        self._backend.in_use -= 1
        slots.dimms.pop(self.slot, None)
        slots.acpi.gone(self.slot)

    def info(self) -> dict[str, Any]:
        """PCDIMMDeviceInfo of the reference."""
        info: dict[str, Any] = {
            "addr": self.addr,
            "size": self.ram_length,
            "slot": self.slot,
            "node": self.node,
            "memdev": self._backend.path(),
            "hotpluggable": self.is_hotpluggable(),
            "hotplugged": self.hotplugged,
        }
        if self.user_id is not None:
            info["id"] = self.user_id
        return info

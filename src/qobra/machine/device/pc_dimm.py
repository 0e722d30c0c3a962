"""``pc-dimm``: a memory module that is plugged in."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.memory_backend import MemoryBackend
from qobra.machine.memory_slots import MemoryDevice, claim_backend, release_backend, slots_of
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState
from qobra.object.property import Int, Link, Property


@registry.register("pc-dimm")
class PcDimm(Device, MemoryDevice):
    """The memory of a backend, in a slot and at an address of the board."""

    type_name = "pc-dimm"
    interfaces = ("memory-device",)
    description = "DIMM memory module"
    memory_kind = "dimm"
    architectures = frozenset(("x86_64",))

    addr = Int(0, type="uint64")
    node = Int(0, type="uint32")
    slot = Int(-1, type="int32")
    memdev = Link("memory-backend")
    size = Property("uint64", None, get=lambda self: self.memory_length, writable=False, show_default=False)

    vmstate = VmState()

    @property
    def memory_length(self) -> int:
        backend: MemoryBackend | None = self.memdev
        return int(backend.size) if backend is not None else 0

    @property
    def memory_id(self) -> str | None:
        return self.user_id

    def realize(self) -> None:
        slots = slots_of(self.board)
        slot = slots.choose_slot(self.slot)
        backend: MemoryBackend | None = self.memdev
        if backend is None:
            raise QobraError("'memdev' property must be set")
        if backend.mapped:
            raise QobraError(f"can't use already busy memdev: {backend.id}")
        address = slots.place(self, self.addr)
        nodes = max(1, len(self.board.numa.nodes))
        if self.node >= nodes:
            raise QobraError(
                f"'DIMM property node has value {self.node}' which exceeds the number of numa nodes: {nodes}"
            )
        self.values["slot"] = slot
        self.values["addr"] = self.memory_address = address
        assert backend.ram is not None
        self._mapping = self.board.memory.map(self.addr, backend.ram, size=self.memory_length)
        claim_backend(backend)
        self._backend = backend
        slots.devices.append(self)
        slots.dimms[self.slot] = self
        if self.hotplugged:
            self.announce()

    def announce(self) -> None:
        """Tell the guest that the module has come."""
        slots_of(self.board).acpi.plugged(self.slot)

    def unrealize(self) -> None:
        slots = slots_of(self.board)
        self._mapping.remove()
        release_backend(self._backend)
        slots.devices.remove(self)
        slots.dimms.pop(self.slot, None)
        slots.acpi.gone(self.slot)

    def request_removal(self) -> None:
        """A user wants the module out: the guest decides, and may be asked again."""
        slots_of(self.board).acpi.request_removal(self.slot)

    def check_eject(self) -> None:
        """The guest let go of the module: can it leave? Raises QobraError."""
        dumper = self.board.dumper
        if dumper is not None and dumper.query()["status"] == "active":
            raise QobraError("the memory is being dumped")

    def info(self) -> dict[str, Any]:
        """PCDIMMDeviceInfo of the reference."""
        info: dict[str, Any] = {
            "addr": self.addr,
            "size": self.memory_length,
            "slot": self.slot,
            "node": self.node,
            "memdev": self._backend.path(),
            "hotpluggable": self.is_hotpluggable(),
            "hotplugged": self.hotplugged,
        }
        if self.user_id is not None:
            info["id"] = self.user_id
        return info

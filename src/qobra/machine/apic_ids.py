"""The numbers by which CPUs of x86 are addressed: the places of socket, die, core and thread in bits of their own.

Each part has as many bits as its largest number needs (Intel SDM, volume 3, section 9.9), so there are gaps where a
count is no power of two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.cpu import Topology

if TYPE_CHECKING:
    from qobra.machine.device.x86_64_cpu import X86Cpu
    from qobra.machine.pc import PcBoard

_UNASSIGNED = 0xFFFFFFFF


class ApicIds:
    """APIC ids of the CPUs of a topology."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._widths = [(count - 1).bit_length() for count in (topology.dies, topology.cores, topology.threads)]

    def of(self, index: int) -> int:
        """The id of CPU ``index``."""
        place = self._topology.place(index)
        id = place["socket-id"]
        for name, width in zip(("die-id", "core-id", "thread-id"), self._widths, strict=True):
            id = id << width | place.get(name, 0)
        return id

    def place(self, id: int) -> dict[str, int]:
        """What an id says of its CPU, which there may not be."""
        found = {}
        for name, width in zip(("thread-id", "core-id", "die-id"), reversed(self._widths), strict=True):
            found[name] = id & ((1 << width) - 1)
            id >>= width
        return {"socket-id": id, **dict(reversed(found.items()))}

    def index(self, id: int) -> int | None:
        """The CPU with that id; None where there can be none."""
        place, topology = self.place(id), self._topology
        if place["die-id"] >= topology.dies or place["core-id"] >= topology.cores:
            return None
        if place["thread-id"] >= topology.threads:
            return None
        index = (place["socket-id"] * topology.dies + place["die-id"]) * topology.cores + place["core-id"]
        index = index * topology.threads + place["thread-id"]
        return index if index < topology.max_cpus else None

    @property
    def limit(self) -> int:
        """One more than the largest id."""
        return self.of(self._topology.max_cpus - 1) + 1


def find_place(board: PcBoard, cpu: X86Cpu) -> tuple[int, int]:
    """The index and the APIC id of a CPU that a user plugs in, by its id or its place. Raises QobraError."""
    topology = board.topology
    assert topology is not None
    die = cpu.die_number if topology.dies > 1 or cpu.die_number >= 0 else 0
    wanted = {"socket": cpu.socket_number, "die": die, "core": cpu.core_number, "thread": cpu.thread_number}
    ids, id = board.apic_ids, cpu.apic_id
    if id == _UNASSIGNED:
        number = 0
        for name, count in zip(
            wanted, (topology.sockets, topology.dies, topology.cores, topology.threads), strict=True
        ):
            if wanted[name] < 0:
                raise QobraError(f"CPU {name}-id is not set")
            if wanted[name] >= count:
                raise QobraError(f"Invalid CPU {name}-id: {wanted[name]} must be in range 0:{count - 1}")
            number = number * count + wanted[name]
        id = ids.of(number)
    place, index = ids.place(id), ids.index(id)
    if index is None:
        parts = ", ".join(f"{name}: {place[f'{name}-id']}" for name in wanted)
        last = topology.max_cpus - 1
        raise QobraError(f"Invalid CPU [{parts}] with APIC ID {id}, valid index range 0:{last}")
    if any(other.index == index for other in board.cpus):
        raise QobraError(f"CPU[{index}] with APIC ID {id} exists")
    for name, value in wanted.items():
        right = place[f"{name}-id"]
        if value >= 0 and value != right:
            raise QobraError(f"property {name}-id: {value} doesn't match set apic-id: 0x{id:x} ({name}-id: {right})")
    return index, id

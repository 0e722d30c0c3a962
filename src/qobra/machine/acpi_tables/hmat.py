"""The heterogeneous memory attribute table, HMAT (ACPI 6.4, section 5.2.27), revision 2."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from qobra.machine.hmat import DATA_TYPES, HIERARCHIES

if TYPE_CHECKING:
    from qobra.machine.hmat import Locality
    from qobra.machine.numa import Numa

REVISION = 2
_INITIATOR_KNOWN = 1
_PICOSECONDS, _MIB = 1000, 1 << 20
_ASSOCIATIVITY = ("none", "direct", "complex")
_WRITE_POLICY = ("none", "write-back", "write-through")


def body(numa: Numa) -> bytes:
    """What follows the table's header."""
    found = bytes(4)
    for number, node in sorted(numa.nodes.items()):
        known = node.initiator is not None
        found += pack(
            "<HHIHHIIIQQ", 0, 0, 40, _INITIATOR_KNOWN if known else 0, 0, node.initiator or 0, number, 0, 0, 0
        )
    initiators = [number for number, node in sorted(numa.nodes.items()) if node.cpus]
    targets = sorted(numa.nodes)
    for hierarchy, hierarchy_name in enumerate(HIERARCHIES):
        for data_type, type_name in enumerate(DATA_TYPES):
            table = numa.hmat.localities.get((hierarchy_name, type_name))
            if table is not None:
                found += _locality(table, hierarchy, data_type, initiators, targets)
    levels = {
        number: max(level for node, level in numa.hmat.caches if node == number) for number, _ in numa.hmat.caches
    }
    for (number, level), cache in sorted(numa.hmat.caches.items()):
        attributes = levels[number] | level << 4 | _ASSOCIATIVITY.index(cache["associativity"]) << 8
        attributes |= _WRITE_POLICY.index(cache["policy"]) << 12 | cache["line"] << 16
        found += pack("<HHIIIQIHH", 2, 0, 32, number, 0, cache["size"], attributes, 0, 0)
    return found


def _locality(table: Locality, hierarchy: int, data_type: int, initiators: list[int], targets: list[int]) -> bytes:
    is_latency = "latency" in DATA_TYPES[data_type]
    unit = table.unit()
    entries = [table.values.get((source, target), 0) // unit for source in initiators for target in targets]
    length = 32 + 4 * len(initiators) + 4 * len(targets) + 2 * len(entries)
    base = unit * _PICOSECONDS if is_latency else unit // _MIB
    return pack(
        f"<HHIBBBBIIIQ{len(initiators)}I{len(targets)}I{len(entries)}H",
        *(1, 0, length, hierarchy, data_type, 0, 0, len(initiators), len(targets), 0, base),
        *initiators,
        *targets,
        *entries,
    )

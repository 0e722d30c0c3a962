"""NUMA as it is told before the machine exists: the same answers as QEMU's, and the same table for the guest."""

from __future__ import annotations

from pathlib import Path
from struct import unpack_from
from typing import Any

import pytest

from qobra.testing.guest import QtestAccess
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_LATENCY = {"type": "hmat-lb", "initiator": 0, "target": 0, "hierarchy": "memory", "data-type": "access-latency"}
_BANDWIDTH = _LATENCY | {"data-type": "access-bandwidth"}
_CACHE = {
    "type": "hmat-cache", "node-id": 0, "size": 10240, "level": 1, "associativity": "direct", "policy": "write-back",
    "line": 8,
}  # fmt: skip
_STEPS: list[dict[str, Any]] = [
    {"type": "node", "nodeid": 200},
    {"type": "node", "nodeid": 0, "memdev": "nope"},
    {"type": "node", "nodeid": 0, "memdev": "a", "initiator": 0},
    {"type": "node", "nodeid": 0, "memdev": "b"},
    {"type": "node", "nodeid": 1, "memdev": "b", "initiator": 0},
    {"type": "dist", "src": 0, "dst": 1, "val": 5},
    {"type": "dist", "src": 0, "dst": 0, "val": 20},
    {"type": "dist", "src": 0, "dst": 7, "val": 20},
    {"type": "dist", "src": 0, "dst": 1, "val": 20},
    {"type": "cpu", "node-id": 9, "socket-id": 0},
    {"type": "cpu", "node-id": 0, "socket-id": 7},
    _LATENCY | {"latency": 10},
    {"type": "cpu", "node-id": 0, "socket-id": 0},
    {"type": "cpu", "node-id": 0, "socket-id": 1},
    _LATENCY,
    _LATENCY | {"latency": 10, "bandwidth": 1 << 20},
    _LATENCY | {"latency": 10},
    _LATENCY | {"latency": 20},
    _LATENCY | {"target": 5, "latency": 10},
    _LATENCY | {"initiator": 1, "latency": 10},
    _LATENCY | {"target": 1, "latency": 655350},
    _CACHE,
    _LATENCY | {"target": 1, "latency": 250},
    _BANDWIDTH | {"bandwidth": 1000},
    _BANDWIDTH | {"bandwidth": 200 << 20},
    _BANDWIDTH | {"target": 1, "bandwidth": 100 << 20},
    _LATENCY | {"target": 1, "hierarchy": "first-level", "data-type": "write-latency", "latency": 7},
    _CACHE | {"level": 2},
    _CACHE,
    _CACHE,
    _CACHE | {"level": 2},
    _CACHE | {"level": 2, "size": 20480, "associativity": "complex", "policy": "write-through"},
    _CACHE | {"level": 4},
    _CACHE | {"node-id": 1, "associativity": "none", "policy": "none"},
]


def _table(guest: QtestAccess, signature: bytes) -> bytes:
    """A table's bytes without its header, from the firmware configuration."""

    def item(key: int, length: int) -> bytes:
        guest.port_out(0x510, 2, key)
        return bytes(guest.port_in(0x511, 1) for _ in range(length))

    count = int.from_bytes(item(0x19, 4), "big")
    listing = item(0x19, 4 + 64 * count)
    entries = (unpack_from(">IHH56s", listing, 4 + 64 * n) for n in range(count))
    files = {name.rstrip(b"\0"): (key, size) for size, key, _, name in entries}
    tables = item(*files[b"etc/acpi/tables"])
    at = tables.index(signature)
    return tables[at + 36 : at + int.from_bytes(tables[at + 4 : at + 8], "little")]


def test_numa_before_the_machine_exists(tmp_path: Path) -> None:
    arguments = ["-preconfig", "-machine", "pc,hmat=on", "-m", "128M", "-smp", "2,sockets=2"]
    for name in ("a", "b"):
        arguments += ["-object", f"memory-backend-ram,size=64M,id={name}"]
    answers = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            found: list[Any] = [program.qmp("query-status"), program.qmp("query-hotpluggable-cpus")]
            found += [(step, program.qmp("set-numa-node", step)) for step in _STEPS]
            found.append(program.qmp("query-cpus-fast"))
            found.append(program.qmp("x-exit-preconfig"))
            found.append(program.qmp("set-numa-node", _STEPS[0]))
            found.append(program.qmp("query-hotpluggable-cpus"))
            found += [_table(program.guest, signature) for signature in (b"HMAT", b"SLIT")]
            answers.append(found)
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs

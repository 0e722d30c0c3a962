"""How fast memory is: what is refused, and the table that the guest finds."""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.acpi_tables import hmat
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.numa import Numa

_LATENCY = {"type": "hmat-lb", "initiator": 0, "target": 0, "hierarchy": "memory", "data-type": "read-latency"}
_BANDWIDTH = _LATENCY | {"data-type": "read-bandwidth"}
_CACHE = {
    "type": "hmat-cache", "node-id": 0, "size": 4096, "level": 1, "associativity": "direct", "policy": "write-back",
    "line": 64,
}  # fmt: skip


@pytest.fixture
def numa() -> Iterator[Numa]:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "pc"))
        board.set("hmat", True)
        board.set_topology({"cpus": 2, "sockets": 3, "maxcpus": 3})
        for number in range(2):
            machine.objects.create("memory-backend-ram", f"m{number}", {"size": 1 << 20})
            board.numa.set({"type": "node", "nodeid": number, "memdev": f"m{number}", "initiator": 0})
        board.numa.set({"type": "cpu", "node-id": 0, "socket-id": 0})
        board.numa.set({"type": "cpu", "node-id": 0, "socket-id": 1})
    yield board.numa
    machine.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (_LATENCY | {"initiator": 2, "latency": 1}, "Invalid initiator=2, it should be less than 2"),
        (_LATENCY | {"initiator": 1, "latency": 1}, "Invalid initiator=1, it isn't an initiator proximity domain"),
        (_LATENCY | {"target": 2, "latency": 1}, "Invalid target=2, it should be less than 2"),
        (_LATENCY, "Missing 'latency' option"),
        (_LATENCY | {"latency": 1, "bandwidth": 1 << 20}, "Invalid option 'bandwidth' since the data type is latency"),
        (_BANDWIDTH | {"target": 1, "bandwidth": 1000}, "should be 1MB aligned"),
        (_LATENCY | {"latency": 7}, "Duplicate configuration of the latency for initiator=0 and target=0"),
        (_LATENCY | {"target": 1, "latency": 65535}, "should not differ from previously entered min or max values"),
        (_CACHE | {"node-id": 1}, "The latency and bandwidth information of node-id=1 should be provided before"),
        (_CACHE | {"level": 4}, "Invalid level=4, it should be larger than 0"),
        (_CACHE | {"level": 3}, "Cache level=2 shall be defined first"),
        (_CACHE | {"level": 2}, r"the size of level=2 should be larger than the size\(4096\) of level=1"),
        (_CACHE, "Duplicate configuration of the side cache for node-id=0 and level=1"),
        ({"type": "node", "nodeid": 2, "initiator": 128}, "The initiator id 128 expects an integer between 0 and 127"),
        ({"type": "node", "nodeid": 2, "initiator": 0, "cpus": [2]}, "The initiator of CPU NUMA node 2 should be itse"),
        ({"type": "node", "nodeid": 2, "initiator": 0, "cpus": [1]}, "CPU is already assigned to node-id: 0"),
        ({"type": "cpu", "node-id": 1, "socket-id": 1}, "CPU is already assigned to node-id: 0"),
    ],
)
def test_refusals(numa: Numa, options: dict[str, Any], reason: str) -> None:
    numa.set(_LATENCY | {"latency": 1})
    numa.set(_BANDWIDTH | {"bandwidth": 1 << 30})
    numa.set(_CACHE)
    with pytest.raises(QobraError, match=reason):
        numa.set(options)


@pytest.mark.parametrize(
    ("initiator", "reason"), [(5, "NUMA node 5 is missing"), (1, "The initiator of NUMA node 1 is invalid")]
)
def test_an_initiator_that_has_no_cpu(numa: Numa, initiator: int, reason: str) -> None:
    numa._board.ram_size = 2 << 20
    numa.check()
    numa.nodes[1].initiator = initiator
    with pytest.raises(QobraError, match=reason):
        numa.check()


def test_nothing_is_taken_while_it_is_off(numa: Numa) -> None:
    numa._board.set("hmat", False)
    for options in (_LATENCY | {"latency": 1}, _CACHE, {"type": "node", "nodeid": 2, "initiator": 0}):
        with pytest.raises(QobraError, match="enable it with -machine hmat=on"):
            numa.set(options)


def test_a_bandwidth_of_zero_says_nothing(numa: Numa) -> None:
    numa.set(_LATENCY | {"latency": 1})
    numa.set(_BANDWIDTH | {"bandwidth": 0})
    with pytest.raises(QobraError, match="should be provided before memory side cache"):
        numa.set(_CACHE)


def test_the_table(numa: Numa) -> None:
    for target, latency, bandwidth in ((0, 30, 4 << 30), (1, 250, 1 << 30)):
        numa.set(_LATENCY | {"target": target, "latency": latency})
        numa.set(_BANDWIDTH | {"target": target, "bandwidth": bandwidth})
    numa.set(_CACHE)
    numa.set(_CACHE | {"level": 2, "size": 8192, "associativity": "complex", "policy": "write-through"})
    table, at, found = hmat.body(numa), 4, []
    while at < len(table):
        kind, _, length = unpack_from("<HHI", table, at)
        found.append((kind, table[at : at + length]))
        at += length
    assert at == len(table)
    assert [kind for kind, _ in found] == [0, 0, 1, 1, 2, 2]
    assert [unpack_from("<HHII", entry, 8) for kind, entry in found if kind == 0] == [(1, 0, 0, 0), (1, 0, 0, 1)]
    localities = [entry for kind, entry in found if kind == 1]
    # Hierarchy and type, initiators, targets; the unit (picoseconds, MiB a second), then lists and entries.
    assert [unpack_from("<BB2xIIxxxxQ", entry, 8) for entry in localities] == [(0, 1, 1, 2, 10000), (0, 4, 1, 2, 1024)]
    assert [unpack_from("<IIIHH", entry, 32) for entry in localities] == [(0, 0, 1, 3, 25), (0, 0, 1, 4, 1)]
    assert [unpack_from("<IxxxxQI", entry, 8) for kind, entry in found if kind == 2] == [
        (0, 4096, 64 << 16 | 1 << 12 | 1 << 8 | 1 << 4 | 2),
        (0, 8192, 64 << 16 | 2 << 12 | 2 << 8 | 2 << 4 | 2),
    ]

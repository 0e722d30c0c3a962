"""APIC ids: bits for each part of a place, gaps where a count is no power of two, places asked for by id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.apic_ids import ApicIds
from qobra.machine.cpu import Topology
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device

_CPU = "qemu64-x86_64-cpu"


def _topology(sockets: int, dies: int, cores: int, threads: int) -> Topology:
    count = sockets * dies * cores * threads
    return Topology(cpus=1, max_cpus=count, sockets=sockets, dies=dies, cores=cores, threads=threads)


@pytest.mark.parametrize(("parts", "ids"), [
    ((2, 1, 3, 2), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]),
    ((1, 2, 3, 1), [0, 1, 2, 4, 5, 6]),
    ((4, 1, 1, 1), [0, 1, 2, 3]),
    ((1, 1, 1, 3), [0, 1, 2]),
])  # fmt: skip
def test_ids_there_and_back(parts: tuple[int, int, int, int], ids: list[int]) -> None:
    found = ApicIds(_topology(*parts))
    assert [found.of(index) for index in range(len(ids))] == ids
    assert [found.index(id) for id in ids] == list(range(len(ids)))
    assert all(found.index(id) is None for id in set(range(64)) - set(ids))
    assert found.limit == ids[-1] + 1


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "pc"))
        board.set_topology({"cpus": 4, "maxcpus": 12, "sockets": 2, "cores": 3, "threads": 2})
        board.set_memory(16 << 20)
        board.start()
        board.finish()
    yield machine
    machine.close()


def _plug(machine: Machine, **options: int) -> Any:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    with machine.control:
        return add_device(machine, {"driver": _CPU, **named}, keyval=False)


def test_a_cpu_by_its_place_or_its_id(machine: Machine) -> None:
    assert _plug(machine, socket_id=1, core_id=2, thread_id=1).get("apic-id") == 13
    other = _plug(machine, apic_id=12)
    assert (other.index, other.get("socket-id"), other.get("core-id"), other.get("thread-id")) == (10, 1, 2, 0)


@pytest.mark.parametrize(("options", "text"), [
    ({"apic_id": 3}, "CPU[3] with APIC ID 3 exists"),
    ({"apic_id": 6},
     "Invalid CPU [socket: 0, die: 0, core: 3, thread: 0] with APIC ID 6, valid index range 0:11"),
    ({"apic_id": 12, "socket_id": 0}, "property socket-id: 0 doesn't match set apic-id: 0xc (socket-id: 1)"),
    ({"apic_id": 12, "core_id": 1}, "property core-id: 1 doesn't match set apic-id: 0xc (core-id: 2)"),
    ({"apic_id": 12, "thread_id": 1}, "property thread-id: 1 doesn't match set apic-id: 0xc (thread-id: 0)"),
    ({"socket_id": 1, "core_id": 3, "thread_id": 0}, "Invalid CPU core-id: 3 must be in range 0:2"),
    ({"socket_id": 1, "core_id": 1}, "CPU thread-id is not set"),
])  # fmt: skip
def test_refusals(machine: Machine, options: dict[str, int], text: str) -> None:
    with pytest.raises(QobraError) as caught:
        _plug(machine, **options)
    assert caught.value.desc == text

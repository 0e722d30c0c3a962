"""NUMA nodes: the distances between them are told for all pairs or for none."""

from __future__ import annotations

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine

_MISSING = "The distance between node 0 and 1 is missing, at least one distance value between each nodes"
_ASYMMETRICAL = "At least one asymmetrical pair of distances is given"


def _check(*distances: tuple[int, int, int]) -> dict[tuple[int, int], int]:
    machine = Machine(capabilities=frozenset(("board", "riscv64")))
    with machine.control:
        board = attach_board(machine, find_board("riscv64", "virt"))
        board.set_topology({"cpus": 3})
        board.set_memory(64 << 20)
        for number in range(3):
            board.numa.set({"type": "node", "nodeid": number, "mem": 0 if number else 64 << 20})
        for source, target, distance in distances:
            board.numa.set({"type": "dist", "src": source, "dst": target, "val": distance})
        try:
            board.numa.check()
            return {(a, b): board.numa.distance(a, b) for a in range(3) for b in range(3) if a != b}
        finally:
            machine.close()


def test_one_way_stands_for_both() -> None:
    found = _check((0, 1, 20), (2, 0, 30), (1, 2, 40))
    assert found == {(0, 1): 20, (1, 0): 20, (0, 2): 30, (2, 0): 30, (1, 2): 40, (2, 1): 40}


def test_ways_may_differ() -> None:
    found = _check((0, 1, 20), (1, 0, 21), (0, 2, 30), (2, 0, 30), (1, 2, 40), (2, 1, 40))
    assert (found[0, 1], found[1, 0]) == (20, 21)


def test_remote_if_nobody_says() -> None:
    assert set(_check().values()) == {20}


@pytest.mark.parametrize(
    ("distances", "reason"),
    [
        ([(0, 2, 30)], _MISSING),
        ([(0, 0, 10)], _MISSING),
        ([(0, 1, 20), (1, 0, 21), (0, 2, 30), (1, 2, 40)], _ASYMMETRICAL),
    ],
)
def test_refusals(distances: list[tuple[int, int, int]], reason: str) -> None:
    with pytest.raises(QobraError, match=reason):
        _check(*distances)

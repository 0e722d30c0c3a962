"""Sockets of `virt`: the harts of each NUMA node have interrupt controllers of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import unpack
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.board_type import virt
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.riscv import tree
from qobra.migration.machine_state import load_devices, save_devices, state_owners

_SUPERVISOR_SOFTWARE, _SOFTWARE, _TIMER, _SUPERVISOR_EXTERNAL, _EXTERNAL = (1 << bit for bit in (1, 3, 7, 9, 11))
_VIRTIO_OF_SOCKET_1 = virt.PLIC + virt.PLIC_SIZE
_TWO = ([0, 1], [2, 3])


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    made: list[Machine] = []

    def start(*nodes: list[int], cpus: int = 4, **properties: Any) -> Any:
        machine = Machine(capabilities=frozenset(("board", "riscv64")))
        made.append(machine)
        with machine.control:
            board = attach_board(machine, find_board("riscv64", "virt"))
            for name, value in ({"firmware": "none"} | properties).items():
                board.set(name, value)
            board.set_topology({"cpus": cpus})
            for number, members in enumerate(nodes):
                memory = (64 << 20) if number == 0 else 0
                board.numa.set({"type": "node", "nodeid": number, "cpus": members, "mem": memory})
            board.set_memory(64 << 20)
            board.start()
            board.finish()
        return board

    yield start
    for each in made:
        each.close()


def _pending(board: Any, *but: int) -> list[int]:
    return [cpu.pending & ~sum(but) for cpu in board.cpus]


def _store(board: Any, address: int, value: int, width: int = 4) -> None:
    board.memory.write(address, value.to_bytes(width, "little"))


def _load(board: Any, address: int) -> int:
    return int.from_bytes(board.memory.read(address, 4), "little")


def test_harts_are_numbered_through(start: Callable[..., Any]) -> None:
    board = start([0], [1, 2, 3])
    assert [cpu.path() for cpu in board.cpus] == [
        "/machine/soc0/harts[0]", *(f"/machine/soc1/harts[{place}]" for place in range(3))
    ]  # fmt: skip
    assert [cpu.index for cpu in start([2, 3], [0, 1]).cpus] == [0, 1, 2, 3]


def test_software_interrupts_and_timers(start: Callable[..., Any]) -> None:
    board = start(*_TWO)
    with board.machine.control:
        _store(board, virt.CLINT + virt.CLINT_SIZE, 1)
        _store(board, virt.CLINT + 4, 1)
        _store(board, virt.CLINT + virt.CLINT_SIZE + 8, 1)  # there is no third hart
        assert _pending(board, _TIMER) == [0, _SOFTWARE, _SOFTWARE, 0]
        _store(board, virt.CLINT + virt.CLINT_SIZE + 0x4000 + 8, 1 << 60, 8)
        assert [bool(cpu.pending & _TIMER) for cpu in board.cpus] == [True, True, True, False]


def test_devices_interrupt_the_harts_of_their_socket(start: Callable[..., Any]) -> None:
    board = start(*_TWO)
    with board.machine.control:
        slot = next(each for each in board.system_bus.devices if each.type_name == "virtio-mmio")
        slot.irq.set(1)
        for plic in (virt.PLIC, _VIRTIO_OF_SOCKET_1):
            _store(board, plic + 4 * virt.IRQ_VIRTIO, 1)
            for context in range(5):
                _store(board, plic + 0x2000 + 0x80 * context, 1 << virt.IRQ_VIRTIO)
        assert _pending(board, _TIMER) == [0, 0] + [_SUPERVISOR_EXTERNAL | _EXTERNAL] * 2
        assert _load(board, _VIRTIO_OF_SOCKET_1 + 0x201004) == virt.IRQ_VIRTIO  # a claim
        assert _pending(board, _TIMER) == [0] * 4


def test_interrupts_of_supervisors(start: Callable[..., Any]) -> None:
    board = start(*_TWO, aclint=True)
    with board.machine.control:
        assert _load(board, virt.SSWI + virt.SSWI_SIZE) == 0
        _store(board, virt.SSWI + virt.SSWI_SIZE, 3)
        _store(board, virt.SSWI, 2)
        assert (_load(board, virt.SSWI + virt.SSWI_SIZE), _pending(board, _TIMER)) == (0, [0, 0, 2, 0])
        _store(board, virt.SSWI + virt.SSWI_SIZE, 0)
        assert _pending(board, _TIMER) == [0, 0, _SUPERVISOR_SOFTWARE, 0]  # the hart's to take back


def test_there_are_none_without_aclint(start: Callable[..., Any]) -> None:
    names = [region.name for region in start().memory.regions()]
    assert [name for name in names if "aclint" in name] == ["riscv.aclint.swi", "riscv.aclint.mtimer"]


def test_the_guest_is_told(start: Callable[..., Any]) -> None:
    root = tree.build(start([0], [1, 2], cpus=3, aclint=True))
    soc, cpus = root.child("soc").children, root.child("cpus").children

    def cells(name: str, key: str) -> tuple[int, ...]:
        value = soc[name].properties[key]
        return unpack(f">{len(value) // 4}I", value)

    handles = [
        int.from_bytes(cpus[f"cpu@{hart}"].child("interrupt-controller").properties["phandle"], "big")
        for hart in range(3)
    ]
    assert list(cpus["cpu-map"].children["cluster1"].children) == ["core0", "core1"]
    assert cells("plic@c000000", "interrupts-extended") == (handles[0], 11, handles[0], 9)
    assert cells("plic@c600000", "interrupts-extended")[::4] == tuple(handles[1:])
    assert cells("mswi@2010000", "interrupts-extended") == (handles[1], 3, handles[2], 3)
    assert cells("sswi@2f04000", "interrupts-extended") == (handles[1], 1, handles[2], 1)
    assert cells("mtimer@2014000", "reg") == (0, 0x201BFF8, 0, 0x4008, 0, 0x2014000, 0, 0x7FF8)
    assert cells("mtimer@2014000", "numa-node-id") == (1,)
    assert "clint@2000000" not in soc
    assert cells("serial@10000000", "interrupt-parent") == cells("plic@c000000", "phandle")
    assert cells("virtio_mmio@10001000", "interrupt-parent") == cells("plic@c600000", "phandle")


@pytest.mark.parametrize(
    ("nodes", "cpus", "reason"),
    [
        ([[0, 2], [1, 3]], 4, "discontinuous hartids in socket0"),
        ([[0, 1, 2, 3], []], 4, "discontinuous hartids in socket1"),
        ([[], []], 1, r"Number of NUMA nodes \(2\) cannot exceed the number of available CPUs \(1\)\."),
        ([[]] * 5, 6, "number of sockets/nodes should be less than 4"),
        ([[0, 1], [1, 2]], 3, "CPU is already assigned to node-id: 0"),
    ],
)
def test_refusals(start: Callable[..., Any], nodes: list[list[int]], cpus: int, reason: str) -> None:
    with pytest.raises(QobraError, match=reason):
        start(*nodes, cpus=cpus)


def test_each_controller_keeps_its_state(start: Callable[..., Any]) -> None:
    source, target = start(*_TWO, aclint=True), start(*_TWO, aclint=True)
    names = [name for name, _device in state_owners(source)]
    assert len(set(names)) == len(names)
    with source.machine.control:
        _store(source, virt.CLINT + virt.CLINT_SIZE, 1)
        _store(source, _VIRTIO_OF_SOCKET_1 + 4, 5)
        records = save_devices(source.machine, "paused")
    with target.machine.control:
        load_devices(target.machine, bytes(records[0][1]), [bytes(payload) for _kind, payload in records[1:]])
        assert [_load(target, virt.CLINT + virt.CLINT_SIZE * socket) for socket in (0, 1)] == [0, 1]
        assert [_load(target, virt.PLIC + virt.PLIC_SIZE * socket + 4) for socket in (0, 1)] == [0, 5]

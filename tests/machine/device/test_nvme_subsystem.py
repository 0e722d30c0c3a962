"""Namespaces that controllers share: where they are, who has them, and how guests attach and detach them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.migration import machine_state
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.waiting import wait_until

_ENTRIES = 16


def _le(value: int, width: int) -> bytes:
    return value.to_bytes(width, "little")


class Controller:
    """A controller's queues as a guest drives them, at ``memory``: admin and I/O, then a buffer."""

    def __init__(self, access: BoardAccess, slot: int, memory: int) -> None:
        self.access, self.memory = access, memory
        function = PciFunction(access, slot << 3)
        function.enable(0xE0000000 + slot * 0x100000)
        self.base = function.bars[0]
        access.write(memory, bytes(0x4000))
        self.tails, self.heads, self.phases, self.id = [0, 0], [0, 0], [1, 1], 0
        access.store(self.base + 0x24, 4, (_ENTRIES - 1) << 16 | _ENTRIES - 1)
        access.store(self.base + 0x28, 8, memory)
        access.store(self.base + 0x30, 8, memory + 0x1000)
        access.store(self.base + 0x14, 4, 0x460001)
        assert self.command(0x05, prp1=memory + 0x3000, words=((_ENTRIES - 1) << 16 | 1, 1))[0] == 0
        assert self.command(0x01, prp1=memory + 0x2000, words=((_ENTRIES - 1) << 16 | 1, 1 << 16 | 1))[0] == 0

    @property
    def buffer(self) -> int:
        return self.memory + 0x4000

    def put(self, opcode: int, number: int, words: tuple[int, ...], prp1: int | None, queue: int) -> None:
        self.id += 1
        data = bytes((opcode, 0)) + _le(self.id, 2) + _le(number, 4) + bytes(16)
        data += _le(self.buffer if prp1 is None else prp1, 8) + bytes(8)
        data += b"".join(_le(word, 4) for word in words + (0,) * (6 - len(words)))
        self.access.write(self.memory + 0x2000 * queue + 64 * self.tails[queue], data)
        self.tails[queue] = (self.tails[queue] + 1) % _ENTRIES
        self.access.store(self.base + 0x1000 + 8 * queue, 4, self.tails[queue])

    def answer(self, queue: int = 0) -> tuple[int, int]:
        at = self.memory + 0x1000 + 0x2000 * queue + 16 * self.heads[queue]
        wait_until(lambda: self.access.load(at + 14, 2) & 1 == self.phases[queue])
        result, code = self.access.load(at, 4), self.access.load(at + 14, 2) >> 1
        self.heads[queue] = (self.heads[queue] + 1) % _ENTRIES
        self.phases[queue] ^= self.heads[queue] == 0
        self.access.store(self.base + 0x1004 + 8 * queue, 4, self.heads[queue])
        return code, result

    def command(
        self, opcode: int, number: int = 0, *, words: tuple[int, ...] = (), prp1: int | None = None, queue: int = 0
    ) -> tuple[int, int]:
        self.put(opcode, number, words, prp1, queue)
        return self.answer(queue)

    def identify(self, kind: int, number: int = 0, word: int = 0) -> bytes:
        assert self.command(0x06, number, words=(kind | word << 16,))[0] == 0
        return self.access.read(self.buffer, 4096)

    def listed(self, kind: int, number: int = 0) -> list[int]:
        data = self.identify(kind, number)
        return [n for n in (int.from_bytes(data[at : at + 4], "little") for at in range(0, 64, 4)) if n]

    def attach(self, number: int, *ids: int, detach: bool = False) -> int:
        self.access.write(self.buffer, b"".join(_le(n, 2) for n in (len(ids), *ids)).ljust(4096, b"\0"))
        return self.command(0x15, number, words=(int(detach),))[0]


def _build() -> tuple[Machine, BoardAccess]:
    machine = simple_machine(memory=32 << 20)
    board: Any = machine.board
    with machine.control:
        for n in range(4):
            machine.block.add_node(
                {"driver": "null-co", "node-name": f"n{n}", "size": (n + 1) << 20, "read-zeroes": True}
            )
        board.ready = False
        for options in (
            {"driver": "nvme-subsys", "id": "s", "nqn": "both"},
            {"driver": "nvme", "id": "c0", "serial": "x", "subsys": "s", "addr": "4"},
            {"driver": "nvme-ns", "drive": "n0", "bus": "c0", "uuid": "11223344-5566-7788-99aa-bbccddeeff00"},
            {"driver": "nvme", "id": "c1", "serial": "x", "subsys": "s", "addr": "5"},
            {
                "driver": "nvme-ns",
                "drive": "n1",
                "bus": "c1",
                "nsid": "7",
                "shared": "off",
                "eui64": "0x1122334455667788",
            },
            {"driver": "nvme-ns", "drive": "n2", "bus": "c1", "detached": "on", "id": "third"},
        ):
            add_device(machine, dict(options), keyval=True)
        board.ready = True
    return machine, BoardAccess(machine)


@pytest.fixture
def built() -> Iterator[tuple[Machine, Controller, Controller]]:
    machine, access = _build()
    yield machine, Controller(access, 4, 0x100000), Controller(access, 5, 0x200000)
    machine.close()


Built = tuple[Machine, Controller, Controller]


def test_who_has_which_namespaces(built: Built) -> None:
    _machine, first, second = built
    assert (first.listed(0x02), second.listed(0x02)) == ([1], [1, 7])
    assert first.listed(0x10) == second.listed(0x10) == [1, 2, 7]
    assert first.listed(0x10, 1) == [2, 7]
    assert first.identify(0x13)[:6] == bytes((2, 0, 0, 0, 1, 0))
    assert second.identify(0x12, 7)[:4] == bytes((1, 0, 1, 0))
    assert first.identify(0x00, 7) == bytes(4096)
    assert int.from_bytes(first.identify(0x11, 7)[:8], "little") == 4096
    assert first.identify(0x03, 1)[:21].hex() == "03100000112233445566778899aabbccddeeff0004"
    assert second.identify(0x03, 7)[:12].hex() == "010800001122334455667788"
    assert second.identify(0x01)[76:80] == bytes((2, 7, 1, 0))
    assert b"nqn.2019-08.org.qemu:both\0" in first.identify(0x01)


def test_attaching_and_detaching(built: Built) -> None:
    _machine, first, second = built
    for each in (first, second):
        each.command(0x09, words=(0x0B, 0x100))
    second.put(0x0C, 0, (), None, 0)
    assert first.command(0x02, 2, words=(0,), queue=1)[0] == 0x4002
    assert first.attach(2, 0, 1) == 0
    assert second.answer() == (0, 0x40002)
    assert first.command(0x02, 2, words=(0,), queue=1)[0] == 0
    second.command(0x02, words=(4 | 0xFF << 16,))
    assert second.access.load(second.buffer, 8) == 2
    assert first.attach(2, 0) == 0x4118
    assert first.attach(7, 0) == 0x4119
    assert first.attach(2, 9) == first.attach(2) == 0x411C
    assert first.attach(0, 0) == first.attach(257, 0) == 0x400B
    assert first.attach(2, 1, detach=True) == 0
    assert first.attach(2, 1, detach=True) == 0x411A
    assert (first.listed(0x02), second.listed(0x02)) == ([1, 2], [1, 7])


def test_a_flush_of_all(built: Built) -> None:
    _machine, first, second = built
    assert first.command(0x00, 0xFFFFFFFF, queue=1)[0] == second.command(0x00, 0xFFFFFFFF, queue=1)[0] == 0
    assert first.attach(1, 0, detach=True) == 0
    assert first.command(0x00, 0xFFFFFFFF, queue=1)[0] == 0


def test_what_was_attached_stays_so_in_another_machine(built: Built) -> None:
    machine, first, _second = built
    assert first.attach(2, 0) == 0 and first.attach(1, 0, detach=True) == 0
    with machine.control:
        machine.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(machine, "paused")
    other, _access = _build()
    with other.control:
        machine_state.load_devices(other, bytes(head), [bytes(payload) for _kind, payload in sections])
        controllers = [other.board.peripheral.children[f"c{n}"].controller for n in range(2)]  # type: ignore[union-attr]
    assert [sorted(each.attached) for each in controllers] == [[2], [1, 7]]
    other.close()


def test_a_controller_takes_its_namespaces_with_it(built: Built) -> None:
    machine, first, _second = built
    with machine.control:
        device: Any = machine.board.peripheral.children["c1"]  # type: ignore[union-attr]
        device.unparent()
    assert first.listed(0x10) == [1]
    assert first.identify(0x13)[:4] == bytes((1, 0, 0, 0))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"driver": "nvme-ns"}, "block backend not configured"),
        ({"driver": "nvme-ns", "drive": "n3", "nsid": "7"}, "namespace id '7' already allocated"),
        ({"driver": "nvme-ns", "drive": "n3", "nsid": "257"}, "invalid namespace id"),
        ({"driver": "nvme", "serial": "y", "subsys": "s"}, "invalid controller serial"),
        ({"driver": "nvme", "serial": "x", "subsys": "s", "drive": "n3"}, "subsystem support is unavailable"),
    ],
)
def test_refusals(built: Built, options: dict[str, str], text: str) -> None:
    machine = built[0]
    board: Any = machine.board
    with machine.control:
        board.ready = False
        with pytest.raises(QobraError, match=text):
            add_device(machine, dict(options), keyval=True)

"""The device of test programs, as they use it."""

from __future__ import annotations

from typing import Any

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess


def test_its_ports_and_memory() -> None:
    machine = simple_machine(memory=16 << 20)
    guest, board = BoardAccess(machine), machine.board
    assert board is not None
    seen: list[tuple[int, int]] = []
    with machine.control:
        board.ready = False
        device: Any = add_device(machine, {"driver": "pc-testdev"}, keyval=False)
        board.ready = True
        for number in (3, 15):
            device.line(number).intercept(lambda level, number=number: seen.append((number, level)))
    guest.port_out(0xE0, 4, 0x87654321)
    guest.port_out(0xE9, 2, 0xAABB)  # a byte at a time
    assert (guest.port_in(0xE0, 4), guest.port_in(0xE2, 2), guest.port_in(0xE8, 4)) == (0x87AABB21, 0x87AA, 0x87AABB21)
    guest.port_out(0x2003, 1, 1)
    guest.port_out(0x200F, 1, 1)
    guest.port_out(0x2003, 1, 0)
    guest.port_out(0x2010, 1, 1)  # no line of the bus
    assert seen == [(3, 1), (15, 1), (3, 0)]
    guest.store(0xFF000120, 8, 0x1122334455667788)
    assert (guest.load(0xFF000124, 2), guest.load(0xFF000127, 1)) == (0x3344, 0x11)
    machine.close()

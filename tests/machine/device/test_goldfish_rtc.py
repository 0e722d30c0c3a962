"""The clock of RISC-V boards: where it starts, and what is told when a guest sets it."""

from __future__ import annotations

from typing import Any

from qobra.machine.launch import simple_machine
from qobra.testing.guest import BoardAccess

_BASE = 0x101000
_LOW, _HIGH = _BASE, _BASE + 4
_SECOND = 10**9


def test_offsets_and_resets_count_from_what_the_clock_would_show() -> None:
    machine: Any = simple_machine("riscv64", "virt")
    guest = BoardAccess(machine)
    seen: list[int] = []
    machine.events.subscribe(lambda event: seen.append(event["data"]["offset"]) if "offset" in event["data"] else None)

    def now() -> int:
        return guest.load(_LOW, 4) | guest.load(_HIGH, 4) << 32

    start = now()
    machine.board.clock.step(60 * _SECOND)
    guest.store(_LOW, 4, start & 0xFFFFFFFF)
    guest.store(_HIGH, 4, start >> 32)
    assert seen[-1] == -60 and now() == start
    with machine.control:
        machine.board.reset_all()
    assert now() == start + 60 * _SECOND
    machine.close()

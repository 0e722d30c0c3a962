"""Timers of PCs: random scripts of register accesses give the same with QEMU, interrupts included."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_HPET = 0xFED00000
_TIMERS = [0x100 + 0x20 * number + offset for number in range(3) for offset in range(0, 0x18, 4)]
_REGISTERS = [0x00, 0x04, 0x10, 0x14, 0x20, 0xF0, 0xF4, *_TIMERS]


def _script(seed: int) -> list[tuple[int, int]]:
    chance = random.Random(seed)
    writes = []
    for _ in range(40):
        offset = chance.choice([0x10, 0x20, 0xF0, 0xF4, *[0x100 + 0x20 * n for n in (0, 0, 1, 1, 2, 2)], *_TIMERS])
        values = [chance.getrandbits(32), chance.getrandbits(4), 1 << chance.randrange(32), 0xFFFFFFFF, 3]
        writes.append((offset, chance.choice(values)))
    return writes


@pytest.mark.parametrize("board", ["pc", "q35"])
def test_registers_of_the_hpet(tmp_path: Path, board: str) -> None:
    found: list[list[object]] = []
    for peer in (False, True):
        seen: list[object] = []
        with SystemProgram(tmp_path, "x86_64", "-machine", board, peer=peer) as program:
            guest = program.guest
            guest.command("irq_intercept_in /machine/" + ("q35" if board == "q35" else "i440fx") + "/ioapic")
            for seed in range(6):
                program.qmp("system_reset")
                program.wait_event("RESET")
                guest.load(_HPET, 4)
                guest.interrupts.clear()
                for offset, value in _script(seed):
                    guest.store(_HPET + offset, 4, value)
                    seen.append((seed, hex(offset), hex(value), guest.load(_HPET + (offset & ~0x1F), 4)))
                seen.append([hex(guest.load(_HPET + offset, 4)) for offset in _REGISTERS])
                # QEMU's PIT drives line 0 at a reset already.
                seen.append([line for line in guest.interrupts if not line.endswith(" 0")])
        found.append(seen)
    assert found[0] == found[1]


@pytest.mark.parametrize("machine", ["pc", "q35", "pc,hpet=off", "q35,pit=off", "pc,pit=off,hpet=off"])
def test_ports_and_what_firmware_is_told(tmp_path: Path, machine: str) -> None:
    found = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", "-machine", machine, peer=peer) as program:
            guest = program.guest
            items = []
            for key in (0x8002, 0x8004):
                guest.port_out(0x510, 2, key)
                items.append(bytes(guest.port_in(0x511, 1) for _ in range(130)))
            ports = [guest.port_in(port, 1) for port in (0x42, 0x61)]
            found.append((items, ports, guest.load(_HPET, 4), guest.load(_HPET, 2), guest.read(_HPET, 8)))
    assert found[0] == found[1]

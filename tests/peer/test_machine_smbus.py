"""The SMBus of PCs: random scripts of commands give the same with QEMU."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qobra.testing.guest import PciFunction
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_READABLE = (0x00, 0x03, 0x04, 0x05, 0x06, 0x0D)


def _play(program: SystemProgram, base: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    guest, seen = program.guest, []
    for _ in range(300):
        kind = chance.random()
        if kind < 0.4:
            guest.port_out(base + 4, 1, chance.choice([0xA0, 0xA1, 0xA3, 0xAE, 0xAF, 0x60]))
            guest.port_out(base + 3, 1, chance.randrange(4))
            guest.port_out(base + 2, 1, 0x40 | chance.randrange(5) << 2 | chance.choice([0, 0, 1]))
        elif kind < 0.7:
            offset = chance.choice([0, 0, 0, 3, 4, 5, 6, 0x0D])
            guest.port_out(base + offset, 1, chance.choice([0xFF, chance.getrandbits(8)]))
        else:
            seen.append(guest.port_in(base + chance.choice(_READABLE), 1))
    return seen


@pytest.mark.parametrize("board", ["pc", "q35"])
def test_commands(tmp_path: Path, board: str) -> None:
    found = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", "-machine", board, peer=peer) as program:
            base, identity = 0xB100, b""
            if board == "q35":
                function = PciFunction(program.guest, 0x1F << 3 | 3)
                identity = bytes(function.config(offset, 1) for offset in range(64))
                function.enable()
                function.set_config(0x40, 4, 0xFFFFFFFF)
                base = function.bars[4]
            found.append((identity, *(_play(program, base, seed) for seed in range(5))))
    assert found[0] == found[1]

"""Hostile guests on whole boards: arbitrary accesses to everything that is mapped, chipsets and bridges included."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.memory import Ram
from qobra.machine.plug import add_device

_ACCESSES = 4000
_VALUES = (0, 1, 2, 3, 4, 0x80, 0xFF, 0x100, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1)
_EXTRA: dict[str, list[dict[str, str]]] = {
    "pc": [
        {"driver": "pci-bridge", "id": "br", "chassis_nr": "1"},
        {"driver": "virtio-rng-pci", "bus": "br"},
        {"driver": "i6300esb"},
        {"driver": "pvpanic-pci"},
        {"driver": "isa-serial"},
    ],
    "q35": [
        {"driver": "pcie-root-port", "id": "rp", "chassis": "1"},
        {"driver": "virtio-balloon-pci", "bus": "rp"},
    ],
    "virt": [{"driver": "virtio-rng-device"}, {"driver": "pcie-root-port", "id": "rp", "chassis": "1"}],
}


@pytest.mark.parametrize(("architecture", "board"), [("x86_64", "pc"), ("x86_64", "q35"), ("riscv64", "virt")])
@pytest.mark.parametrize("seed", range(3))
def test_arbitrary_accesses(architecture: str, board: str, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(seed)
    machine = simple_machine(architecture, board, memory=8 << 20)
    built: Any = machine.board
    built.ready = False
    with machine.control:
        for options in _EXTRA[board]:
            add_device(machine, options, keyval=True)
        built.ready = True
        for number in range(_ACCESSES):
            space = built.ports if generator.random() < 0.4 and architecture == "x86_64" else built.memory
            ranges = space.flat()
            start, end, region, _offset = generator.choice(ranges)
            if isinstance(region, Ram) and generator.random() < 0.8:
                continue
            width = generator.choice((1, 2, 4, 8))
            address = generator.choice((start, end - width, generator.randrange(start, end))) & ~(
                generator.choice((0, width - 1))
            )
            address = max(address, 0)
            if generator.random() < 0.4:
                space.load(address, width)
            else:
                value = generator.choice((*_VALUES, generator.getrandbits(64))) & ((1 << 8 * width) - 1)
                space.store(address, width, value)
            if number % 500 == 0:
                built.clock.step(generator.choice((1, 1000, 10**6, 10**9)))
        machine.run_state.request_reset()
    with machine.control:
        assert machine.run_state.query()["status"]
    machine.close()
    assert "Traceback" not in capfd.readouterr().err

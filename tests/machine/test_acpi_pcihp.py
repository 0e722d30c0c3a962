"""PCI hot-plug by ACPI: which bus has which number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess

_UP, _SELECT = 0x00, 0x10
_BASES = {"pc": 0xAE00, "q35": 0x0CC0}
_PORT = "pcie-root-port"
_PORTS = {"r0": (_PORT, None), "r1": (_PORT, None), "p": ("pcie-pci-bridge", "r0"), "b": ("pci-bridge", "p")}
_BRIDGES = {f"b{n}": ("pci-bridge", bus) for n, bus in enumerate((None, None, "b0", "b1", "b0"))}


def _machine(board_name: str, bridges: dict[str, tuple[str, str | None]]) -> Machine:
    machine = simple_machine("x86_64", board_name, memory=4 << 20)
    board: Any = machine.board
    with machine.control:
        board.ready = False
        for number, (id, (driver, bus)) in enumerate(bridges.items()):
            options = {"driver": driver, "id": id} | ({"bus": bus} if bus else {})
            key = "chassis" if driver == _PORT else "chassis_nr"
            add_device(machine, options | ({key: str(number + 1)} if driver != "pcie-pci-bridge" else {}), keyval=True)
        board.ready = True
        board.reset_all()
    return machine


@pytest.fixture
def number_of(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The number of the bus at which a device arrives."""
    board_name, bridges = request.param
    machine = _machine(board_name, bridges)
    access, base = BoardAccess(machine), _BASES[board_name]

    def number_of(bus: str) -> list[int]:
        with machine.control:
            slot = "0" if bus.startswith("r") else "9"
            add_device(machine, {"driver": "virtio-rng-pci", "bus": bus, "addr": slot}, keyval=True)
        found = []
        for number in range(8):
            access.port_out(base + _SELECT, 4, number)
            if access.port_in(base + _UP, 4):
                found.append(number)
        return found

    yield number_of
    machine.close()


@pytest.mark.parametrize(
    ("number_of", "numbers"),
    [(("q35", _PORTS), {"r1": 0, "b": 3}), (("pc", _BRIDGES), {"b0": 3, "b1": 1, "b2": 5, "b3": 2, "b4": 4})],
    indirect=["number_of"],
)
def test_the_latest_bus_comes_first_and_what_is_behind_it_next(number_of: Any, numbers: dict[str, int]) -> None:
    assert {bus: number_of(bus) for bus in numbers} == {bus: [number] for bus, number in numbers.items()}

"""The platform bus of ``virt``: who may be there, where, with which line, and what the guest is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import unpack
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine import devicetree
from qobra.machine.irq import Line
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.memory import Registers
from qobra.machine.plug import add_device
from qobra.machine.riscv import tree
from qobra.migration import machine_state, stream
from qobra.testing.guest import BoardAccess
from qobra.testing.tpm import TpmEmulator, connect

_BASE, _SIZE, _PLIC = 0x4000000, 32 << 20, 0xC000000
_COMMAND = bytes.fromhex("80010000000c0000017b0010")


class Guest:
    """A machine with a TPM on an emulator in this process."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.emulator = TpmEmulator(directory)
        self.machine = simple_machine("riscv64", "virt", memory=16 << 20)
        self.access = BoardAccess(self.machine)
        self.board: Any = self.machine.board
        with self.machine.control:
            connect(self.machine, self.emulator.path)
            board: Any = self.board
            board.ready = False
            self.device = add_device(
                self.machine, {"driver": "tpm-tis-device", "id": "tpm", "tpmdev": "tpm0", "irq": "20"}, keyval=True
            )
            board.ready = True
            board.reset_all()

    def close(self) -> None:
        self.machine.close()
        self.emulator.close()

    def pending(self) -> int:
        return self.access.load(_PLIC + 0x1000 + 8, 4)

    def claim(self) -> int:
        number = self.access.load(_PLIC + 0x200004, 4)
        self.access.store(_PLIC + 0x200004, 4, number)
        return number

    def locality_taken(self) -> None:
        self.access.store(_BASE, 1, 0x02)
        self.access.store(_BASE + 0x08, 4, 0x80000087)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    made.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = simple_machine("riscv64", "virt", memory=16 << 20)
    yield made
    made.close()


def test_a_tpm_is_at_the_start_of_the_window(guest: Guest) -> None:
    assert [guest.access.load(_BASE + (n << 12), 1) for n in range(6)] == [0x81] * 5 + [0]
    assert guest.access.load(_BASE + 0x0C, 4) == 20
    assert guest.access.load(_BASE + 0xF00, 4) == 0x00011014


def test_its_line_is_the_first_one(guest: Guest) -> None:
    guest.access.store(_PLIC + 4 * 64, 4, 1)
    guest.access.store(_PLIC + 0x2000 + 8, 4, 1)
    guest.locality_taken()
    assert guest.pending() == 0
    guest.access.store(_BASE + 0x18, 4, 0x40)
    assert (guest.access.load(_BASE + 0x10, 4), guest.pending()) == (0x80, 1)
    guest.access.store(_BASE + 0x10, 4, 0x80)
    assert guest.pending() == 1  # until it is claimed, as the line was up
    assert (guest.claim(), guest.pending(), guest.claim()) == (64, 0, 0)


def test_the_device_tree_tells_of_it(guest: Guest) -> None:
    with guest.machine.control:
        node = tree.build(guest.board).children["platform-bus@4000000"]
    assert unpack(">4I", node.properties["ranges"]) == (0, 0, _BASE, _SIZE)
    assert node.properties["compatible"] == b"qemu,platform\0simple-bus\0"
    assert {name: child.properties for name, child in node.children.items()} == {
        "tpm@0": {
            "compatible": b"tcg,tpm-tis-mmio\0",
            "reg": bytes.fromhex("00000000 00005000"),
            "interrupts": bytes.fromhex("00000040"),
        }
    }
    assert devicetree.parse(devicetree.flatten(node)).children["tpm@0"].properties


def test_state_moves(guest: Guest, tmp_path: Path) -> None:
    other = Guest(tmp_path / "other")
    try:
        guest.locality_taken()
        guest.access.store(_BASE + 0x18, 4, 0x40)
        guest.access.store(_BASE + 0x24, 1, _COMMAND[0])
        with guest.machine.control:
            saved = machine_state.save_devices(guest.machine, "running")
        records: dict[int, list[bytes]] = {}
        for kind, record in saved:
            records.setdefault(kind, []).append(bytes(record))
        with other.machine.control:
            machine_state.load_devices(other.machine, records[stream.MACHINE][0], records[stream.DEVICE])
        for register in (0x00, 0x08, 0x10, 0x18):
            assert other.access.load(_BASE + register, 4) == guest.access.load(_BASE + register, 4)
        assert other.access.load(_BASE, 1) == 0xA1
        assert other.pending() == 1
    finally:
        other.close()


def test_models(guest: Guest) -> None:
    from qobra.command.tpm import query_tpm, query_tpm_models

    with guest.machine.control:
        assert query_tpm_models(guest.machine, {}) == ["tpm-tis"]
        assert [each["model"] for each in query_tpm(guest.machine, {})] == ["tpm-tis"]


def test_what_does_not_fit_is_refused(machine: Machine) -> None:
    class Card:
        node_name, compatible = "card", ("cards,one",)

    bus: Any = machine.board.platform_bus  # type: ignore[union-attr]

    def registers(size: int) -> Registers:
        return Registers("card", size, lambda _offset, _width: 1, lambda _offset, _width, _value: None)

    with machine.control:
        first = bus.attach(Card(), registers(0x5000), Line())
        second = bus.attach(Card(), registers(0x2000), Line())
        third = bus.attach(Card(), registers(0x2000), Line())
        assert [(place.offset, place.number) for place in bus.places] == [(0, 0), (0x6000, 1), (0x8000, 2)]
        with pytest.raises(QobraError, match="^Platform Bus: Can not fit MMIO region of size 2000000$"):
            bus.attach(Card(), registers(_SIZE), Line())
        for _ in range(29):
            bus.attach(Card(), registers(4), Line())
        with pytest.raises(QobraError, match="^Platform Bus: Can not fit IRQ line$"):
            bus.attach(Card(), registers(4), Line())
        for place in (first, second, third):
            bus.detach(place)
    assert BoardAccess(machine).load(_BASE, 4) == 0


@pytest.mark.parametrize(
    ("architecture", "board", "options", "reason"),
    [
        ("riscv64", "virt", {}, "'tpmdev' property is required"),
        ("riscv64", "virt", {"tpmdev": "x"}, "Property 'tpm-tis-device.tpmdev' can't find value 'x'"),
        ("riscv64", "none", {}, "Parameter 'driver' expects a dynamic sysbus device type for the machine"),
        ("x86_64", "pc", {}, "'tpm-tis-device' is not a valid device model name"),
    ],
)
def test_refusals(architecture: str, board: str, options: dict[str, str], reason: str) -> None:
    made = simple_machine(architecture, board, memory=16 << 20)
    try:
        with made.control:
            assert made.board is not None
            made.board.ready = False
            with pytest.raises(QobraError) as caught:
                add_device(made, {"driver": "tpm-tis-device", **options}, keyval=True)
        assert str(caught.value) == reason
    finally:
        made.close()


def test_it_does_not_come_later(machine: Machine) -> None:
    with machine.control, pytest.raises(QobraError, match="^Bus 'main-system-bus' does not support hotplugging$"):
        add_device(machine, {"driver": "tpm-tis-device", "tpmdev": "t"}, keyval=True)

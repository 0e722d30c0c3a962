"""Functions of PCI Express: what virtio devices become behind a port, and a function that is reset alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.pci import express, regs
from qobra.machine.plug import add_device


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = simple_machine("x86_64", "q35", memory=16 << 20)
    yield machine
    machine.close()


def _plug(machine: Machine, **options: Any) -> Any:
    with machine.control:
        board: Any = machine.board
        board.ready = False
        device = add_device(machine, options, keyval=False)
        board.ready = True
    return device


def _capabilities(device: Any) -> dict[int, int]:
    found, at = {}, device.config[regs.CAPABILITIES]
    while at:
        found.setdefault(device.config[at], at)
        at = device.config[at + 1]
    return found


def _behind_port(machine: Machine, **options: Any) -> Any:
    _plug(machine, driver="pcie-root-port", id="rp", chassis=1)
    return _plug(machine, bus="rp", **options)


def test_virtio_behind_a_port_is_an_endpoint(machine: Machine) -> None:
    device = _behind_port(machine, driver="virtio-rng-pci")
    found = _capabilities(device)
    assert found[regs.CAP_EXPRESS] == 0x40 and found[regs.CAP_PM] == 0x7C
    assert len(device.config) == 4096 and device.dword(express.EXTENDED) == 0
    assert device.word(0x42) >> 4 & 15 == express.ENDPOINT


def test_virtio_on_the_root_is_conventional(machine: Machine) -> None:
    device = _plug(machine, driver="virtio-rng-pci")
    assert regs.CAP_EXPRESS not in _capabilities(device) and len(device.config) == 256


def test_virtio_without_modern_registers_is_conventional(machine: Machine) -> None:
    device = _behind_port(machine, driver="virtio-rng-pci", **{"disable-modern": True, "disable-legacy": "off"})
    assert regs.CAP_EXPRESS not in _capabilities(device) and len(device.config) == 256


def test_address_translation(machine: Machine) -> None:
    device = _behind_port(machine, driver="virtio-rng-pci", ats=True)
    assert device.dword(express.EXTENDED) == 0x0001000F


def test_a_function_is_reset_alone(machine: Machine) -> None:
    device = _behind_port(machine, driver="virtio-rng-pci")
    with machine.control:
        device.config_write(regs.COMMAND, 2, 7)
        device.device.write_status(3)
        device.config_write(0x40 + express.DEVICE_CONTROL, 2, 0x8000 | 0xF)
    assert device.device.status == 0 and device.config[regs.COMMAND] == 0
    assert device.word(0x40 + express.DEVICE_CONTROL) == 0


def test_nvme_is_part_of_the_root_complex_or_an_endpoint(machine: Machine) -> None:
    at_root = _plug(machine, driver="nvme", serial="a")
    behind = _behind_port(machine, driver="nvme", serial="b")
    kinds = [each.word(_capabilities(each)[regs.CAP_EXPRESS] + 2) >> 4 & 15 for each in (at_root, behind)]
    assert kinds == [express.INTEGRATED, express.ENDPOINT]


def test_errors_that_the_guest_masks_stay_masked_over_a_reset(machine: Machine) -> None:
    port = _plug(machine, driver="pcie-root-port", chassis=1)
    with machine.control:
        port.config_write(express.EXTENDED + 0x14, 4, 0)
        port.config_write(0x54 + express.DEVICE_CONTROL, 2, 0xF)
        machine.board.reset_all()  # type: ignore[union-attr]
    assert port.dword(express.EXTENDED + 0x14) == 0
    assert port.word(0x54 + express.DEVICE_CONTROL) == 0


def test_bridge_to_conventional_slots_has_a_controller(machine: Machine) -> None:
    bridge = _behind_port(machine, driver="pcie-pci-bridge")
    assert _capabilities(bridge)[0x0C] == 0x40
    assert 0 in bridge.bars and bridge.word(express.EXTENDED) == 1


def test_system_management_lock_stays(machine: Machine) -> None:
    lpc: Any = machine.board.lpc  # type: ignore[union-attr]
    with machine.control:
        lpc.config_write(0xA0, 1, 0x10)
        lpc.config_write(0xA0, 1, 0)
    assert lpc.config[0xA0] == 0x10


def test_the_size_of_the_extended_segment_can_be_asked(machine: Machine) -> None:
    hub = next(each for each in machine.board.pci_root.functions.values() if each.type_name == "mch")  # type: ignore[union-attr]
    with machine.control:
        hub.config_write(0x50, 2, 0x1234)
        assert hub.word(0x50) == 0x1234
        hub.config_write(0x50, 2, 0xFFFF)
        assert hub.word(0x50) == 16

"""Devices over QMP: values are taken as an option's text would be, and refused in QEMU's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.command.qdev import option_text
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.qmp import dispatch


@pytest.fixture
def machine() -> Iterator[Any]:
    machine = simple_machine("x86_64", "pc", memory=2 << 20)
    yield machine
    machine.close()


def _call(machine: Any, command: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, command, {name.replace("_", "-"): value for name, value in arguments.items()})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (True, "on"),
        (-5, "-5"),
        (1.5, "1.5"),
        (1 << 64, "1.8446744073709552e+19"),
        (None, None),
        ([1], None),
        ({"a": 1}, None),
    ],
)
def test_texts_of_values(value: Any, text: str | None) -> None:
    assert option_text(value) == text


def test_a_place_is_hexadecimal_even_as_a_number(machine: Any) -> None:
    dispatch_arguments = {"driver": "virtio-rng-pci", "id": "r", "addr": 10, "event_idx": None}
    with machine.control:
        dispatch.call(machine, "device_add", dispatch_arguments)
    assert machine.objects.resolve("/machine/peripheral/r").get("addr") == 0x10 << 3
    with pytest.raises(QobraError, match="Property 'virtio-rng-pci.addr' doesn't take value '128'"):
        _call(machine, "device_add", driver="virtio-rng-pci", addr=128)


def test_devices_without_a_name_are_counted(machine: Any) -> None:
    _call(machine, "device_add", driver="virtio-rng-pci")
    with pytest.raises(QobraError):
        _call(machine, "device_add", driver="virtio-rng-pci", rombar="x")
    _call(machine, "device_add", driver="virtio-rng-pci")
    assert list(machine.board.peripheral_anon.children) == ["device[0]", "device[2]"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"logical_block_size": 1},
            "Property .logical_block_size doesn't take value 1 (minimum: 512, maximum: 2097152)",
        ),
        (
            {"physical_block_size": 1000},
            "Property .physical_block_size doesn't take value '1000', it's not a power of 2",
        ),
        (
            {"opt_io_size": 1 << 32},
            "Property virtio-blk-device.opt_io_size doesn't take value 4294967296 (maximum: 4294967295)",
        ),
        ({"min_io_size": -1}, "Parameter 'min_io_size' expects size"),
    ],
)
def test_sizes_of_disks(machine: Any, arguments: dict[str, Any], text: str) -> None:
    with machine.control, pytest.raises(QobraError) as caught:
        dispatch.call(machine, "device_add", {"driver": "virtio-blk-pci", "id": "x"} | arguments)
    assert caught.value.desc == text

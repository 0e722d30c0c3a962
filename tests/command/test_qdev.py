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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"id": "1 2"}, "Parameter 'id' expects an identifier"),
        ({"id": "1 2", "failover_pair_id": "n"}, "Parameter 'id' expects an identifier"),
        ({"id": 5}, "Parameter 'driver' is missing"),
        ({"driver": None}, "Parameter 'driver' is missing"),
        ({}, "Parameter 'driver' is missing"),
    ],
)
def test_an_id_is_looked_at_before_a_driver_is_missed(machine: Any, arguments: dict[str, Any], text: str) -> None:
    with machine.control, pytest.raises(QobraError, match=text):
        dispatch.call(machine, "device_add", arguments)


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


def _set(machine: Any, path: str, name: str, value: Any) -> str:
    try:
        _call(machine, "qom-set", path=path, property=name, value=value)
    except QobraError as error:
        return error.desc
    return "set"


def test_what_may_change_while_a_device_works(machine: Any) -> None:
    for id in ("a", "b"):
        _call(machine, "device_add", driver="e1000", id=id)
    assert _set(machine, "/machine/peripheral/a", "bootindex", 5) == "set"
    assert _set(machine, "/machine/peripheral/b", "bootindex", 5) == "The bootindex 5 has already been used"
    assert _set(machine, "/machine/peripheral/b", "bootindex", "x").startswith("Invalid parameter type")
    text = "Attempt to set property 'mac' on device 'a' (type 'e1000') after it was realized"
    assert _set(machine, "/machine/peripheral/a", "mac", "52:54:00:12:34:56") == text
    _call(machine, "device_add", driver="virtio-rng-pci", id="r")
    assert _set(machine, "/machine/peripheral/r", "rng", "nope") == "Device 'nope' not found"
    backend = _call(machine, "qom-get", path="/machine/peripheral/r", property="rng")
    text = "Attempt to set link property 'rng' on device '(null)' (type 'virtio-rng-device') after it was realized"
    assert _set(machine, "/machine/peripheral/r", "rng", backend) == text


def test_what_objects_keep(machine: Any) -> None:
    for kind, id, properties in (
        ("memory-backend-ram", "m", {"size": 4096}),
        ("rng-random", "r", {}),
        ("throttle-group", "t", {}),
    ):
        machine.objects.create(kind, id, properties)
    assert _set(machine, "/objects/m", "size", "x") == "cannot change property size of memory-backend-ram "
    assert _set(machine, "/objects/m", "prealloc-threads", 1 << 32) == "Parameter 'prealloc-threads' expects uint32_t"
    assert _set(machine, "/objects/m", "prealloc-threads", "x") == "Parameter 'prealloc-threads' expects uint64"
    assert _set(machine, "/objects/r", "filename", "x") == "Property 'filename' can no longer be set"
    assert _set(machine, "/objects/t", "x-iops-total", "x") == "Property cannot be set after initialization"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("memory-backend-ram", "size"),
        ("authz-simple", "identity"),
        ("secret_keyring", "serial"),
        ("rng-egd", "chardev"),
        ("pr-manager-helper", "path"),
    ],
)
def test_what_objects_need(machine: Any, kind: str, name: str) -> None:
    with pytest.raises(QobraError, match=f"Parameter '{name}' is missing"):
        machine.objects.create(kind, "o", {})


def test_paths_follow_links(machine: Any) -> None:
    _call(machine, "device_add", driver="virtio-rng-pci", id="r")
    by_link = _call(machine, "qom-list", path="/machine/peripheral/r/parent_bus")
    assert by_link == _call(machine, "qom-list", path=_call(machine, "qom-get", path="r", property="parent_bus"))
    child = next(each["name"] for each in by_link if each["type"] == "link<virtio-rng-pci>")
    assert (
        _call(machine, "qom-get", path=f"r/parent_bus/{child}/parent_bus/{child}", property="type") == "virtio-rng-pci"
    )
    for wrong in ("/machine/peripheral/r/addr", "/machine/peripheral/r/parent_bus/nothing"):
        with pytest.raises(QobraError, match="not found"):
            _call(machine, "qom-get", path=wrong, property="type")


def test_what_may_be_chosen_is_told(machine: Any) -> None:
    listed = _call(machine, "device-list-properties", typename="virtio-blk-pci")
    told = {each["name"]: each.get("description") for each in listed}
    assert (told["ats"], told["disable-legacy"]) == ("on/off", "auto/on/off")
    assert told["write-cache"] == "auto/on/off"  # one of the device that the function carries
    assert told["addr"]

"""Types that are there by name alone: interfaces, bases without anything of their own, what comes with its users."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.object.qom import Object
from qobra.qmp import dispatch


class Leaf(Object):
    """A type two bases below the root."""

    type_name = "test-leaf"
    interfaces = ("test-interface",)
    ancestors = {"test-nearer": ("test-other",), "test-farther": ()}


def test_ancestors_are_types_between() -> None:
    assert [each.type_name for each in Leaf.lineage()] == ["test-leaf", "test-nearer", "test-farther", "object"]
    assert Leaf.parent_type() == "test-nearer"
    nearer, farther = list(Leaf.lineage())[1:3]
    assert nearer.abstract and nearer.parent_type() == "test-farther"
    assert farther.parent_type() == "object"
    assert Leaf.implements("test-farther") and not farther.implements("test-nearer")


def test_interfaces_of_ancestors_are_inherited() -> None:
    nearer, farther = list(Leaf.lineage())[1:3]
    assert Leaf.all_interfaces() == {"test-interface", "test-other"}
    assert nearer.implements("test-other") and not nearer.implements("test-interface")
    assert not farther.all_interfaces()


@pytest.mark.parametrize(("kind", "there", "not_there"), [
    ("bus", "ISA", "device"),
    ("user-creatable", "memory-backend-ram", "virtio-rng-pci"),
    ("hotplug-handler", "pcie-root-port", "e1000"),
    ("pci-host-bridge", "q35-pcihost", "mch"),
])  # fmt: skip
def test_lists_of_types(kind: str, there: str, not_there: str) -> None:
    machine = simple_machine("x86_64", "none")
    try:
        names = {name for name, cls in machine.objects.all_types().items() if cls.implements(kind)}
    finally:
        machine.close()
    assert there in names and not_there not in names


def test_versions_of_a_board_are_no_kinds_of_the_newest() -> None:
    machine = simple_machine("x86_64", "none")
    try:
        types = machine.objects.all_types()
        assert types["pc-q35-6.2-machine"].parent_type() == types["pc-q35-7.2-machine"].parent_type()
        assert types["hotplug-handler"].parent_type() == "interface"
    finally:
        machine.close()


@pytest.mark.parametrize(("driver", "text"), [
    (5, "'5' is not a valid device model name"), (True, "'on' is not a valid device model name"),
    (1.5, "'1.5' is not a valid device model name"), ([1], "Parameter 'driver' is missing"),
    (None, "Parameter 'driver' is missing"),
])  # fmt: skip
def test_models_that_are_no_names(driver: Any, text: str) -> None:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    try:
        with machine.control, pytest.raises(QobraError) as caught:
            dispatch.call(machine, "device_add", {"driver": driver})
        assert caught.value.desc == text
    finally:
        machine.close()


def test_a_device_shows_its_place_first() -> None:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    try:
        with machine.control:
            device = add_device(machine, {"driver": "virtio-rng-pci", "id": "r"}, keyval=True)
        first = ["type", "parent_bus", "realized", "hotplugged", "hotpluggable"]
        assert list(device.properties())[:5] == first
    finally:
        machine.close()

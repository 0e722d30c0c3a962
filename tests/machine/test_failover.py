"""A card that stands by for another: when the primary is there, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device, plug_in
from qobra.testing.guest import BoardAccess, ModernPci, PciFunction, start_driver

_STANDBY = 1 << 62
_PRIMARY = {"driver": "e1000", "netdev": "n1", "failover_pair_id": "sb", "bus": "rp1"}


def make() -> Machine:
    """A machine with ports for two cards, and one that stands by on the root bus."""
    machine = simple_machine("x86_64", "q35", memory=4 << 20, running=True)
    with machine.control:
        for number in range(3):
            machine.netdevs.create({"type": "hubport", "id": f"n{number}", "hubid": number})
            port = {"driver": "pcie-root-port", "id": f"rp{number}", "chassis": str(number), "addr": str(4 + number)}
            machine.board.ready = False  # type: ignore[union-attr]
            add_device(machine, port, keyval=True)
        standby = {"driver": "virtio-net-pci", "id": "sb", "netdev": "n0", "failover": "on", "addr": "3"}
        add_device(machine, standby, keyval=True)
        machine.board.ready = True  # type: ignore[union-attr]
    return machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = make()
    yield machine
    machine.close()


def _plug(machine: Machine, **options: str) -> None:
    with machine.control:
        plug_in(machine, _PRIMARY | options, keyval=True)


def _negotiate(machine: Machine) -> int:
    function = PciFunction(BoardAccess(machine), 3 << 3)
    function.enable()
    return start_driver(ModernPci(function), 1 << 32 | _STANDBY)


def _children(machine: Machine) -> Any:
    board: Any = machine.board
    return board.peripheral.children


def test_the_primary_comes_once_the_driver_knows_of_standbys(machine: Machine) -> None:
    events: list[Any] = []
    machine.events.subscribe(lambda event: events.append((event["event"], event.get("data"))))
    _plug(machine, id="pr")
    assert "pr" not in _children(machine)
    assert _negotiate(machine) & _STANDBY
    assert ("FAILOVER_NEGOTIATED", {"device-id": "sb"}) in events
    assert _children(machine)["pr"].realized


def test_one_primary_for_one_standby(machine: Machine) -> None:
    _plug(machine, id="pr")
    text = "Cannot attach more than one primary device to 'sb': 'pr' and 'other'"
    with pytest.raises(QobraError, match=text):
        _plug(machine, id="other", bus="rp2")
    with pytest.raises(QobraError, match="Device with failover_pair_id needs to have id"):
        _plug(machine)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bus": "rp1", "driver": "virtio-rng-pci"}, "failover primary device is not an Ethernet device"),
        ({"bus": "rp1", "multifunction": "on"}, "failover: primary device must be in its own PCI slot"),
    ],
)
def test_what_is_no_primary(machine: Machine, options: dict[str, str], text: str) -> None:
    wanted = {"driver": "e1000", "failover_pair_id": "none"} | options
    with machine.control, pytest.raises(QobraError) as caught:
        add_device(machine, wanted, keyval=True)
    assert caught.value.desc == text


def test_a_hidden_primary_is_refused_where_nothing_can_be_plugged_in(machine: Machine) -> None:
    with pytest.raises(QobraError, match="Bus 'pcie.0' does not support hotplugging"):
        _plug(machine, id="pr", bus="pcie.0")


def test_a_primary_on_a_bus_that_the_guest_cannot_empty() -> None:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    try:
        with pytest.raises(QobraError, match="failover primary device must be on PCIExpress bus"):
            add_device(machine, {"driver": "e1000", "failover_pair_id": "x"}, keyval=True)
    finally:
        machine.close()


def test_options_roms(machine: Machine, tmp_path: Any) -> None:
    rom = tmp_path / "rom"
    rom.write_bytes(b"\x55\xaa" + bytes(3000))
    device = {"driver": "virtio-rng-pci", "bus": "rp2", "romfile": str(rom)}

    def refused(**options: str) -> str:
        with pytest.raises(QobraError) as caught, machine.control:
            add_device(machine, device | options, keyval=True)
        return caught.value.desc

    assert refused(romsize="3000") == "ROM size 3000 is not a power of two"
    assert refused(romsize="2048") == f'romfile "{rom}" (3002 bytes) is too large for ROM size 2048'
    assert refused(rombar="0") == "Hot-plugged device without ROM bar can't have an option ROM"
    with machine.control:
        added = add_device(machine, device | {"romsize": "65536"}, keyval=True)
    assert added.bars[6].size == 65536  # type: ignore[attr-defined]
    rom.write_bytes(b"")
    assert refused(bus="rp1") == f'romfile "{rom}" is empty'


def test_the_primary_leaves_for_a_migration_and_comes_back(machine: Machine) -> None:
    _plug(machine, id="pr")
    _negotiate(machine)
    board: Any = machine.board
    events: list[str] = []
    machine.events.subscribe(lambda event: events.append(event["event"]))
    with machine.control:
        board.failover.release()
        assert board.failover.releasing
        _children(machine)["pr"].unparent()
        assert not board.failover.releasing
        board.failover.take_back()
    assert events == ["UNPLUG_PRIMARY"]
    with machine.control:
        _children(machine)["pr"].unparent()
    assert events[-1] == "DEVICE_DELETED"


def test_a_primary_that_never_left_is_told_of_again(machine: Machine) -> None:
    _plug(machine, id="pr")
    _negotiate(machine)
    board: Any = machine.board
    events: list[str] = []
    machine.events.subscribe(lambda event: events.append(event["event"]))
    with machine.control:
        board.failover.release()
        board.failover.take_back()
        assert _children(machine)["pr"].realized and "DEVICE_DELETED" not in events
        _children(machine)["pr"].unparent()
    assert events[-1] == "DEVICE_DELETED"


def test_names_of_devices_are_their_own() -> None:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    try:
        add_device(machine, {"driver": "virtio-rng-pci", "acpi-index": "5"}, keyval=True)
        for index, text in (
            (5, "a PCI device with acpi-index = 5 already exist"),
            (16384, "acpi-index should be less or equal to 16383"),
        ):
            with pytest.raises(QobraError, match=text):
                add_device(machine, {"driver": "virtio-rng-pci", "acpi-index": str(index)}, keyval=True)
    finally:
        machine.close()

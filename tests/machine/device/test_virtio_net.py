"""virtio-net: what may be said of it, and what its driver sees of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, ModernPci, PciFunction

_SPEED_DUPLEX = 63


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = simple_machine("x86_64", "pc", memory=32 << 20)
    yield machine
    machine.close()


def _plug(machine: Machine, **options: str) -> Any:
    with machine.control:
        return add_device(machine, {"driver": "virtio-net-pci", "id": "net", "addr": "5"} | options, keyval=True)


def _driver(machine: Machine) -> ModernPci:
    function = PciFunction(BoardAccess(machine), 5 << 3)
    function.enable()
    return ModernPci(function)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"speed": "10000", "duplex": "full"}, (10000, 1)),
        ({"speed": "0"}, (0, 0xFF)),
        ({"duplex": "half"}, (0xFFFFFFFF, 0)),
    ],
)
def test_speed_and_duplex_are_told(machine: Machine, options: dict[str, str], seen: tuple[int, int]) -> None:
    _plug(machine, **options)
    driver = _driver(machine)
    assert driver.features() >> _SPEED_DUPLEX & 1
    assert (driver.config(12, 4), driver.config(16, 1)) == seen


def test_speed_is_not_told_unasked(machine: Machine) -> None:
    _plug(machine)
    assert not _driver(machine).features() >> _SPEED_DUPLEX & 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"speed": "-2"}, "'speed' must be between 0 and INT_MAX"),
        ({"duplex": "both"}, "'duplex' must be 'half' or 'full'"),
        ({"netdev": ""}, "can't find value ''"),
        ({"csum": "on"}, "This network card has no 'csum'"),
        ({"mq": "on"}, "This network card has no 'mq'"),
    ],
)
def test_what_cannot_be(machine: Machine, options: dict[str, str], told: str) -> None:
    with pytest.raises(QobraError, match=told):
        _plug(machine, **options)


def test_offloads_that_are_not_there_may_be_off(machine: Machine) -> None:
    names = ("csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo", "mrg_rxbuf")
    guests = ("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "mq", "rss", "hash")
    device = _plug(machine, **dict.fromkeys((*names, *guests), "off"))
    assert not device.get("csum")


def test_sizes_that_are_in_force_can_be_asked_for(machine: Machine) -> None:
    """As QEMU's: its own sending queue has 256 descriptors, and there are at most 2048 interrupts."""
    device = _plug(machine, tx_queue_size="1024", vectors="4096")
    assert (device.get("tx_queue_size"), device.get("vectors")) == (256, 0)
    assert device.msix is None

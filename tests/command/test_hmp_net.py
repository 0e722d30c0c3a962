"""The network for people: hubs, cards and backends as they are plugged into each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch, hmp


@pytest.fixture
def machine() -> Iterator[Any]:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    yield machine
    machine.close()


def _plug(machine: Any, driver: str, **options: str) -> Any:
    with machine.control:
        return add_device(machine, {"driver": driver, **options}, keyval=True)


def _lines(machine: Any, command: str) -> list[str]:
    return hmp.execute(machine, command).splitlines()


def test_what_is_plugged_into_what(machine: Any) -> None:
    for id, hub in (("a", 0), ("b", 0), ("c", 1)):
        assert hmp.execute(machine, f"netdev_add hubport,id={id},hubid={hub}") == ""
    _plug(machine, "virtio-net-pci", netdev="a", mac="52:54:00:12:34:56")
    _plug(machine, "e1000")
    _plug(machine, "e1000", id="named")
    card = "index=0,type=nic,model={},macaddr=52:54:00:12:34:{}"
    assert _lines(machine, "info network") == [
        "hub 1",
        " \\ c",
        "hub 0",
        " \\ b",
        f" \\ a: virtio-net-pci.0: {card.format('virtio-net-pci', 56)}",
        f"e1000.0: {card.format('e1000', 57)}",
        f"named: {card.format('e1000', 58)}",
    ]
    assert hmp.execute(machine, "netdev_del c") == ""
    assert _lines(machine, "netdev_del c") == ["Error: Device 'c' not found"]
    assert _lines(machine, "netdev_add hubport,hubid=0") == ["Error: Parameter 'id' is missing"]


def test_a_card_without_an_id_has_a_name(machine: Any) -> None:
    """By which it is known everywhere, and which stays while others come and go."""
    first = _plug(machine, "virtio-net-pci")
    _plug(machine, "virtio-net-pci", id="named")
    _plug(machine, "virtio-net-pci")
    with machine.control:
        first.unparent()
        told = [card["name"] for card in dispatch.call(machine, "query-rx-filter", {})]
        dispatch.call(machine, "query-rx-filter", {"name": "virtio-net-pci.2"})
    assert told == ["named", "virtio-net-pci.2"]
    assert _lines(machine, "set_link virtio-net-pci.2 off") == []
    assert _lines(machine, "set_link virtio-net-pci.0 off") == ["Error: Device 'virtio-net-pci.0' not found"]


def test_an_address_is_free_again_when_its_card_is_gone(machine: Any) -> None:
    first, second = (_plug(machine, "e1000", id=id) for id in "ab")
    _plug(machine, "e1000", id="c", mac="52:54:00:12:34:58")
    with machine.control:
        first.unparent()
    assert [_plug(machine, "e1000", id=id).get("mac")[-2:] for id in "de"] == ["56", "59"]
    assert second.get("mac")[-2:] == "57"

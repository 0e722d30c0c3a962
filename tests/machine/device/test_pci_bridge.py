"""``pci-bridge`` and its standard hot-plug controller, from the guest's side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, PciFunction

_COMMAND, _STATUS, _LOCATOR, _INTERRUPTS = 0x14, 0x16, 0x18, 0x20
_EMPTY, _FILLED = 0x7F000D0F, 0x7F000006


class Bridge:
    """A PC whose ACPI leaves the bridge alone, with the bridge in slot 5 and a device in its slot 3."""

    def __init__(self) -> None:
        self.machine: Machine = simple_machine("x86_64", "pc", memory=16 << 20)
        self.events: list[dict[str, Any]] = []
        self.machine.events.subscribe(self.events.append)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        board.power.values["acpi-pci-hotplug-with-bridge-support"] = False
        with self.machine.control:
            board.ready = False
            options = {"driver": "pci-bridge", "id": "br", "chassis_nr": 1, "addr": 5 << 3}
            self.device = add_device(self.machine, options, keyval=False)
            self.plug("r3", 3)
            board.ready = True
            board.reset_all()
        self.function = PciFunction(self.access, 5 << 3)
        self.function.set_config(0x10, 4, 0xE0000000)
        self.function.set_config(4, 2, 7)

    def plug(self, id: str, slot: int) -> None:
        with self.machine.control:
            options = {"driver": "virtio-rng-pci", "bus": "br", "id": id, "addr": slot << 3}
            add_device(self.machine, options, keyval=False)

    def unplug(self, id: str) -> None:
        with self.machine.control:
            dispatch.call(self.machine, "device_del", {"id": id})

    def get(self, offset: int, width: int = 4) -> int:
        return self.access.load(0xE0000000 + offset, width)

    def put(self, offset: int, value: int, width: int = 4) -> None:
        self.access.store(0xE0000000 + offset, width, value)

    def slot(self, number: int) -> int:
        return self.get(0x24 + 4 * (number - 1))

    def command(self, code: int, slot: int) -> int:
        self.put(_COMMAND, code | slot << 8, 2)
        return self.get(_STATUS, 2)

    def deleted(self) -> list[str]:
        return [e["data"]["device"] for e in self.events if e["event"] == "DEVICE_DELETED" and "device" in e["data"]]


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge()
    yield bridge
    bridge.machine.close()


def test_slots_tell_what_is_in_them(bridge: Bridge) -> None:
    assert bridge.get(0x0C) == 0xE001011F
    assert (bridge.slot(3), bridge.slot(4)) == (_FILLED, _EMPTY)
    # The capability shows the same registers, one at a time.
    offset = next(offset for kind, offset in bridge.function.capabilities() if kind == 0x0C)
    bridge.function.set_config(offset + 2, 1, 0x2C // 4)
    assert bridge.function.config(offset + 4) == _FILLED


def test_a_device_comes_is_switched_on_and_leaves(bridge: Bridge) -> None:
    bridge.put(_INTERRUPTS, 0)
    bridge.put(0x24 + 4 * 3, 0)  # no event of slot 4 is masked
    bridge.plug("r4", 4)
    assert bridge.slot(4) == 0x000D000F
    assert bridge.get(_LOCATOR) == 1 << 4
    assert bridge.function.config(6, 2) & 8  # the pin is driven
    bridge.put(0x24 + 4 * 3, 0x001F0000)
    assert not bridge.function.config(6, 2) & 8
    assert bridge.command(0x02 | 1 << 2 | 3 << 4, 4) == 0
    assert bridge.slot(4) & 0x3F == 0x36
    assert bridge.get(_INTERRUPTS) >> 16 == 1 and bridge.get(_LOCATOR) == 1
    bridge.put(_INTERRUPTS, 1 << 16)
    bridge.unplug("r4")
    bridge.unplug("r4")  # the button may be pressed again
    assert bridge.slot(4) >> 16 == 4
    assert bridge.deleted() == []
    assert bridge.command(0x03 | 3 << 2 | 3 << 4, 4) == 0
    assert bridge.deleted() == ["r4"]
    assert bridge.slot(4) & 0xFFFF == 0x0D3F


def test_a_slot_that_is_off_gives_its_device_up_at_once(bridge: Bridge) -> None:
    bridge.plug("r4", 4)
    bridge.unplug("r4")
    assert bridge.deleted() == ["r4"]


def test_commands_that_cannot_be(bridge: Bridge) -> None:
    assert [bridge.command(code, slot) for code, slot in ((0x50, 1), (2, 0), (0x48, 0), (0x49, 0))] == [4] * 4
    with pytest.raises(QobraError, match="Unsupported PCI slot 0 for standard hotplug controller"):
        bridge.plug("r0", 0)


def test_a_reset_switches_on_what_is_there(bridge: Bridge) -> None:
    bridge.plug("r4", 4)
    with bridge.machine.control:
        bridge.device.reset()
    bridge.function.set_config(0x10, 4, 0xE0000000)
    bridge.function.set_config(4, 2, 7)
    assert (bridge.slot(4), bridge.slot(5)) == (_FILLED, _EMPTY)


@given(st.lists(st.tuples(st.integers(0, 0xFF), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)), max_size=40))
def test_any_accesses(accesses: list[tuple[int, int, int]]) -> None:
    bridge = Bridge()
    try:
        for offset, width, value in accesses:
            bridge.put(offset & ~(width - 1), value & (1 << 8 * width) - 1, width)
            bridge.get(offset & ~(width - 1), width)
        for slot in range(1, 32):
            assert bridge.slot(slot) >> 31 == 0
    finally:
        bridge.machine.close()

"""Ports with slots: power, commands and events of the slot's registers; switches; bridges of older chipsets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.pci import express, regs
from qobra.machine.plug import add_device
from qobra.qmp import dispatch

_OFF, _ON = 0x7C0, 0x1C0
_PRESENT, _PRESENCE, _ATTENTION, _COMPLETED, _INTERLOCK = 0x40, 0x08, 0x01, 0x10, 0x80


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A q35 whose slots do their hot-plug themselves."""
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "q35"))
        board.add_global("ICH9-LPC", "acpi-pci-hotplug-with-bridge-support", "off")
        board.set_topology({"cpus": 1})
        board.set_memory(16 << 20)
        board.start()
        board.finish()
    yield machine
    machine.close()


def _cold(machine: Machine, driver: str, **options: Any) -> Any:
    board: Any = machine.board
    with machine.control:
        board.ready = False
        device = add_device(machine, {"driver": driver} | options, keyval=False)
        board.ready = True
        board.reset_all()
    return device


class Slot:
    """The slot of a port from its driver's side."""

    def __init__(self, port: Any) -> None:
        self.port = port
        port.put(regs.SECONDARY_BUS, 1, 1)
        port.put(regs.SUBORDINATE_BUS, 1, 9)

    def control(self, value: int | None = None) -> int:
        at = self.port._express + express.SLOT_CONTROL
        if value is not None:
            with self.port.machine.control:
                self.port.config_write(at, 2, value)
        return int(self.port.word(at))

    def status(self, clear: int | None = None) -> int:
        at = self.port._express + express.SLOT_STATUS
        if clear is not None:
            with self.port.machine.control:
                self.port.config_write(at, 2, clear)
        return int(self.port.word(at))

    def device_word(self, function: int = 0) -> int:
        with self.port.machine.control:
            return int(self.port.pci_bus.config_read(0x100 | function, 0, 2))

    def plug(self, **options: Any) -> Any:
        with self.port.machine.control:
            return add_device(
                self.port.machine, {"driver": "pvpanic-pci", "bus": self.port.user_id} | options, keyval=False
            )

    def unplug(self, name: str) -> None:
        with self.port.machine.control:
            dispatch.call(self.port.machine, "device_del", {"id": name})


@pytest.fixture(params=["pcie-root-port", "ioh3420"])
def slot(machine: Machine, request: pytest.FixtureRequest) -> Slot:
    return Slot(_cold(machine, request.param, id="rp", chassis=1))


def test_a_device_shows_when_its_slot_gives_power(slot: Slot) -> None:
    assert slot.control() == _OFF
    device = slot.plug(id="a")
    assert slot.status() == _PRESENT | _PRESENCE | _ATTENTION
    assert slot.device_word() == 0xFFFF and not device.may_master()
    slot.control(_ON)
    assert slot.device_word() == regs.RED_HAT and slot.status() & _COMPLETED
    with slot.port.machine.control:
        device.config_write(regs.COMMAND, 2, regs.COMMAND_MEMORY | regs.COMMAND_MASTER)
    assert device.may_master()
    slot.control(0x5C0)  # power off, its indicator still on: the device stays, without what it knew
    assert slot.device_word() == 0xFFFF and not device.may_master()
    slot.control(_ON)
    assert slot.device_word() == regs.RED_HAT and device.word(regs.COMMAND) == 0


def test_a_guest_lets_go_by_power_and_indicator(slot: Slot) -> None:
    slot.plug(id="a")
    slot.control(_ON)
    slot.unplug("a")
    assert slot.status() & _ATTENTION and slot.port.secondary.functions
    slot.control(0x6C0)  # still blinking
    assert slot.port.secondary.functions
    slot.control(_OFF)
    assert not slot.port.secondary.functions
    assert slot.status() & (_PRESENT | _PRESENCE) == _PRESENCE


def test_a_guest_may_let_go_unasked(slot: Slot) -> None:
    slot.plug(id="a")
    slot.control(_ON)
    slot.control(_OFF)
    assert not slot.port.secondary.functions


def test_a_reset_takes_back_that_a_device_was_asked_for(slot: Slot) -> None:
    device = slot.plug(id="a")
    slot.control(_ON)
    slot.unplug("a")
    assert device.unplug_pending
    with slot.port.machine.control:
        slot.port.board.reset_all()
    assert slot.port.secondary.functions and not device.unplug_pending
    assert slot.control() == _ON and slot.status() == _PRESENT


def test_functions_wait_for_the_first(slot: Slot) -> None:
    slot.plug(id="b", addr="0.1")
    assert slot.status() == 0
    slot.plug(id="a", multifunction=True)
    assert slot.status() & _PRESENT
    slot.control(_ON)
    assert [slot.device_word(n) for n in (0, 1)] == [regs.RED_HAT] * 2


def test_who_clears_what_has_not_happened_clears_nothing(slot: Slot) -> None:
    slot.plug(id="a")
    assert slot.status(clear=0x1F) == _PRESENT | _PRESENCE | _ATTENTION
    assert slot.status(clear=_PRESENCE) == _PRESENT | _ATTENTION


def test_the_interlock_is_toggled_by_a_one(slot: Slot) -> None:
    slot.control(_OFF | 0x800)
    assert slot.status() == _INTERLOCK | _COMPLETED and slot.control() == _OFF
    slot.control(_OFF | 0x800)
    assert slot.status() == _COMPLETED


def test_a_message_tells_of_the_slot(machine: Machine) -> None:
    slot = Slot(_cold(machine, "ioh3420", id="rp", chassis=1))
    with machine.control:
        slot.port.config_write(regs.COMMAND, 2, regs.COMMAND_MASTER)
        slot.port.config_write(0x64, 4, 0x1000)
        slot.port.config_write(0x68, 2, 0x4321)
        slot.port.config_write(0x62, 2, 1)
    slot.control(_OFF | 0x28)  # presence interrupts
    slot.plug(id="a")
    with machine.control:
        assert slot.port.board.memory.load(0x1000, 4) == 0x4321


def test_devices_behind_a_switch(machine: Machine) -> None:
    root = _cold(machine, "pcie-root-port", id="root", chassis=1)
    up = _cold(machine, "x3130-upstream", id="up", bus="root")
    ports = [_cold(machine, "xio3130-downstream", id=f"d{n}", bus="up", chassis=2, slot=n) for n in (1, 2)]
    _cold(machine, "pvpanic-pci", bus="d2")
    for bridge, secondary, last in ((root, 1, 4), (up, 2, 4), (ports[0], 3, 3), (ports[1], 4, 4)):
        bridge.put(regs.SECONDARY_BUS, 1, secondary)
        bridge.put(regs.SUBORDINATE_BUS, 1, last)
    find = root.pci_bus.find_function
    assert [getattr(find(n, devfn), "type_name", None) for n, devfn in ((1, 0), (2, 0), (2, 8), (3, 0), (4, 0))] == [
        "x3130-upstream", "xio3130-downstream", "xio3130-downstream", None, "pvpanic-pci",
    ]  # fmt: skip
    kinds = [each.word(0x92) >> 4 & 15 for each in (up, *ports)]
    assert kinds == [express.UPSTREAM, express.DOWNSTREAM, express.DOWNSTREAM]
    with pytest.raises(Exception, match="Can't add chassis slot"):
        _cold(machine, "xio3130-downstream", bus="up", chassis=2, slot=2)


def test_a_second_device_at_a_port_has_a_place_where_nobody_looks(machine: Machine) -> None:
    slot = Slot(_cold(machine, "pcie-root-port", id="rp", chassis=1))
    _cold(machine, "pvpanic-pci", bus="rp")
    assert _cold(machine, "pvpanic-pci", bus="rp").devfn == 8
    with pytest.raises(Exception, match="already occupied by pvpanic-pci"):
        slot.plug()


def test_a_bridge_of_an_older_chipset(machine: Machine) -> None:
    bridge = _cold(machine, "i82801b11-bridge", id="old")
    _cold(machine, "pvpanic-pci", bus="old", addr="3")
    bridge.put(regs.SECONDARY_BUS, 2, 0x0101)
    assert bridge.pci_bus.config_read(0x118, 0, 4) == 0x00111B36
    assert (bridge.dword(0), bridge.config[regs.CAPABILITIES], bridge.config[0x50]) == (0x244E8086, 0x50, 0x0D)


def test_what_goes_before_the_guest_gave_it_power_leaves_no_button_pressed(slot: Slot) -> None:
    slot.plug(id="a")
    assert slot.status() & _ATTENTION
    slot.unplug("a")
    assert not slot.port.secondary.functions
    assert slot.status() == _PRESENCE


def test_a_slot_without_a_controller_of_its_power(machine: Machine) -> None:
    port = _cold(machine, "pcie-root-port", id="p", chassis=1, power_controller_present=False)
    slot = Slot(port)
    assert not port.config[port._express + express.SLOT_CAPABILITIES] & 2
    assert slot.control() == 0xC0
    slot.plug(id="d")
    assert slot.device_word() == regs.RED_HAT  # it has power at once
    assert slot.control(_OFF) == _OFF & ~0x400
    assert slot.device_word() == 0xFFFF and not slot.status() & _PRESENT


def test_access_control_can_be_left_out(machine: Machine) -> None:
    port = _cold(machine, "pcie-root-port", id="p", chassis=1, **{"disable-acs": True})
    assert port.dword(0x100) >> 20 == 0
    assert _cold(machine, "pcie-root-port", id="q", chassis=2).dword(0x100) >> 20


@pytest.mark.parametrize("driver", ["pcie-root-port", "pci-bridge"])
def test_what_firmware_is_asked_to_keep_free(machine: Machine, driver: str) -> None:
    place = {"chassis": 1} if driver == "pcie-root-port" else {"chassis_nr": 1}
    wishes = {"bus-reserve": 2, "io-reserve": 0x1000, "mem-reserve": 0x200000, "pref64-reserve": 1 << 33}
    device = _cold(machine, driver, id="a", **place, **wishes)
    start = device.config[regs.CAPABILITIES]
    assert device.config[start] == regs.CAP_VENDOR
    told = bytes(device.config[start + 2 : start + 32])
    assert told == bytes.fromhex("2001 02000000 0010000000000000 00002000 ffffffff 0000000002000000")
    with machine.control:
        device.config_write(start + 4, 4, 0)
    assert device.dword(start + 4) == 2
    place = dict.fromkeys(place, 2)
    assert _cold(machine, driver, id="b", **place).config[regs.CAPABILITIES] != start


@pytest.mark.parametrize(
    ("wishes", "text"),
    [
        ({"mem-reserve": 1 << 32}, "mem-reserve must be less than 4G"),
        ({"pref32-reserve": 1 << 33}, "pref32-reserve  must be less than 4G"),
        ({"pref32-reserve": 0, "pref64-reserve": 0}, "PREF32 and PREF64 conflict"),
    ],
)
def test_what_firmware_cannot_keep_free(machine: Machine, wishes: dict[str, int], text: str) -> None:
    with pytest.raises(QobraError, match=f"^PCI resource reserve cap: {text}$"):
        _cold(machine, "pci-bridge", id="a", chassis_nr=1, **wishes)


def test_a_bridge_without_its_controller_interrupts_nobody(machine: Machine) -> None:
    device = _cold(machine, "pci-bridge", id="a", chassis_nr=1, shpc=False)
    assert device.config[regs.INTERRUPT_PIN] == 0
    start, kinds = device.config[regs.CAPABILITIES], []
    while start:
        kinds.append(device.config[start])
        start = device.config[start + 1]
    assert kinds == [0x04]

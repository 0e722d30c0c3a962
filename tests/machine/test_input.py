"""Keys and mice: from commands to the keyboard controller's registers."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine import scancodes
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qapi.contract import contract
from qobra.qmp import dispatch, hmp
from qobra.testing.guest import BoardAccess


@pytest.fixture
def machine() -> Any:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    with machine.control:
        machine.run_state.start()
    yield machine
    machine.close()


def _drain(guest: BoardAccess) -> list[int]:
    codes = []
    while guest.port_in(0x64, 1) & 1:
        codes.append(guest.port_in(0x60, 1))
    return codes


def _call(machine: Any, command: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, command, {key.replace("_", "-"): value for key, value in arguments.items()})


def _qcode(name: str) -> dict[str, str]:
    return {"type": "qcode", "data": name}


def test_keys_are_pressed_held_and_let_go(machine: Any) -> None:
    guest = BoardAccess(machine)
    _call(machine, "send-key", keys=[_qcode("ctrl"), _qcode("delete")], hold_time=0)
    _pass(machine, 0)
    # Set 2: down, down, then up in reverse.
    assert _drain(guest) == [0x14, 0xE0, 0x71, 0xE0, 0xF0, 0x71, 0xF0, 0x14]


def _pass(machine: Any, milliseconds: int) -> None:
    with machine.control:
        machine.board.clock.step(milliseconds * 1_000_000)


def test_keys_wait_until_those_before_are_up(machine: Any) -> None:
    guest = BoardAccess(machine)
    _call(machine, "send-key", keys=[_qcode("shift"), _qcode("a")], hold_time=200)
    _call(machine, "send-key", keys=[_qcode("a")])
    assert _drain(guest) == [0x12, 0x1C]
    _pass(machine, 199)
    assert _drain(guest) == []
    _pass(machine, 1)
    assert _drain(guest) == [0xF0, 0x1C, 0xF0, 0x12]
    _pass(machine, 200)
    assert _drain(guest) == [0x1C]
    _pass(machine, 100)
    assert _drain(guest) == [0xF0, 0x1C]
    _pass(machine, 1000)
    _call(machine, "send-key", keys=[_qcode("a"), _qcode("a")])
    _pass(machine, 100)
    assert _drain(guest) == [0x1C, 0x1C, 0xF0, 0x1C, 0xF0, 0x1C]


class _Keyboard:
    input_name = "keyboard"
    accepts = frozenset(("key",))

    def __init__(self) -> None:
        self.events: list[Any] = []

    def input_event(self, event: Any) -> None:
        self.events.append(event)

    def input_sync(self) -> None:
        pass


def test_keys_that_wait_are_not_too_many(machine: Any) -> None:
    keyboard = _Keyboard()
    machine.board.input.add(keyboard)
    for _ in range(5):
        _call(machine, "send-key", keys=[_qcode("a")] * 300, hold_time=1)
    _pass(machine, 1000)
    assert len(keyboard.events) == 2 * 600  # a third would have made 1,500 of them wait


def test_a_loaded_state_forgets_keys_that_wait(machine: Any) -> None:
    guest = BoardAccess(machine)
    _call(machine, "send-key", keys=[_qcode("a")])
    machine.board.clock.restore(5)
    _drain(guest)
    _call(machine, "send-key", keys=[_qcode("b")])
    _pass(machine, 100)
    assert _drain(guest) == [0x32, 0xF0, 0x32]


def test_the_controller_translates_when_asked(machine: Any) -> None:
    guest = BoardAccess(machine)
    guest.port_out(0x64, 1, 0x60)
    guest.port_out(0x60, 1, 0x43)
    event = {"type": "key", "data": {"key": _qcode("a"), "down": True}}
    _call(machine, "input-send-event", events=[event])
    assert _drain(guest) == [0x1E]


def test_mouse_packets(machine: Any) -> None:
    guest = BoardAccess(machine)
    guest.port_out(0x64, 1, 0xD4)
    guest.port_out(0x60, 1, 0xF4)
    assert _drain(guest) == [0xFA]
    events = [
        {"type": "rel", "data": {"axis": "x", "value": 5}},
        {"type": "rel", "data": {"axis": "y", "value": 200}},
        {"type": "btn", "data": {"button": "left", "down": True}},
    ]
    _call(machine, "input-send-event", events=events)
    assert _drain(guest) == [0x29, 5, 0x81, 0x29, 0, 0xB7]
    assert _call(machine, "query-mice") == [{"name": "QEMU PS/2 Mouse", "index": 2, "current": True, "absolute": False}]


def test_the_form_of_2_5_has_capitals(machine: Any) -> None:
    guest = BoardAccess(machine)
    guest.port_out(0x64, 1, 0xD4)
    guest.port_out(0x60, 1, 0xF4)
    assert _drain(guest) == [0xFA]
    moved = {"type": "rel", "data": {"axis": "X", "value": 5}}
    pressed = {"type": "btn", "data": {"button": "Left", "down": True}}
    _call(machine, "x-input-send-event", console=0, events=[moved, pressed])
    assert _drain(guest) == [0x09, 5, 0]
    with pytest.raises(QobraError, match="Invalid parameter 'lefty'"):
        _call(machine, "x-input-send-event", events=[{"type": "btn", "data": {"button": "Lefty", "down": True}}])
    with pytest.raises(QobraError, match="expected: array"):
        _call(machine, "x-input-send-event", events=7)


def test_nothing_takes_absolute_positions(machine: Any) -> None:
    with pytest.raises(QobraError, match="Input handler not found for event type abs"):
        _call(machine, "input-send-event", events=[{"type": "abs", "data": {"axis": "x", "value": 1}}])
    assert hmp.execute(machine, "sendkey nonsense") == "invalid parameter: nonsense\r\n"
    assert hmp.execute(machine, "sendkey ctrl-alt-f1 1") == ""


def test_every_key_has_codes_of_both_sets() -> None:
    known = contract().types["QKeyCode"]
    for name in scancodes.SET1:
        assert contract().check("QKeyCode", name) == name
        assert scancodes.set1(name, True) and scancodes.set2(name, False)
    assert known is not None
    assert scancodes.set2("f7", True) == b"\x83" and scancodes.set1("f7", True) == b"\x41"
    assert scancodes.qcode_of(0x1E) == "a" and scancodes.qcode_of(0xC8) == "up"


def test_events_for_a_device_that_is_not_there(machine: Any) -> None:
    events = [{"type": "btn", "data": {"button": "left", "down": True}}]
    with pytest.raises(QobraError, match="^Device 'none' not found$"):
        dispatch.call(machine, "input-send-event", {"device": "none", "events": events})


def test_people_choose_which_mouse_moves(machine: Any) -> None:
    with machine.control:
        add_device(machine, {"driver": "virtio-tablet-pci"}, keyval=True)
    assert hmp.execute(machine, "mouse_set 99") == "Mouse at index '99' not found\r\n"
    assert hmp.execute(machine, "mouse_set 1") == "Input device 'QEMU PS/2 Keyboard' is not a mouse\r\n"
    for number in (3, 2):
        assert hmp.execute(machine, f"mouse_set {number}") == ""
        assert f"* Mouse #{number}: " in hmp.execute(machine, "info mice")


def test_devices_belong_to_displays(machine: Any) -> None:
    machine.board.ready = False  # graphics cards are there from the start
    for options in (
        {"driver": "virtio-gpu-pci", "id": "g", "max_outputs": "2"},
        {"driver": "qemu-xhci"},
        {"driver": "usb-kbd", "id": "k", "display": "g"},
        {"driver": "usb-tablet", "id": "t", "display": "g", "head": "1"},
        {"driver": "usb-kbd", "id": "of-no-display", "display": "nope"},
    ):
        with machine.control:
            add_device(machine, options, keyval=True)
    keyboard, common = (machine.objects.resolve(f"/machine/peripheral/{id}") for id in ("k", "of-no-display"))
    press = [{"type": "key", "data": {"key": _qcode("a"), "down": True}}]
    # What is done at no display in particular is for devices that belong to none.
    _call(machine, "input-send-event", events=press)
    assert (bytes(keyboard._pressed), bytes(common._pressed)) == (b"", b"\4")
    _call(machine, "input-send-event", device="g", events=press)
    assert bytes(keyboard._pressed) == b"\4"
    # Where nothing belongs to the display, those that belong to none take it.
    press[0]["data"] = {"key": _qcode("b"), "down": True}
    _call(machine, "input-send-event", device="g", head=1, events=press)
    assert (bytes(keyboard._pressed), bytes(common._pressed)) == (b"\4", b"\4\5")
    place = [{"type": "abs", "data": {"axis": "x", "value": 5}}]
    for where in ({}, {"device": "g"}):
        with pytest.raises(QobraError, match="Input handler not found for event type abs"):
            _call(machine, "input-send-event", events=place, **where)
    _call(machine, "input-send-event", device="g", head=1, events=place)
    hub, outputs = machine.board.input, [each for each in machine.board.consoles if each.device is not None]
    assert [hub.is_absolute(each) for each in (None, *outputs)] == [False, False, True]

"""USB keyboards, mice and tablets from the guest's side: descriptors, reports, idle rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.machine.usb.device import IN, OUT, SETUP, Nak, Stall
from qobra.testing.usb import key_event

Event = dict[str, Any]


def _button(name: str, down: bool) -> Event:
    return {"type": "btn", "data": {"down": down, "button": name}}


def _move(kind: str, axis: str, value: int) -> Event:
    return {"type": kind, "data": {"axis": axis, "value": value}}


class Host:
    """A PC with a device on its USB, whose packets are those of the controller."""

    def __init__(self, driver: str) -> None:
        self.machine = simple_machine(memory=16 << 20)
        board: Any = self.machine.board
        self.board = board
        with self.machine.control:
            add_device(self.machine, {"driver": "piix3-usb-uhci", "id": "usb", "addr": "4"}, keyval=True)
            self.device: Any = add_device(self.machine, {"driver": driver, "bus": "usb.0"}, keyval=True)
            self.machine.run_state.start()
        self.request(0x00, 9, 1)

    def request(self, kind: int, code: int, value: int = 0, length: int = 0, data: bytes = b"") -> bytes:
        """A control request. Raises Stall."""
        head = (
            bytes((kind, code)) + value.to_bytes(2, "little") + bytes(2) + (length or len(data)).to_bytes(2, "little")
        )
        with self.machine.control:
            self.device.packet(SETUP, 0, head, 0)
            if kind & 0x80:
                answer: bytes = self.device.packet(IN, 0, b"", 256)
                self.device.packet(OUT, 0, b"", 0)
                return answer
            if data:
                self.device.packet(OUT, 0, data, 0)
            self.device.packet(IN, 0, b"", 0)
            return b""

    def send(self, *events: Event) -> None:
        with self.machine.control:
            self.board.input.send(list(events))

    def reports(self) -> list[str]:
        """What waits, until the device has nothing to say."""
        found: list[str] = []
        with self.machine.control:
            while len(found) < 100:
                try:
                    found.append(self.device.packet(IN, 1, b"", 8).hex())
                except Nak:
                    return found
        raise AssertionError("no end")


@pytest.fixture
def plug() -> Iterator[Callable[[str], Host]]:
    with ExitStack() as stack:

        def made(driver: str) -> Host:
            host = Host(driver)
            stack.callback(host.machine.close)
            return host

        yield made


@pytest.mark.parametrize(
    ("driver", "boot", "size"), [("usb-kbd", (1, 1), 63), ("usb-mouse", (1, 2), 52), ("usb-tablet", (0, 0), 74)]
)
def test_descriptors(plug: Callable[[str], Host], driver: str, boot: tuple[int, int], size: int) -> None:
    host = plug(driver)
    device = host.request(0x80, 6, 0x0100, 18)
    assert device[8:12] == bytes.fromhex("27060100")
    configuration = host.request(0x80, 6, 0x0200, 255)
    assert len(configuration) == configuration[2] == 34 and tuple(configuration[15:17]) == boot
    report = host.request(0x81, 6, 0x2200, 255)
    assert len(report) == size == int.from_bytes(configuration[25:27], "little")
    # Collections are closed again, and the parts of each report come to whole bytes.
    bits, count, width, depth, at = 0, 0, 0, 0, 0
    while at < len(report):
        tag, length = report[at] & 0xFC, (0, 1, 2, 4)[report[at] & 3]
        value = int.from_bytes(report[at + 1 : at + 1 + length], "little")
        count, width = (value if tag == 0x94 else count), (value if tag == 0x74 else width)
        bits += count * width if tag == 0x80 else 0
        depth += (tag == 0xA0) - (tag == 0xC0)
        at += 1 + length
    assert depth == 0 and bits == 8 * len(host.request(0xA1, 1, 0x0100, 8))
    serial = host.request(0x80, 6, 0x0300 | device[16], 255)[2:].decode("utf-16-le")
    assert serial.endswith("-0000:00:04.0-1")


def test_a_keyboard(plug: Callable[[str], Host]) -> None:
    host = plug("usb-kbd")
    assert host.reports() == []
    host.send(key_event("shift", True), key_event("a", True))
    host.send(key_event("a", False), key_event("shift", False))
    assert host.reports() == ["0200000000000000", "0200040000000000", "0200000000000000", "0000000000000000"]
    for name in "qwertyu":
        host.send(key_event(name, True))
    assert host.reports()[-1] == "0000010101010101"[:4] + "01" * 6  # more than it can tell
    host.send(key_event("q", False))
    assert host.reports() == ["00001a081517" + "1c18"]
    host.send(key_event("kp_enter", True), key_event("kp_enter", True))
    assert len(host.reports()) == 2
    host.request(0x21, 9, 0x0200, data=b"\x03")
    assert host.device.lights == 3


def test_a_mouse_moves_in_steps_of_a_byte(plug: Callable[[str], Host]) -> None:
    host = plug("usb-mouse")
    assert host.reports() == []
    host.send(_move("rel", "x", 300), _move("rel", "y", -5))
    host.send(_move("rel", "x", -40))  # adds up while nobody looks
    host.send(_button("left", True), _button("wheel-down", True))
    assert host.reports() == ["007ffb00", "007f0000", "00060000", "010000ff"]
    host.send(_button("left", False), _button("extra", True))
    assert host.reports() == ["10000000"]
    assert host.request(0xA1, 1, 0x0100, 8).hex() == "10000000"


def test_a_tablet_tells_places(plug: Callable[[str], Host]) -> None:
    host = plug("usb-tablet")
    host.send(_move("abs", "x", 100), _move("abs", "y", 0x7FFF))
    host.send(_move("abs", "x", 5))
    assert host.reports() == ["000500ff7f00"]
    host.send(_button("right", True), _button("wheel-up", True))
    assert host.reports() == ["020500ff7f01"]
    with pytest.raises(Stall):
        host.request(0xA1, 3, 0, 1)  # it has no boot protocol


def test_who_looks_makes_the_pointer_the_one_that_is_used(plug: Callable[[str], Host]) -> None:
    host = plug("usb-tablet")
    assert [mouse["name"] for mouse in host.board.input.mice() if mouse["current"]] != ["QEMU HID Tablet"]
    assert host.reports() == []
    assert [mouse["name"] for mouse in host.board.input.mice() if mouse["current"]] == ["QEMU HID Tablet"]


def test_with_an_idle_rate_it_says_again_how_things_stand(plug: Callable[[str], Host]) -> None:
    host = plug("usb-kbd")
    host.send(key_event("b", True))
    assert host.reports() == ["0000050000000000"]
    host.request(0x21, 10, 0x0200)  # twice 4 ms
    assert host.request(0xA1, 2, 0, 1) == b"\x02"
    with host.machine.control:
        host.board.clock.step(8_000_000)
    assert host.reports() == ["0000050000000000"]
    assert host.reports() == []


def test_protocols_and_wakeup(plug: Callable[[str], Host]) -> None:
    host = plug("usb-mouse")
    assert host.request(0xA1, 3, 0, 1) == b"\x01"
    host.request(0x21, 11, 0)
    assert host.request(0xA1, 3, 0, 1) == b"\x00"
    assert host.request(0x80, 0, 0, 2) == b"\0\0"
    host.request(0x00, 3, 1)
    assert host.request(0x80, 0, 0, 2) == b"\x02\0"
    with pytest.raises(Stall):
        host.request(0x21, 9, 0x0200, data=b"\0")  # a mouse takes no reports

"""Hubs: their ports, what is behind them, and how they come by themselves where ports run out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, remove_device
from qobra.testing.guest import BoardAccess
from qobra.testing.usb import IN, OhciHost, UhciHost, UsbHost

_DEVICE = bytes((0x80, 6, 0, 1, 0, 0, 18, 0))
_ENABLE, _SUSPEND, _RESET, _POWER, _C_CONNECTION, _C_SUSPEND, _C_RESET = 1, 2, 4, 8, 16, 18, 20


class Pc:
    """A PC with a controller."""

    def __init__(self, controller: str = "piix3-usb-uhci") -> None:
        self.machine = simple_machine(memory=32 << 20)
        self.access = BoardAccess(self.machine)
        self.add(controller, id="host", addr="4")

    def add(self, driver: str, **options: str) -> Any:
        board: Any = self.machine.board
        with self.machine.control:
            board.ready = False
            try:
                return add_device(self.machine, {"driver": driver} | options, keyval=True)
            finally:
                board.ready = True

    def hot_add(self, driver: str, **options: str) -> Any:
        with self.machine.control:
            return add_device(self.machine, {"driver": driver} | options, keyval=True)

    def remove(self, id: str) -> None:
        with self.machine.control:
            remove_device(self.machine, id)

    def places(self) -> list[tuple[str, str]]:
        board: Any = self.machine.board
        (bus,) = board.peripheral.children["host"].buses()
        return [(port.path, port.device.type_name) for port in bus.used]


@pytest.fixture
def pc() -> Iterator[Pc]:
    pc = Pc()
    yield pc
    pc.machine.close()


def status(host: UsbHost, port: int) -> bytes | None:
    """Status and changes of a port of the hub at the host's address."""
    return host.control(bytes((0xA3, 0, 0, 0, port, 0, 4, 0)), 4)


def feature(host: UsbHost, code: int, number: int, port: int) -> bytes | None:
    """SetPortFeature (3) or ClearPortFeature (1)."""
    return host.control(bytes((0x23, code, number, 0, port, 0, 0, 0)))


def test_descriptors_and_requests_of_the_hub(pc: Pc) -> None:
    pc.add("usb-hub", ports="3", port="1")
    host = UhciHost(pc.access, 4 << 3)
    host.packet_size = 8
    descriptor = host.control(_DEVICE, 18)
    assert descriptor is not None and (descriptor[4], descriptor[8:12]) == (9, b"\x09\x04\xaa\x55")
    assert host.control(bytes((0xA0, 6, 0, 0x29, 0, 0, 255, 0)), 255) == bytes.fromhex("0929030a00010000ff")
    host.configure()
    assert host.control(bytes((0xA0, 0, 0, 0, 0, 0, 4, 0)), 4) == bytes(4)
    for port in (0, 4):
        assert status(host, port) is None
        assert feature(host, 3, _RESET, port) is None
    for code, number in ((3, _ENABLE), (3, _C_RESET), (1, 0), (1, 22)):
        assert feature(host, code, number, 1) is None
    assert feature(host, 3, _POWER, 1) == b"" and feature(host, 1, _POWER, 1) == b""
    assert status(host, 1) == b"\x00\x01\x00\x00"


@pytest.mark.parametrize(("controller", "kind"), [("piix3-usb-uhci", UhciHost), ("pci-ohci", OhciHost)])
def test_devices_behind_a_hub(controller: str, kind: type[UsbHost]) -> None:
    pc = Pc(controller)
    pc.add("usb-hub", id="hub", port="1")
    pc.add("usb-tablet", port="1.2", id="tablet")
    host = kind(pc.access, 4 << 3)
    host.packet_size = 8
    host.configure(address=5)
    assert status(host, 1) == b"\x00\x01\x00\x00"
    assert status(host, 2) == b"\x01\x01\x01\x00"
    assert host.transfer(IN, 1, room=2) == b"\x04\x00"
    host.address = 0
    assert host.control(_DEVICE, 18) is None  # its port is not enabled
    host.address = 5
    feature(host, 3, _RESET, 2)
    assert status(host, 2) == b"\x03\x01\x13\x00"
    host.address = 0
    descriptor = host.control(_DEVICE, 18)
    assert descriptor is not None and descriptor[8:12] == b"\x27\x06\x01\x00"
    host.configure(address=6)
    host.address = 5
    # A port that is suspended carries nothing.
    feature(host, 3, _SUSPEND, 2)
    host.address = 6
    assert host.control(_DEVICE, 18) is None
    host.address = 5
    feature(host, 1, _SUSPEND, 2)
    assert status(host, 2) == b"\x03\x01\x17\x00"
    for change in (_C_CONNECTION, _C_SUSPEND, _C_RESET, 17):
        feature(host, 1, change, 2)
    assert status(host, 2) == b"\x03\x01\x00\x00"
    # What comes and goes is told of.
    pc.hot_add("usb-mouse", port="1.8", id="mouse")
    assert host.transfer(IN, 1, room=2) == b"\x00\x01"
    pc.remove("tablet")
    assert host.transfer(IN, 1, room=2) == b"\x04\x01"
    assert status(host, 2) == b"\x00\x01\x03\x00"
    # With the hub goes what is behind it.
    pc.remove("hub")
    assert pc.places() == []
    with pytest.raises(QobraError, match=r"usb port 1.1 \(bus host.0\) not found"):
        pc.hot_add("usb-mouse", port="1.1")
    pc.hot_add("usb-mouse", port="1")
    pc.machine.close()


def test_power_can_be_taken_from_ports(pc: Pc) -> None:
    pc.add("usb-hub", port="1", **{"port-power": "on"})
    pc.add("usb-tablet", port="1.1")
    host = UhciHost(pc.access, 4 << 3)
    host.packet_size = 8
    host.configure()
    feature(host, 3, _RESET, 1)
    feature(host, 1, _POWER, 1)
    assert status(host, 1) == bytes(4)
    pc.hot_add("usb-mouse", port="1.2")
    feature(host, 1, _POWER, 3)
    pc.hot_add("usb-mouse", port="1.3")
    assert (status(host, 2), status(host, 3)) == (b"\x01\x01\x01\x00", bytes(4))
    feature(host, 3, _POWER, 1)
    assert status(host, 1) == b"\x01\x01\x01\x00"


def test_a_hub_comes_by_itself_for_the_last_port(pc: Pc) -> None:
    for _ in range(9):
        pc.add("usb-kbd")
    keyboards = [("1", "usb-kbd"), ("2", "usb-hub"), *[(f"2.{n}", "usb-kbd") for n in range(1, 8)]]
    assert pc.places() == [*keyboards, ("2.8", "usb-hub"), ("2.8.1", "usb-kbd")]


def test_hubs_nest_five_deep(pc: Pc) -> None:
    for tiers in range(1, 6):
        pc.add("usb-hub", port=".".join("1" * tiers))
    with pytest.raises(QobraError, match="usb hub chain too deep"):
        pc.add("usb-hub", port="1.1.1.1.1.1")
    pc.add("usb-kbd", port="1.1.1.1.1.1")
    for ports in ("0", "9"):
        with pytest.raises(QobraError, match=rf"num_ports \({ports}\) out of range \(1..8\)"):
            pc.add("usb-hub", port="2", ports=ports)


def test_each_reset_finds_what_is_there_anew(pc: Pc) -> None:
    pc.add("usb-hub", port="1")
    pc.add("usb-tablet", port="1.4")
    host = UhciHost(pc.access, 4 << 3)
    host.packet_size = 8
    host.configure()
    feature(host, 3, _RESET, 4)
    feature(host, 1, _C_CONNECTION, 4)
    again = UhciHost(pc.access, 4 << 3)
    again.packet_size = 8
    again.configure()
    assert status(again, 4) == b"\x01\x01\x01\x00"

"""virtio-input: what the devices say of themselves, and events that reach the driver."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver


class Driver:
    """A driver that keeps buffers for events in the queue."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.access = BoardAccess(machine)
        function = PciFunction(self.access, 5 << 3)
        function.enable()
        memory = Memory()
        self.transport = ModernPci(function)
        start_driver(self.transport, 1 << 32)
        self.queue = Queue(self.transport, memory, 0)
        driver_ok(self.transport)
        self.buffers = memory.take(8 * 16)
        for i in range(16):
            self.queue.describe(i, self.buffers + 8 * i, 8, 2)
            self.queue.offer(i)

    def describe(self, select: int, detail: int = 0) -> bytes:
        areas: Any = self.transport
        self.access.store(areas._areas[4], 1, select)
        self.access.store(areas._areas[4] + 1, 1, detail)
        size = self.transport.config(2, 1)
        return bytes(self.transport.config(8 + i, 1) for i in range(size))

    def events(self, count: int) -> list[tuple[int, int, int]]:
        found = []
        for _ in range(count):
            head, _length = self.queue.wait_used()
            data = self.access.read(self.buffers + 8 * head, 8)
            found.append(tuple(int.from_bytes(data[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8))))
        return found  # type: ignore[return-value]

    def send(self, *events: dict[str, Any]) -> None:
        with self.machine.control:
            dispatch.call(self.machine, "input-send-event", {"events": list(events)})


@pytest.fixture
def machine() -> Any:
    machine = simple_machine("x86_64", "pc", memory=8 << 20)
    with machine.control:
        machine.run_state.start()
    yield machine
    machine.close()


def _driver(machine: Any, kind: str) -> Driver:
    with machine.control:
        add_device(machine, {"driver": kind, "addr": "5", "id": "in", "serial": "s1"}, keyval=True)
    return Driver(machine)


def test_a_keyboard(machine: Any) -> None:
    driver = _driver(machine, "virtio-keyboard-pci")
    assert driver.describe(1) == b"QEMU Virtio Keyboard\0" and driver.describe(2) == b"s1"
    keys = driver.describe(0x11, 1)
    assert keys[30 // 8] >> 30 % 8 & 1
    driver.send({"type": "key", "data": {"key": {"type": "qcode", "data": "a"}, "down": True}})
    driver.send({"type": "key", "data": {"key": {"type": "qcode", "data": "up"}, "down": False}})
    assert driver.events(4) == [(1, 30, 1), (0, 0, 0), (1, 103, 0), (0, 0, 0)]


def test_a_mouse(machine: Any) -> None:
    driver = _driver(machine, "virtio-mouse-pci")
    driver.send(
        {"type": "rel", "data": {"axis": "x", "value": -3}},
        {"type": "rel", "data": {"axis": "y", "value": 7}},
        {"type": "btn", "data": {"button": "right", "down": True}},
    )
    assert driver.events(4) == [(2, 0, 0xFFFFFFFD), (2, 1, 7), (1, 0x111, 1), (0, 0, 0)]


def test_a_tablet_is_the_current_pointer(machine: Any) -> None:
    driver = _driver(machine, "virtio-tablet-pci")
    assert driver.describe(0x12, 0).hex() == "00000000ff7f0000000000000000000000000000"
    driver.send({"type": "abs", "data": {"axis": "x", "value": 0x9999}})
    assert driver.events(2) == [(3, 0, 0x7FFF), (0, 0, 0)]
    with machine.control:
        mice = dispatch.call(machine, "query-mice", {})
        assert [(mouse["name"], mouse["current"], mouse["absolute"]) for mouse in mice] == [
            ("QEMU PS/2 Mouse", False, False),
            ("QEMU Virtio Tablet", True, True),
        ]
        dispatch.call(machine, "device_del", {"id": "in"})

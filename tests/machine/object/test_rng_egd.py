"""rng-egd: entropy that a daemon gives when it has some."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver
from qobra.testing.waiting import wait_until


class Guest:
    """A PC with virtio-rng on a daemon of the test's own."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.daemon, other = socket.socketpair()
        self.daemon.settimeout(10)
        self.requests = self.daemon.makefile("rb")
        address = {"type": "fd", "data": {"str": str(other.detach())}}
        machine.chardevs.create("egd", {"type": "socket", "data": {"addr": address, "server": False}})
        with machine.control:
            machine.objects.create("rng-egd", "source", {"chardev": "egd"})
            self.device: Any = add_device(
                machine, {"driver": "virtio-rng-pci", "rng": "source", "addr": "5", "id": "rng"}, keyval=True
            )
            machine.run_state.start()
        access = BoardAccess(machine)
        self.memory = Memory()
        function = PciFunction(access, 5 << 3)
        function.enable()
        transport = ModernPci(function)
        start_driver(transport, 1 << 32)
        self.queue = Queue(transport, self.memory, 0)
        driver_ok(transport)

    def asked(self, length: int) -> bytes:
        return self.requests.read(length)

    def ask(self, length: int) -> None:
        self.queue.send([(self.memory.take(length), length, True)])


@pytest.fixture
def guest() -> Any:
    machine = simple_machine("x86_64", "pc", memory=64 << 20)
    guest = Guest(machine)
    yield guest
    machine.close()
    guest.requests.close()
    guest.daemon.close()


def test_as_much_is_asked_for_as_is_wanted(guest: Guest) -> None:
    guest.ask(300)
    assert guest.asked(4) == bytes((2, 255, 2, 45))
    guest.daemon.sendall(b"e" * 300)
    assert guest.queue.wait_used() == (0, 300)


def test_a_silent_daemon_holds_up_neither_reset_nor_removal(guest: Guest) -> None:
    guest.ask(16)
    assert guest.asked(2) == b"\x02\x10"
    rng = guest.device.children["virtio-backend"]
    with guest.machine.control:
        rng.reset()
    wait_until(lambda: not rng.working)
    with guest.machine.control:
        guest.device.unparent()
        guest.machine.objects.delete("source")
    guest.machine.chardevs.remove("egd")


def test_buffers_wait_while_the_guest_stands_still(guest: Guest) -> None:
    guest.ask(16)
    assert guest.asked(2) == b"\x02\x10"
    rng = guest.device.children["virtio-backend"]
    with guest.machine.control:
        guest.machine.run_state.stop()
    wait_until(lambda: not rng.working)
    guest.daemon.sendall(b"e" * 16)
    with guest.machine.control:
        guest.machine.run_state.start()
    assert guest.queue.wait_used() == (0, 16)


def test_what_it_needs() -> None:
    machine = simple_machine("x86_64", "none", memory=0)
    for properties, text in (({}, "Parameter 'chardev' is missing"), ({"chardev": "x"}, "Device 'x' not found")):
        with pytest.raises(QobraError, match=text):
            machine.objects.create("rng-egd", "r", properties)
    machine.close()

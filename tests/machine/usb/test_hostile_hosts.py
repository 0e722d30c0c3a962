"""Hostile guests of USB controllers: structures at random in memory, registers at random, devices that come and go."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, remove_device
from qobra.testing.guest import BoardAccess, PciFunction

_MS = 10**6
_BASE, _PLACES = 0x100000, 24
_REQUESTS = (
    bytes((0x80, 6, 0, 1, 0, 0, 18, 0)),
    bytes((0x00, 9, 1, 0, 0, 0, 0, 0)),
    bytes((0x00, 5, 1, 0, 0, 0, 0, 0)),
    bytes((0x23, 3, 4, 0, 1, 0, 0, 0)),
    bytes((0x80, 6, 0, 2, 0, 0, 255, 255)),
)


class Guest:
    """A PC with one controller, a disk and a hub, whose guest does whatever can be done."""

    controller = ""
    bar = 0
    devices = ({"driver": "usb-storage", "drive": "disk"}, {"driver": "usb-tablet"})
    starts: tuple[tuple[int, int], ...] = ()
    """Registers and what they need to have for the controller to work."""
    ports: tuple[int, ...] = ()
    port_values: tuple[int, ...] = ()
    size = 0x100

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(f"{self.controller} {seed}")
        self.machine = simple_machine(memory=8 << 20)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            self.machine.block.add_node(
                {"driver": "null-co", "node-name": "disk", "size": 1 << 20, "read-zeroes": True}
            )
            board.ready = False
            for device in ({"driver": self.controller, "id": "host", "addr": "4"}, *self.devices):
                add_device(self.machine, dict(device), keyval=True)
            board.ready = True
        self.function = PciFunction(self.access, 4 << 3)
        self.function.enable()
        self.base = self.function.bars[self.bar]

    def store(self, register: int, value: int) -> None:
        self.access.store(self.base + register, 4, value)

    def word(self) -> int:
        """A word of a structure: a pointer to another with flags or without, something that means much, or anything."""
        rnd = self.rnd
        pointer = _BASE + 0x40 * rnd.randrange(_PLACES)
        return rnd.choice((pointer, pointer | rnd.getrandbits(4), rnd.getrandbits(32), 0, self.meaning()))

    def meaning(self) -> int:
        raise NotImplementedError

    def scatter(self) -> None:
        words = [self.word() for _ in range(_PLACES * 16)]
        self.access.write(_BASE, b"".join(word.to_bytes(4, "little") for word in words))
        for _ in range(6):
            self.access.write(_BASE + 8 * self.rnd.randrange(_PLACES * 8), self.rnd.choice(_REQUESTS))

    def act(self) -> None:
        rnd = self.rnd
        kind = rnd.randrange(8)
        if kind == 0:
            self.store(rnd.randrange(0, self.size, 4), rnd.choice((rnd.getrandbits(32), self.word())))
        elif kind == 1:
            self.store(rnd.choice(self.ports), rnd.choice(self.port_values))
        elif kind == 2:
            with self.machine.control:
                try:
                    if rnd.random() < 0.5:
                        add_device(self.machine, {"driver": "usb-mouse", "id": "extra"}, keyval=True)
                    else:
                        remove_device(self.machine, "extra")
                except QobraError:
                    pass
        else:
            self.scatter()
            for register, value in self.starts:
                self.store(register, value)
        self.access.step(rnd.randrange(3 * _MS))


class Uhci(Guest):
    controller, bar, size = "piix3-usb-uhci", 4, 0x14
    devices = ({"driver": "usb-storage", "drive": "disk", "port": "1"}, {"driver": "usb-hub", "port": "2"})
    starts = ((0x08, _BASE), (0x04, 0xF), (0x00, 1))
    ports, port_values = (0x10, 0x12), (0x200, 0x4, 0x1004, 0xE)

    def store(self, register: int, value: int) -> None:
        self.access.port_out(self.base + register, 4 if register == 0x08 else 2, value & 0xFFFFFFFF)

    def meaning(self) -> int:
        rnd = self.rnd
        token = rnd.randrange(64) << 21 | rnd.getrandbits(2) << 15 | rnd.getrandbits(1) << 8
        return rnd.choice((1 << 23 | rnd.getrandbits(6) << 24, token | rnd.choice((0x2D, 0x69, 0xE1))))


class Ohci(Guest):
    controller = "pci-ohci"
    devices = ({"driver": "usb-storage", "drive": "disk", "port": "1"}, {"driver": "usb-hub", "port": "2"})
    starts = ((0x18, _BASE), (0x20, _BASE), (0x28, _BASE + 0x80), (0x10, 0x8000007F), (0x04, 0xBC), (0x08, 6))
    ports, port_values = (0x54, 0x58, 0x5C), (0x10, 0x1, 0x4, 0x8, 0x1F0000)

    def meaning(self) -> int:
        rnd = self.rnd
        endpoint = 0x40 << 16 | rnd.getrandbits(1) << 15 | rnd.getrandbits(2) << 7 | rnd.getrandbits(1)
        return rnd.choice((endpoint, 0xF << 28 | rnd.getrandbits(7) << 18))


class Ehci(Guest):
    controller = "usb-ehci"
    starts = ((0x34, _BASE & ~0xFFF), (0x38, _BASE), (0x28, 0x3F), (0x60, 1), (0x20, 8 << 16 | 0x71))
    ports, port_values = (0x64, 0x68), (0x1100, 0x1000, 0x1004, 0x1084, 0x1044)

    def meaning(self) -> int:
        rnd = self.rnd
        endpoint = 0x40 << 16 | 2 << 12 | rnd.getrandbits(2) << 8 | rnd.getrandbits(1)
        return rnd.choice((endpoint, 0x80 | rnd.getrandbits(8) << 8 | rnd.randrange(64) << 16, 1 << 31 | 0x8000))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [Uhci, Ohci, Ehci])
def test_nothing_breaks_and_every_frame_ends(kind: type[Guest], seed: int) -> None:
    guest = kind(seed)
    for _ in range(60):
        guest.act()
    guest.machine.close()

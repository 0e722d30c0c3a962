"""Registers of devices, written at random: what can be read afterwards, and interrupts, are QEMU's.

What is left out of the scripts is in the table of differences of ``docs/machine.md``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.guest import PciFunction
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_STEPS = 80
_SLOT = 5
_DISK = ["-blockdev", "null-co,node-name=disk,size=1048576,read-zeroes=on"]
_ADDRESSES = (0x100000, 0x200000, 0x100400)


def _any(rnd: random.Random) -> int:
    return rnd.choice((rnd.getrandbits(32), rnd.getrandbits(8), 1 << rnd.randrange(32), 0xFFFFFFFF, 0, 1))


class Device:
    """Registers of a device in a program: ``write`` one, ``shown`` tells of all of them."""

    arguments: Sequence[str] = ()

    def __init__(self, program: SystemProgram) -> None:
        self.guest = program.guest
        self.place()

    def place(self) -> None:
        """After a reset."""

    @staticmethod
    def choose(rnd: random.Random) -> tuple[int, int]:
        """A register, and what to write to it."""
        raise NotImplementedError

    def write(self, register: int, value: int) -> None:
        raise NotImplementedError

    def shown(self) -> list[int]:
        raise NotImplementedError


class Clock(Device):
    """With dates that it can hold: it starts and stops, but its divider runs."""

    arguments = ("-rtc", "base=2005-12-31T23:59:58,clock=vm")

    @staticmethod
    def choose(rnd: random.Random) -> tuple[int, int]:
        register = rnd.choice((*range(14), 0x0A, 0x0B, 0x0B, 0x32, 0x37, rnd.randrange(0x40, 0x80)))
        if register == 0x0A:
            return register, rnd.choice((0x20, 0xA0))
        if register == 0x0B:
            return register, rnd.choice((0x00, 0x02, 0x80, 0x82, 0x12, 0x32))
        if register in (0x32, 0x37):
            return register, rnd.choice((0x19, 0x20, 0x21))
        return register, rnd.choice((rnd.getrandbits(8), rnd.randrange(1, 10), 0x10, 0x59, 0xC0, 0xFF))

    def write(self, register: int, value: int) -> None:
        self.guest.port_out(0x70, 1, register)
        self.guest.port_out(0x71, 1, value)

    def shown(self) -> list[int]:
        found = []
        for register in (*range(12), 0x32, 0x37):
            self.guest.port_out(0x70, 1, register)
            found.append(self.guest.port_in(0x71, 1))
        return found


class IoApic(Device):
    _BASE = 0xFEC00000

    @staticmethod
    def choose(rnd: random.Random) -> tuple[int, int]:
        if rnd.random() < 0.1:
            return rnd.choice((0x1020, 0x1030, 0x1040, 0x1044)), _any(rnd)
        register = rnd.choice((0, 1, 2, rnd.randrange(0x10, 0x40), rnd.randrange(0x10, 0x18), rnd.randrange(256)))
        return register, rnd.choice((_any(rnd), 0x8000 | rnd.randrange(256), 0x18030))

    def write(self, register: int, value: int) -> None:
        if register > 0xFF:
            self.guest.store(self._BASE + register - 0x1000, 4, value)
        else:
            self.guest.store(self._BASE, 4, register)
            self.guest.store(self._BASE + 0x10, 4, value)

    def shown(self) -> list[int]:
        found = []
        for register in (0, 1, 2, *range(0x10, 0x42)):
            self.guest.store(self._BASE, 4, register)
            found.append(self.guest.load(self._BASE + 0x10, 4))
        return found


class Pci(Device):
    """A function whose registers lie in memory at base address ``bar``; those at ``offsets`` are looked at."""

    bar = 0
    offsets: Sequence[int] = ()

    def place(self) -> None:
        self.function = PciFunction(self.guest, _SLOT << 3)
        self.function.enable()
        self.base = self.function.bars[self.bar]

    def write(self, register: int, value: int) -> None:
        self.guest.store(self.base + register, 4, value)

    def shown(self) -> list[int]:
        found = [self.guest.load(self.base + offset, 4) for offset in self.offsets]
        return [*found, self.function.config(4)]


class Ahci(Pci):
    """Nothing is issued, and the port without a disk is left alone."""

    arguments = (*_DISK, "-device", f"ich9-ahci,addr={_SLOT},id=a", "-device", "ide-hd,drive=disk,bus=a.0")
    bar = 5
    offsets = (*range(0, 0x2C, 4), *range(0x100, 0x200, 4))

    @staticmethod
    def choose(rnd: random.Random) -> tuple[int, int]:
        register = rnd.choice((0, 4, 4, 8, 0x0C, 0x10, *(0x100 + at for at in range(0, 0x44, 4) if at != 0x38)))
        values = {
            0x004: (0x80000002, 2, 0, 1),
            0x100: _ADDRESSES,
            0x104: (0,),
            0x108: _ADDRESSES,
            0x10C: (0,),
            0x118: (0, 1, 0x10, 0x11, 0x17, 6, 8),
            0x12C: (0, 1, 4, 0x300, 0x301),
        }
        return register, rnd.choice(values.get(register) or (_any(rnd),))


class Nvme(Pci):
    arguments = (*_DISK, "-device", f"nvme,addr={_SLOT},drive=disk,serial=x")
    offsets = (0, *range(8, 0x60, 4), 0xE00, 0xE04)

    @staticmethod
    def choose(rnd: random.Random) -> tuple[int, int]:
        register = rnd.choice((*range(0, 0x4C, 4), 0x14, 0x14, 0x24, 0xE00, 0xE04))
        values = {
            0x14: (0x460001, 0x460000, 0x464001, 0x468001, 0, 1, 0x460011, 0x460071, 0x450001),
            0x24: (0x1F001F, 0, 0x10001),
            0x28: _ADDRESSES,
            0x2C: (0,),
            0x30: _ADDRESSES,
            0x34: (0,),
        }
        return register, rnd.choice(values.get(register) or (_any(rnd),))


class Virtio(Pci):
    """The common configuration: the queues that there are, which stay off."""

    bar = 4
    offsets = range(0, 0x38, 4)
    queues = 1

    @classmethod
    def choose(cls, rnd: random.Random) -> tuple[int, int]:
        register = rnd.choice((0x00, 0x08, 0x0C, 0x10, 0x14, 0x16, 0x18, 0x1A, 0x1E, 0x20, 0x28, 0x30))
        values = {
            0x00: (0, 1, 2),
            0x08: (0, 1, 2),
            0x10: (0, 1, 2, 0xFFFF),
            0x14: (0, 1, 3, 0x80),
            0x16: (*range(cls.queues), 1024, 0xFFFF),
            0x18: (0x80, 0x40, 0),
            0x1A: (0, 1, 2, 0xFFFF),
        }
        return register, rnd.choice(values.get(register) or _ADDRESSES)

    def write(self, register: int, value: int) -> None:
        width = 4 if register < 0x10 or register >= 0x20 else 1 if register == 0x14 else 2
        self.guest.store(self.base + register, width, value)

    def shown(self) -> list[int]:
        found = [self.guest.load(self.base + offset, 2) for offset in range(0x10, 0x20, 2)]
        return found + super().shown()


class VirtioBlk(Virtio):
    arguments = (*_DISK, "-device", f"virtio-blk-pci,addr={_SLOT},drive=disk,disable-legacy=on")


class VirtioScsi(Virtio):
    arguments = ("-device", f"virtio-scsi-pci,addr={_SLOT},disable-legacy=on")
    queues = 3


class VirtioNet(Virtio):
    arguments = (
        *("-netdev", "hubport,id=h,hubid=0"),
        *("-device", f"virtio-net-pci,addr={_SLOT},netdev=h,mac=52:54:00:12:34:56,disable-legacy=on"),
    )
    queues = 2


class E1000(Pci):
    """Rings stay empty; the EEPROM, resets, and what the transceiver has found out are left out."""

    arguments = (*VirtioNet.arguments[:2], "-device", f"e1000,addr={_SLOT},netdev=h,mac=52:54:00:12:34:56")
    _PLAIN = (0x18, 0x28, 0x2C, 0x30, 0x38, 0xC4, 0xC8, 0xD0, 0xD8, 0x170, 0x410, 0x1000, 0x2800, 0x2804, 0x2820)
    _ALSO = (0x3800, 0x3804, 0x3820, 0x3828, 0x382C, 0x4000, 0x4074, 0x5000, 0x5200, 0x5400, 0x5404, 0x5600, 0x5800)
    offsets = (0x00, 0x08, 0x20, *_PLAIN, *_ALSO)

    @classmethod
    def choose(cls, rnd: random.Random) -> tuple[int, int]:
        register = rnd.choice((0x00, 0x20, 0x20, *cls._PLAIN, *cls._ALSO))
        if register == 0x20:
            number = rnd.choice((2, 3, 4, 7, 9, 10, 16, 20, 22, 24, 31))
            return register, rnd.choice((0, 1, 2)) << 26 | rnd.choice((1, 1, 1, 2)) << 21 | number << 16 | 0x66B
        return register, _any(rnd) & (0x7BFFFFFF if register == 0 else 0xFFFFFFFF)


class Usb(Pci):
    """A controller that stands still, with a device at each of its first ports: registers and ports, in turn."""

    registers: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()

    @classmethod
    def choose(cls, rnd: random.Random) -> tuple[int, int]:
        if rnd.random() < 0.5:
            return rnd.choice(cls.ports), cls.port_value(rnd)
        register = rnd.choice(cls.registers)
        return register, cls.value(register, _any(rnd))

    @staticmethod
    def port_value(rnd: random.Random) -> int:
        raise NotImplementedError

    @staticmethod
    def value(register: int, value: int) -> int:
        raise NotImplementedError


class Ehci(Usb):
    """Not both at once: a port's reset ends, and it is handed over."""

    arguments = (
        *("-device", f"ich9-usb-ehci1,addr={_SLOT},id=usb", "-device", "ich9-usb-uhci1,masterbus=usb.0"),
        *("-device", "usb-tablet,bus=usb.0,port=1", "-device", "usb-kbd,bus=usb.0,port=2,usb_version=1"),
    )
    registers = (0x20, 0x24, 0x28, 0x30, 0x34, 0x38, 0x60)
    ports = (0x64, 0x64, 0x68, 0x68, 0x6C)
    offsets = (*registers, *range(0x64, 0x7C, 4))

    @staticmethod
    def port_value(rnd: random.Random) -> int:
        return rnd.choice((rnd.getrandbits(32) & ~0x2100, 0x1000, 0x1100, 0x1004, 0x1084, 0x10C4, 0x1044))

    @staticmethod
    def value(register: int, value: int) -> int:
        return value & ~0x31 if register == 0x20 else value


class Ohci(Usb):
    """Without what takes power from ports, or resumes one: this has no effect there, and does not come back here."""

    arguments = (
        *("-device", f"pci-ohci,addr={_SLOT},id=usb"),
        *("-device", "usb-tablet,bus=usb.0,port=1", "-device", "usb-kbd,bus=usb.0,port=2"),
    )
    registers = (0x04, 0x08, 0x10, 0x14, 0x18, 0x20, 0x24, 0x28, 0x2C, 0x34, 0x40, 0x44, 0x48, 0x4C, 0x50)
    ports = (0x54, 0x58, 0x5C)
    offsets = (0x00, *registers, 0x1C, 0x30, *ports)

    @staticmethod
    def port_value(rnd: random.Random) -> int:
        return rnd.choice((rnd.getrandbits(32) & ~0x20C, 0x10, 0x02, 0x01, 0x100, 0x1F0000))

    @staticmethod
    def value(register: int, value: int) -> int:
        if register == 0x04:
            value &= ~0x280 if value & 0xC0 == 0x80 else ~0x200
        return {0x08: value & 0xF, 0x10: value & ~0x40, 0x50: value & ~1}.get(register, value)


def _found(program: SystemProgram, device: Device) -> list[Any]:
    time.sleep(0.001)  # a disk that was reset reports from its own thread
    interrupts = [line for line in program.guest.interrupts if not line.endswith(" 0")]  # the PIT's
    program.guest.interrupts.clear()
    return [*map(hex, device.shown()), interrupts]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [Clock, IoApic, Ahci, Nvme, VirtioBlk, VirtioScsi, VirtioNet, E1000, Ehci, Ohci])
def test_registers(tmp_path: Path, kind: type[Device], seed: int) -> None:
    rnd = random.Random(f"{kind.__name__} {seed}")
    programs = [
        SystemProgram(tmp_path, "x86_64", "-machine", "pc", *kind.arguments, peer=peer) for peer in (False, True)
    ]
    done: list[str] = []
    with programs[0], programs[1]:
        devices = []
        for program in programs:
            program.guest.command("irq_intercept_in /machine/i440fx/ioapic")
            devices.append(kind(program))
        for _ in range(_STEPS):
            register, value = kind.choose(rnd)
            done.append(f"{register:#x} {value:#x}")
            for device in devices:
                device.write(register, value)
            own, peer = map(_found, programs, devices)
            assert own == peer, done[-8:]

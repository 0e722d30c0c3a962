"""The guest's side of a machine, for tests: reach memory and ports, find PCI functions, drive virtio queues.

Works on a board in this process and on any program that speaks qtest (QEMU as well): both are an :class:`Access`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from qobra.machine.pci import regs
from qobra.testing.waiting import wait_until

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


class Access(Protocol):
    """What a guest's CPU could do."""

    def load(self, address: int, width: int) -> int: ...
    def store(self, address: int, width: int, value: int) -> None: ...
    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def port_in(self, port: int, width: int) -> int: ...
    def port_out(self, port: int, width: int, value: int) -> None: ...
    def step(self, ns: int) -> int: ...


class BoardAccess:
    """A board in this process."""

    def __init__(self, machine: Machine) -> None:
        assert machine.board is not None
        self.machine = machine
        self.board = machine.board

    def load(self, address: int, width: int) -> int:
        with self.machine.control:
            return self.board.memory.load(address, width)

    def store(self, address: int, width: int, value: int) -> None:
        with self.machine.control:
            self.board.memory.store(address, width, value)

    def read(self, address: int, length: int) -> bytes:
        with self.machine.control:
            return self.board.memory.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        with self.machine.control:
            self.board.memory.write(address, data)

    def port_in(self, port: int, width: int) -> int:
        with self.machine.control:
            return self.board.ports.load(port, width)

    def port_out(self, port: int, width: int, value: int) -> None:
        with self.machine.control:
            self.board.ports.store(port, width, value)

    def step(self, ns: int) -> int:
        with self.machine.control:
            return self.board.clock.step(ns)


class QtestAccess:
    """A program behind a qtest socket. ``interrupts`` collects the lines about intercepted interrupts."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._stream = connection.makefile("r", newline="\n")
        self.interrupts: list[str] = []

    def command(self, line: str) -> str:
        """The answer to a line, without ``OK``. Raises AssertionError where it failed."""
        self._socket.sendall(line.encode() + b"\n")
        while True:
            answer = self._stream.readline().rstrip("\n")
            if not answer.startswith("IRQ"):
                break
            self.interrupts.append(answer)
        assert answer.startswith("OK"), f"{line}: {answer!r}"
        return answer[3:]

    _LETTERS = {1: "b", 2: "w", 4: "l", 8: "q"}

    def load(self, address: int, width: int) -> int:
        return int(self.command(f"read{self._LETTERS[width]} {address:#x}"), 16)

    def store(self, address: int, width: int, value: int) -> None:
        self.command(f"write{self._LETTERS[width]} {address:#x} {value:#x}")

    def read(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self.command(f"read {address:#x} {length:#x}")[2:])

    def write(self, address: int, data: bytes) -> None:
        self.command(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def port_in(self, port: int, width: int) -> int:
        return int(self.command(f"in{self._LETTERS[width]} {port:#x}"), 16)

    def port_out(self, port: int, width: int, value: int) -> None:
        self.command(f"out{self._LETTERS[width]} {port:#x} {value:#x}")

    def step(self, ns: int) -> int:
        return int(self.command(f"clock_step {ns}"))


class Memory:
    """A guest's memory allocator: only ever upwards, aligned."""

    def __init__(self, start: int = 1 << 20) -> None:
        self._next = start

    def take(self, length: int, alignment: int = 16) -> int:
        """The address of ``length`` bytes of its own."""
        address = (self._next + alignment - 1) // alignment * alignment
        self._next = address + length
        return address


class PciFunction:
    """A PCI function of a PC, reached by the configuration ports."""

    def __init__(self, guest: Access, bdf: int) -> None:
        self.guest = guest
        self.bdf = bdf
        self.bars: dict[int, int] = {}

    def config(self, offset: int, width: int = 4) -> int:
        """A configuration register."""
        self.guest.port_out(0xCF8, 4, 0x80000000 | self.bdf << 8 | offset & 0xFC)
        return self.guest.port_in(0xCFC + (offset & 3), width)

    def set_config(self, offset: int, width: int, value: int) -> None:
        """Write a configuration register."""
        self.guest.port_out(0xCF8, 4, 0x80000000 | self.bdf << 8 | offset & 0xFC)
        self.guest.port_out(0xCFC + (offset & 3), width, value)

    def enable(self, memory: int = 0xE0000000, ports: int = 0xC000) -> None:
        """Give every base address a place, from ``memory`` and ``ports`` on, and switch the function on."""
        number = 0
        while number < 6:
            offset = regs.BAR0 + 4 * number
            self.set_config(offset, 4, 0xFFFFFFFF)
            mask = self.config(offset)
            wide = not mask & regs.BAR_IO and bool(mask & regs.BAR_MEM64)
            if mask:
                size = (~(mask & (~0x3 if mask & regs.BAR_IO else ~0xF)) & 0xFFFFFFFF) + 1
                base = ports if mask & regs.BAR_IO else memory
                base = (base + size - 1) // size * size
                self.set_config(offset, 4, base)
                if wide:
                    self.set_config(offset + 4, 4, 0)
                self.bars[number] = base
                if mask & regs.BAR_IO:
                    ports = base + size
                else:
                    memory = base + size
            number += 2 if wide else 1
        self.set_config(regs.COMMAND, 2, regs.COMMAND_IO | regs.COMMAND_MEMORY | regs.COMMAND_MASTER)

    def capabilities(self) -> list[tuple[int, int]]:
        """``(kind, offset)`` of each capability."""
        found, offset = [], self.config(regs.CAPABILITIES, 1)
        while offset:
            found.append((self.config(offset, 1), offset))
            offset = self.config(offset + 1, 1)
        return found


class Transport(Protocol):
    """How a virtio driver reaches its device's registers."""

    guest: Access

    def features(self) -> int: ...
    def accept(self, features: int) -> None: ...
    def status(self, value: int | None = None) -> int: ...
    def set_queue(self, number: int, size: int, descriptors: int, driver: int, device: int) -> None: ...
    def queue_size(self, number: int) -> int: ...
    def kick(self, number: int) -> None: ...
    def config(self, offset: int, width: int) -> int: ...
    def isr(self) -> int: ...


class ModernPci:
    """Virtio 1.x over PCI."""

    def __init__(self, function: PciFunction) -> None:
        self.guest = function.guest
        self._areas: dict[int, int] = {}
        self._multiplier = 0
        for kind, offset in function.capabilities():
            if kind == regs.CAP_VENDOR:
                area, bar = function.config(offset + 3, 1), function.config(offset + 4, 1)
                if area in (1, 2, 3, 4):
                    self._areas[area] = function.bars[bar] + function.config(offset + 8)
                if area == 2:
                    self._multiplier = function.config(offset + 16)

    def _common(self, offset: int, width: int, value: int | None = None) -> int:
        if value is None:
            return self.guest.load(self._areas[1] + offset, width)
        self.guest.store(self._areas[1] + offset, width, value)
        return value

    def features(self) -> int:
        words = []
        for half in (0, 1):
            self._common(0, 4, half)
            words.append(self._common(4, 4))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> None:
        for half in (0, 1):
            self._common(8, 4, half)
            self._common(12, 4, features >> 32 * half & 0xFFFFFFFF)

    def status(self, value: int | None = None) -> int:
        return self._common(0x14, 1, value)

    def queue_size(self, number: int) -> int:
        self._common(0x16, 2, number)
        return self._common(0x18, 2)

    def set_vector(self, number: int, vector: int) -> int:
        """Have queue ``number`` signal ``vector``; returns what the device took."""
        self._common(0x16, 2, number)
        self._common(0x1A, 2, vector)
        return self._common(0x1A, 2)

    def set_queue(self, number: int, size: int, descriptors: int, driver: int, device: int) -> None:
        self._common(0x16, 2, number)
        self._common(0x18, 2, size)
        for offset, address in ((0x20, descriptors), (0x28, driver), (0x30, device)):
            self._common(offset, 4, address & 0xFFFFFFFF)
            self._common(offset + 4, 4, address >> 32)
        self._common(0x1C, 2, 1)

    def kick(self, number: int) -> None:
        self.guest.store(self._areas[2] + number * self._multiplier, 2, number)

    def config(self, offset: int, width: int) -> int:
        return self.guest.load(self._areas[4] + offset, width)

    def isr(self) -> int:
        return self.guest.load(self._areas[3], 1)


class LegacyPci:
    """Virtio over PCI before 1.0."""

    def __init__(self, function: PciFunction) -> None:
        self.guest = function.guest
        self._base = function.bars[0]

    def features(self) -> int:
        return self.guest.port_in(self._base, 4)

    def accept(self, features: int) -> None:
        self.guest.port_out(self._base + 4, 4, features & 0xFFFFFFFF)

    def status(self, value: int | None = None) -> int:
        if value is not None:
            self.guest.port_out(self._base + 18, 1, value)
        return self.guest.port_in(self._base + 18, 1)

    def queue_size(self, number: int) -> int:
        self.guest.port_out(self._base + 14, 2, number)
        return self.guest.port_in(self._base + 12, 2)

    def set_queue(self, number: int, size: int, descriptors: int, driver: int, device: int) -> None:
        self.guest.port_out(self._base + 14, 2, number)
        self.guest.port_out(self._base + 8, 4, descriptors // 4096)

    def kick(self, number: int) -> None:
        self.guest.port_out(self._base + 16, 2, number)

    def config(self, offset: int, width: int) -> int:
        return self.guest.port_in(self._base + 20 + offset, width)

    def isr(self) -> int:
        return self.guest.port_in(self._base + 19, 1)


class Mmio:
    """Virtio over memory-mapped registers, version 1 or 2."""

    def __init__(self, guest: Access, base: int) -> None:
        self.guest = guest
        self._base = base
        self.version = self.register(0x04)

    def register(self, offset: int, value: int | None = None) -> int:
        """Read or write a register."""
        if value is None:
            return self.guest.load(self._base + offset, 4)
        self.guest.store(self._base + offset, 4, value)
        return value

    def features(self) -> int:
        words = []
        for half in (0, 1):
            self.register(0x14, half)
            words.append(self.register(0x10))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> None:
        for half in (0, 1):
            self.register(0x24, half)
            self.register(0x20, features >> 32 * half & 0xFFFFFFFF)

    def status(self, value: int | None = None) -> int:
        return self.register(0x70, value)

    def queue_size(self, number: int) -> int:
        self.register(0x30, number)
        return self.register(0x34)

    def set_queue(self, number: int, size: int, descriptors: int, driver: int, device: int) -> None:
        self.register(0x30, number)
        self.register(0x38, size)
        if self.version == 1:
            self.register(0x28, 4096)
            self.register(0x3C, 4096)
            self.register(0x40, descriptors // 4096)
            return
        for offset, address in ((0x80, descriptors), (0x90, driver), (0xA0, device)):
            self.register(offset, address & 0xFFFFFFFF)
            self.register(offset + 4, address >> 32)
        self.register(0x44, 1)

    def kick(self, number: int) -> None:
        self.register(0x50, number)

    def config(self, offset: int, width: int) -> int:
        return self.guest.load(self._base + 0x100 + offset, width)

    def isr(self) -> int:
        return self.register(0x60)


class Queue:
    """A driver's split queue, laid out so that old and new transports take it."""

    def __init__(self, transport: Transport, memory: Memory, number: int, size: int | None = None) -> None:
        self.guest = transport.guest
        self._transport = transport
        self.number = number
        self.size = size or transport.queue_size(number)
        used_offset = (18 * self.size + 6 + 4095) // 4096 * 4096
        self.descriptors = memory.take(used_offset + 8 * self.size + 6, 4096)
        self.available = self.descriptors + 16 * self.size
        self.used = self.descriptors + used_offset
        self._available_index = self._used_index = 0
        self.guest.write(self.descriptors, bytes(used_offset + 8 * self.size + 6))
        transport.set_queue(number, self.size, self.descriptors, self.available, self.used)

    def describe(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        """Write descriptor ``index``."""
        data = address.to_bytes(8, "little") + length.to_bytes(4, "little")
        data += flags.to_bytes(2, "little") + following.to_bytes(2, "little")
        self.guest.write(self.descriptors + 16 * index, data)

    def offer(self, head: int) -> None:
        """Make the chain that begins at ``head`` available, and kick."""
        self.guest.store(self.available + 4 + 2 * (self._available_index % self.size), 2, head)
        self._available_index = (self._available_index + 1) & 0xFFFF
        self.guest.store(self.available + 2, 2, self._available_index)
        self._transport.kick(self.number)

    def send(self, parts: list[tuple[int, int, bool]]) -> None:
        """Offer one chain of ``(address, length, writable)``."""
        for i, (address, length, writable) in enumerate(parts):
            last = i == len(parts) - 1
            self.describe(i, address, length, (0 if last else 1) | (2 if writable else 0), i + 1)
        self.offer(0)

    def wait_used(self, timeout: float = 20.0) -> tuple[int, int]:
        """The next used element: the head and how many bytes were written."""
        wait_until(lambda: self.guest.load(self.used + 2, 2) != self._used_index, timeout)
        element = self.used + 4 + 8 * (self._used_index % self.size)
        self._used_index = (self._used_index + 1) & 0xFFFF
        return self.guest.load(element, 4), self.guest.load(element + 4, 4)


def start_driver(transport: Transport, wanted: int) -> int:
    """Reset the device and negotiate ``wanted`` features; returns those that were accepted.

    Queues are set up next, then :func:`driver_ok`.
    """
    transport.status(0)
    transport.status(1)
    transport.status(3)
    accepted = transport.features() & wanted
    transport.accept(accepted)
    transport.status(11)
    return accepted


def driver_ok(transport: Transport) -> None:
    """The driver is ready."""
    transport.status(15)


def firmware_file(guest: Access, name: str) -> bytes | None:
    """A file of a PC's firmware configuration, or None if there is none of that name."""

    def item(key: int, length: int) -> bytes:
        guest.port_out(0x510, 2, key)
        return bytes(guest.port_in(0x511, 1) for _ in range(length))

    count = int.from_bytes(item(0x19, 4), "big")
    directory = item(0x19, 4 + 64 * count)
    for start in range(4, len(directory), 64):
        entry = directory[start : start + 64]
        if entry[8:].rstrip(b"\0").decode() == name:
            return item(int.from_bytes(entry[4:6], "big"), int.from_bytes(entry[:4], "big"))
    return None

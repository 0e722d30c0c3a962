"""``pci-testdev``: what test programs measure and try accesses to memory and to ports with.

As the published description has it (QEMU's ``docs/specs/pci-testdev``): a structure at the start of each base address
names a test, and where and what the guest is to write for it.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState, part, u8, u32
from qobra.object.property import Size

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_MEMORY_SIZE, _PORTS_SIZE = 4096, 256
_WRITES_IN_MEMORY, _WRITES_IN_PORTS = 0x800, 0x80
_COUNT = 12
_MATCH, _OTHER = 0xFA, 0xCE
_KINDS = ("no-eventfd", "wildcard-eventfd", "datamatch-eventfd")
_NONE = len(_KINDS)


class Tests:
    """The tests of one base address, which is in memory or in ``ports``."""

    vmstate = VmState(u8("_chosen", maximum=_NONE), u32("_count"))

    def __init__(self, ports: bool) -> None:
        self._ports = ports
        self._first = len(_KINDS) if ports else 0
        self._start = _WRITES_IN_PORTS if ports else _WRITES_IN_MEMORY
        self.reset()

    def reset(self) -> None:
        """No test is chosen."""
        self._chosen = _NONE
        self._count = 0

    def read(self, offset: int, width: int) -> int:
        """A part of the structure."""
        return int.from_bytes(self._structure[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """Choose a test, or do what it asks for: what an event takes is not counted."""
        if self._chosen != _NONE and self._event_takes(offset, width, value):
            return
        for at in range(offset, offset + width):
            self._write_byte(at, value & 0xFF)
            value >>= 8

    @property
    def _structure(self) -> bytes:
        if self._chosen == _NONE:
            return b""
        kind = _KINDS[self._chosen]
        name = f"{'portio' if self._ports else 'mmio'}-{kind}".encode() + b"\0"
        return pack("<BBxxIII", self._first + self._chosen, 1, self._place, self._data, self._count) + name

    @property
    def _place(self) -> int:
        return self._start + self._first + self._chosen

    @property
    def _data(self) -> int:
        return _OTHER if self._chosen == 1 else _MATCH

    def _event_takes(self, offset: int, width: int, value: int) -> bool:
        if self._chosen == 0 or offset != self._place:
            return False
        if self._chosen == 1:
            return width == 1 or not self._ports
        return width == 1 and value == self._data

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == 0:
            self._chosen, self._count = min(value, _NONE), 0
        elif self._chosen != _NONE and offset == self._place and (value == self._data or self._chosen == 1):
            self._count = self._count + 1 & 0xFFFFFFFF


@registry.register("pci-testdev")
class PciTestDevice(PciDevice):
    """Tests in memory and in ports, and on demand memory of ``membar`` bytes that only has an address."""

    type_name = "pci-testdev"
    category = "Misc"
    description = "PCI Test Device"
    vendor_id = regs.RED_HAT
    device_id = 0x0005
    class_id = 0x00FF

    membar = Size(0)

    vmstate = VmState(part("in_memory", "in_ports"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.in_memory, self.in_ports = Tests(False), Tests(True)

    def realize(self) -> None:
        tests = self.in_memory
        self.add_bar(0, Registers("pci-testdev-mmio", _MEMORY_SIZE, tests.read, tests.write))
        tests = self.in_ports
        self.add_bar(1, Registers("pci-testdev-portio", _PORTS_SIZE, tests.read, tests.write), io=True)
        if self.membar:
            if self.membar & (self.membar - 1) or self.membar < 16:
                raise QobraError("Property 'membar' must be a power of two, of 16 bytes at least")
            nothing = Registers("pci-testdev-membar", self.membar, lambda _o, _w: 0, lambda _o, _w, _v: None)
            self.add_bar(2, nothing, wide=True, prefetch=True)

    def reset(self) -> None:
        super().reset()
        self.in_memory.reset()
        self.in_ports.reset()

"""The registers in memory, which drivers use that know neither ports nor interrupts (QEMU's document on its standard
VGA, "standard-vga"): what the monitor says of itself, the ports of the VGA, Bochs' registers one after the other, and
the order of bytes in a pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qobra.machine.memory import Registers
from qobra.machine.vmstate import VmState, flag

if TYPE_CHECKING:
    from qobra.machine.vga.registers import VgaRegisters

SIZE = 0x1000
_PORTS, _FIRST_PORT, _PORT_COUNT = 0x400, 0x3C0, 0x20
_DISPI, _DISPI_SIZE = 0x500, 0x16
_EXTENDED, _EXTENDED_SIZE, _BYTE_ORDER = 0x600, 8, 0x604
_BIG_ENDIAN, _LITTLE_ENDIAN = 0xBEBEBEBE, 0x1E1E1E1E


class Numbered(Protocol):
    """Registers of 16 bits by number."""

    def read(self, number: int) -> int: ...
    def write(self, number: int, value: int) -> None: ...


class ByteOrder:
    """Which byte of a pixel comes first; ``default`` is so after a reset."""

    vmstate = VmState(flag("big_endian"))

    def __init__(self) -> None:
        self.default = self.big_endian = False


class RegisterWindow:
    """The registers, those of them that are given. Where none is, bytes read as ``nothing`` and writes are lost."""

    def __init__(
        self,
        dispi: Numbered,
        *,
        identity: bytes = b"",
        registers: VgaRegisters | None = None,
        order: ByteOrder | None = None,
        nothing: int = 0xFF,
    ) -> None:
        self._dispi = dispi
        self._identity = identity
        self._registers = registers
        self._order = order
        self._nothing = nothing

    def region(self, name: str) -> Registers:
        """What is mapped."""
        return Registers(name, SIZE, self.load, self.store)

    def load(self, offset: int, width: int) -> int:
        """The ``width`` bytes at ``offset``."""
        if _EXTENDED <= offset < _EXTENDED + _EXTENDED_SIZE and self._order is not None:
            return self._extended(offset, width)
        if _DISPI <= offset < _DISPI + _DISPI_SIZE:
            number = offset - _DISPI >> 1
            value = self._dispi.read(number)
            return value | self._dispi.read(number + 1) << 16 if width > 2 else value & (1 << 8 * width) - 1
        return sum(self._byte(offset + i) << 8 * i for i in range(width))

    def _extended(self, offset: int, width: int) -> int:
        assert self._order is not None
        if width != 4:
            return 0
        if offset != _BYTE_ORDER:
            return _EXTENDED_SIZE
        return _BIG_ENDIAN if self._order.big_endian else _LITTLE_ENDIAN

    def _byte(self, offset: int) -> int:
        if offset < len(self._identity):
            return self._identity[offset]
        if self._registers is not None and 0 <= offset - _PORTS < _PORT_COUNT:
            return self._registers.read(_FIRST_PORT + offset - _PORTS)
        return self._nothing

    def store(self, offset: int, width: int, value: int) -> None:
        """Write ``width`` bytes."""
        if offset == _BYTE_ORDER and self._order is not None:
            if width == 4 and value in (_BIG_ENDIAN, _LITTLE_ENDIAN):
                self._order.big_endian = value == _BIG_ENDIAN
        elif _DISPI <= offset < _DISPI + _DISPI_SIZE:
            for i in range(0, width, 2):
                self._dispi.write(offset + i - _DISPI >> 1, value >> 8 * i & 0xFFFF)
        elif self._registers is not None and 0 <= offset - _PORTS < _PORT_COUNT:
            for i in range(min(width, _PORTS + _PORT_COUNT - offset)):
                self._registers.write(_FIRST_PORT + offset - _PORTS + i, value >> 8 * i & 0xFF)

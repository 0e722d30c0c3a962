"""``pc-testdev``: what test programs that run as guests of a PC use to try accesses, interrupts and caching."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.memory import Registers
from qobra.machine.vmstate import VmState, raw

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_FLUSH_PORT, _WIDE_PORT, _BYTE_PORT, _INTERRUPT_PORT = 0xE4, 0xE0, 0xE8, 0x2000
_LINES, _LINES_OF_BUS = 24, 16
_MEMORY, _MEMORY_SIZE = 0xFF000000, 0x10000


@registry.register("pc-testdev")
class PcTestDevice(IsaDevice):
    """Four bytes at a port, read and written in any width there and a byte at a time at another; a port for each of
    the bus's interrupt lines, which takes the level; 64 KiB of memory that is accessed as registers are.
    """

    type_name = "pc-testdev"
    category = "Misc"

    vmstate = VmState(raw("_port", "_memory"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._port = bytearray(4)
        self._memory = bytearray(_MEMORY_SIZE)

    def realize(self) -> None:
        self.map_ports(_WIDE_PORT, 4, self._read_port, self._write_port, width=4)
        self.map_ports(_BYTE_PORT, 4, self._read_port, self._write_port, width=1)
        self.map_ports(_FLUSH_PORT, 4, lambda _o, _w: 0, lambda _o, _w, _v: None)
        self.map_ports(_INTERRUPT_PORT, _LINES, lambda _o, _w: 0, self._interrupt)
        region = Registers("pc-testdev-iomem", _MEMORY_SIZE, self._read_memory, self._write_memory)
        self._mappings.append(self.board.memory.map(_MEMORY, region))

    def _read_port(self, offset: int, width: int) -> int:
        return int.from_bytes(self._port[offset : offset + width], "little")

    def _write_port(self, offset: int, width: int, value: int) -> None:
        self._port[offset : offset + width] = value.to_bytes(width, "little")

    def _read_memory(self, offset: int, width: int) -> int:
        return int.from_bytes(self._memory[offset : offset + width], "little")

    def _write_memory(self, offset: int, width: int, value: int) -> None:
        self._memory[offset : offset + width] = value.to_bytes(width, "little")

    def _interrupt(self, offset: int, _width: int, value: int) -> None:
        if offset < _LINES_OF_BUS:
            self.line(offset).set(1 if value else 0)

"""Parallel flash with Intel's command set (CFI, JEDEC JESD68; command set 0001)."""

from __future__ import annotations

from typing import Any

from qobra.block.backend import BlockBackend
from qobra.errors import QobraError
from qobra.machine.blockdev import PlainFrontEnd
from qobra.machine.devices import registry
from qobra.machine.memory import Mapping, Ram, Registers, RomDevice
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import Field, Listed, Number, Together, VmState, i64, u8
from qobra.object.property import Bool, Int

_READ_ARRAY, _READ_STATUS, _CLEAR_STATUS, _READ_ID, _QUERY = 0xFF, 0x70, 0x50, 0x90, 0x98
_PROGRAM, _PROGRAM_ALTERNATE, _BUFFERED, _ERASE, _CONFIRM, _LOCK = 0x40, 0x10, 0xE8, 0x20, 0xD0, 0x60
_BUFFERED_MAX = 1 << 16
"""Words that a buffered write can have: its count is 16 bits wide."""
_READY, _ERASE_ERROR, _PROGRAM_ERROR = 0x80, 0x20, 0x10


@registry.register("cfi.pflash01")
class Pflash(SysBusDevice, PlainFrontEnd):
    """A bank of flash chips side by side. What the guest writes is written through to the backend.

    While the array is read it is memory; during commands the registers are in its place.
    """

    type_name = "cfi.pflash01"

    num_blocks = Int(0, type="uint32")
    sector_length = Int(0, type="uint64")
    width = Int(0, type="uint8")
    device_width = Int(0, type="uint8")
    max_device_width = Int(0, type="uint8")
    big_endian = Bool(False)
    secure = Bool(False)
    id0 = Int(0, type="uint16")
    id1 = Int(0, type="uint16")
    id2 = Int(0, type="uint16")
    id3 = Int(0, type="uint16")
    base = 0

    vmstate = VmState(
        u8("_mode", "_status"),
        u8("_cycle", maximum=3),
        i64("_count"),
        Field("buffered", Listed(Together(Number(8), Number(1, maximum=4), Number(8)), _BUFFERED_MAX)),
    )

    def realize(self) -> None:
        size = self.num_blocks * self.sector_length
        if not size:
            raise QobraError('attribute "sector-length" or "num-blocks" not specified or zero.')
        self.flash = Ram(self.name, size, readonly=True)
        self._read_only = False
        if self.backend is not None:
            self._load(self.realize_block(resizable=False), size)
        self._cfi = self._query_table(size)
        self._registers = Registers(self.name, size, self._read, self._write, valid=(1, 4), impl=(1, 4))
        # Writes always come as commands, so the memory is shown read-only, with the registers behind it.
        self._array: Mapping = self.board.memory.map(self.base, _ReadArray(self.flash, self._registers))
        self._commands: Mapping = self.board.memory.map(self.base, self._registers, priority=1, enabled=False)
        self.reset()

    def _load(self, backend: BlockBackend, size: int) -> None:
        if backend.length != size:
            raise QobraError(f"device requires {size} bytes, block backend provides {backend.length} bytes")
        self._read_only = backend.node is not None and backend.node.read_only
        backend.read_into(0, self.flash.view)

    def unrealize(self) -> None:
        self._array.remove()
        self._commands.remove()
        self.flash.close()

    def reset(self) -> None:
        self._mode = _READ_ARRAY
        self._cycle = 0
        self._status = _READY
        self._count = 0
        self._buffered: dict[int, tuple[int, int]] = {}
        self._commands.place(None)

    # -- commands

    def _set_mode(self, mode: int) -> None:
        self._mode = mode
        self._cycle = 0
        self._commands.place(None if mode == _READ_ARRAY else self.base)

    def _read(self, offset: int, width: int) -> int:
        if self._mode == _READ_ARRAY:
            return self.flash.load(offset, width)
        if self._mode == _READ_ID:
            word = offset // self.width
            return {0: self._spread(self.id0), 1: self._spread(self.id1)}.get(word & 0xFF, 0)
        if self._mode == _QUERY:
            word = offset // self.width
            return self._spread(self._cfi[word]) if word < len(self._cfi) else 0
        return self._spread(self._status) & ((1 << 8 * width) - 1)

    def _spread(self, value: int) -> int:
        # Every chip of the bank answers in its own lanes.
        chip = self.device_width or self.width
        return sum(value << 8 * chip * i for i in range(self.width // chip))

    def _write(self, offset: int, width: int, value: int) -> None:
        command = value & 0xFF
        if self._cycle == 0:
            self._first_cycle(command, offset)
        elif self._mode in (_PROGRAM, _PROGRAM_ALTERNATE):
            self._program(offset, width, value)
            self._status |= _READY
            self._cycle = 0
        elif self._mode == _ERASE:
            if command == _CONFIRM:
                self._erase(offset)
            elif command == _READ_ARRAY:
                self._set_mode(_READ_ARRAY)
                return
            self._status |= _READY
            self._cycle = 0
        elif self._mode == _LOCK:
            self._status |= _READY
            self._cycle = 0
            if command == _READ_ARRAY:
                self._set_mode(_READ_ARRAY)
        else:
            self._buffered_cycle(offset, width, value)

    def _first_cycle(self, command: int, offset: int) -> None:
        if command in (0x00, 0xF0, _READ_ARRAY):
            self._set_mode(_READ_ARRAY)
        elif command in (_READ_STATUS, _READ_ID, _QUERY):
            self._set_mode(command)
        elif command == _CLEAR_STATUS:
            self._status = _READY
            self._set_mode(_READ_ARRAY)
        elif command in (_PROGRAM, _PROGRAM_ALTERNATE, _ERASE, _LOCK, _BUFFERED):
            self._set_mode(command)
            self._cycle = 1
            self._status |= _READY
        else:
            self._set_mode(_READ_ARRAY)

    def _buffered_cycle(self, offset: int, width: int, value: int) -> None:
        if self._cycle == 1:
            self._count = value & 0xFFFF
            self._buffered.clear()
            self._cycle = 2
        elif self._cycle == 2:
            self._buffered[offset] = (width, value)
            if self._count == 0:
                self._cycle = 3
            self._count -= 1
        else:
            if value & 0xFF == _CONFIRM:
                for at, (length, word) in self._buffered.items():
                    self._program(at, length, word)
                self._status |= _READY
            else:
                self._set_mode(_READ_ARRAY)
            self._buffered.clear()
            self._cycle = 0

    def _program(self, offset: int, width: int, value: int) -> None:
        if self._read_only or offset + width > self.flash.size:
            self._status |= _PROGRAM_ERROR
            return
        self.flash.view[offset : offset + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        self._write_through(offset, width)

    def _erase(self, offset: int) -> None:
        if self._read_only:
            self._status |= _ERASE_ERROR
            return
        length = int(self.sector_length)
        start = offset // length * length
        self.flash.view[start : start + length] = b"\xff" * length
        self._write_through(start, length)

    def _write_through(self, offset: int, length: int) -> None:
        if self.backend is not None:
            start, end = offset // 512 * 512, (offset + length + 511) // 512 * 512
            self.backend.write(start, self.flash.view[start:end])

    def _query_table(self, size: int) -> bytes:
        chips = max(1, self.width // (self.device_width or self.width))
        table = bytearray(0x52)
        table[0x10:0x13] = b"QRY"
        table[0x13], table[0x15] = 0x01, 0x31
        table[0x1B:0x27] = bytes((0x45, 0x55, 0, 0, 7, 7, 10, 0, 4, 4, 4, 0))
        table[0x27] = (size // chips).bit_length() - 1
        table[0x28], table[0x2A] = 0x02, 0x08 if self.device_width == 1 else 0x0B
        table[0x2C] = 1
        blocks = self.num_blocks - 1
        table[0x2D:0x2F] = blocks.to_bytes(2, "little")
        sector = self.sector_length // chips
        table[0x2F:0x31] = (sector >> 8 & 0xFFFF).to_bytes(2, "little")
        table[0x31:0x36] = b"PRI10"
        table[0x3F] = 1
        return bytes(table)

    @property
    def buffered(self) -> list[tuple[int, int, int]]:
        """The words that wait to be programmed: offset, width, value."""
        return [(offset, width, value) for offset, (width, value) in self._buffered.items()]

    @buffered.setter
    def buffered(self, words: list[tuple[int, int, int]]) -> None:
        self._buffered = {offset: (width, value) for offset, width, value in words}

    def state_loaded(self) -> None:
        super().state_loaded()
        self._commands.place(None if self._mode == _READ_ARRAY else self.base)


class _ReadArray(RomDevice):
    """The array as memory: loads read it, stores are commands."""

    __slots__ = ("_registers",)

    def __init__(self, flash: Ram, registers: Registers) -> None:
        self.name, self.size, self.fd, self.readonly = flash.name, flash.size, -1, True
        self.view, self.awaited = flash.view, flash.awaited
        self._registers: Any = registers

    def store(self, offset: int, width: int, value: int) -> None:
        self._registers.store(offset, width, value)

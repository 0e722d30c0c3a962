"""The modes beyond those of a VGA: the display interface of Bochs ("VBE DISPI", Bochs' documentation of its VBE
extension, version 0xb0c5), an index and a data register that set width, height, depth and the place in memory.
"""

from __future__ import annotations

from collections.abc import Callable

from qobra.machine.memory import Region
from qobra.machine.vmstate import Field, Listed, Number, VmState, flag, u16

ID, WIDTH, HEIGHT, DEPTH, ENABLE, BANK, VIRTUAL_WIDTH, VIRTUAL_HEIGHT, X, Y, MEMORY = range(11)
COUNT = 11
ON, TELL_LIMITS, WIDE_COLOURS, LINEAR, KEEP_MEMORY = 0x01, 0x02, 0x20, 0x40, 0x80
FIRST_ID, LAST_ID = 0xB0C0, 0xB0C5
_LIMITS = {WIDTH: 16000, HEIGHT: 12000, DEPTH: 32}
_BANK = 0x10000
_DEPTHS = {4: 4, 8: 8, 15: 16, 16: 16, 24: 24, 32: 32}
"""Bits of a pixel in memory, by the depth that is asked for."""


class Dispi:
    """The registers for ``memory`` bytes. ``switched(clear)`` is called when something may look otherwise; ``clear``
    says whether the picture is to be blackened."""

    vmstate = VmState(u16("index"), Field("registers", Listed(Number(2))), flag("_banked"))

    def __init__(self, memory: int, switched: Callable[[bool], None]) -> None:
        self._memory = memory
        self._switched = switched
        self.reset()

    def reset(self) -> None:
        """Off."""
        self.index = 0
        self.registers = [0] * COUNT
        self.registers[ID] = LAST_ID
        self._banked = False

    def state_loaded(self) -> None:
        """Whatever was loaded has to fit in memory."""
        self.registers[BANK] &= self._memory // _BANK - 1
        if self.on:
            self._fit()

    # -- what follows from the registers

    @property
    def on(self) -> bool:
        """Whether the picture is what these registers say rather than the VGA's."""
        return bool(self.registers[ENABLE] & ON)

    @property
    def wide_colours(self) -> bool:
        """Whether the colours of the palette have eight bits a channel rather than six."""
        return bool(self.registers[ENABLE] & WIDE_COLOURS)

    @property
    def bank_offset(self) -> int:
        """Where the memory begins that the window of 64 KiB shows."""
        return self.registers[BANK] * _BANK if self._banked else 0

    @property
    def bits(self) -> int:
        """Bits of a pixel in memory."""
        return _DEPTHS.get(self.registers[DEPTH], 8)

    @property
    def line_length(self) -> int:
        """Bytes from one line to the next."""
        return self.registers[VIRTUAL_WIDTH] * self.bits // 8

    @property
    def start(self) -> int:
        """Where the picture begins in memory."""
        return self.registers[X] * self.bits // 8 + self.registers[Y] * self.line_length

    # -- access

    def read(self, number: int) -> int:
        """Register ``number``."""
        if number == MEMORY:
            return self._memory // _BANK
        if number >= COUNT:
            return 0
        if self.registers[ENABLE] & TELL_LIMITS and number in _LIMITS:
            return _LIMITS[number]
        return self.registers[number]

    def write(self, number: int, value: int) -> None:
        """Write register ``number``."""
        if number == ID:
            if FIRST_ID <= value <= LAST_ID:
                self.registers[ID] = value
        elif number in (WIDTH, HEIGHT, DEPTH, VIRTUAL_WIDTH, X, Y):
            self.registers[number] = value
            if self.on:
                self._fit()
            self._switched(False)
        elif number == BANK:
            self.registers[BANK] = value & (self._memory // _BANK - 1)
            self._banked = True
            self._switched(False)
        elif number == ENABLE:
            self._enable(value)

    def _enable(self, value: int) -> None:
        begins = value & ON and not self.on
        self.registers[ENABLE] = value
        if begins:
            self.registers[VIRTUAL_WIDTH] = 0
            self.registers[X] = self.registers[Y] = 0
            self._fit()
        else:
            self._banked = False
        self._switched(bool(begins and not value & KEEP_MEMORY))

    def _fit(self) -> None:
        """Have the registers say something that fits in memory."""
        registers = self.registers
        if registers[DEPTH] not in _DEPTHS:
            registers[DEPTH] = 8
        registers[WIDTH] = max(min(registers[WIDTH], _LIMITS[WIDTH]) & ~7, 8)
        registers[HEIGHT] = max(min(registers[HEIGHT], _LIMITS[HEIGHT]), 1)
        registers[VIRTUAL_WIDTH] = max(min(registers[VIRTUAL_WIDTH], _LIMITS[WIDTH]) & ~7, registers[WIDTH])
        registers[X] = min(registers[X], _LIMITS[WIDTH])
        registers[Y] = min(registers[Y], _LIMITS[HEIGHT])
        lines = self._memory // self.line_length
        registers[VIRTUAL_HEIGHT] = lines & 0xFFFF
        registers[HEIGHT] = min(registers[HEIGHT], max(lines, 1))
        for coordinate in (Y, X):
            if self.start + registers[HEIGHT] * self.line_length > self._memory:
                registers[coordinate] = 0


class DispiPorts(Region):
    """The registers in ports: an index, and the data right after it and again two ports on; 16 bits at once only."""

    __slots__ = ("_dispi",)

    def __init__(self, dispi: Dispi) -> None:
        super().__init__("vbe", 4)
        self._dispi = dispi

    def chunk(self, address: int, length: int) -> int:
        return length

    def load(self, offset: int, width: int) -> int:
        if width != 2 or offset > 2:
            return (1 << 8 * width) - 1
        return self._dispi.read(self._dispi.index) if offset else self._dispi.index

    def store(self, offset: int, width: int, value: int) -> None:
        if width != 2 or offset > 2:
            return
        if offset:
            self._dispi.write(self._dispi.index, value)
        else:
            self._dispi.index = value

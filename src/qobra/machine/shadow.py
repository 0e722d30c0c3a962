"""The ROM areas below 1 MiB, in whose place a chipset shows RAM (the PAM registers of i440FX and Q35)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine.memory import Registers

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard


class Shadow:
    """Which of the ROM areas from 0xc0000 to 0xfffff show RAM instead (the PAM registers of the chipsets)."""

    def __init__(self, board: PcBoard) -> None:
        self._board = board
        assert board.ram is not None
        self._readable = board.ram.read_only_view()
        self._mappings: dict[int, Any] = {}
        starts = [(0xF0000, 0x10000)] + [(0xC0000 + 0x4000 * i, 0x4000) for i in range(12)]
        self.areas = starts
        for start, size in starts:
            self._show(start, size, 0)

    def set(self, registers: bytes | bytearray) -> None:
        """Follow the seven registers: two bits, read and write, for each area."""
        for index, (start, size) in enumerate(self.areas):
            value = registers[(index + 1) // 2]
            self._show(start, size, value >> (4 if index % 2 == 0 else 0) & 3)

    def _show(self, start: int, size: int, attribute: int) -> None:
        current = self._mappings.get(start)
        if current is not None and current[0] == attribute:
            return
        if current is not None and current[1] is not None:
            current[1].remove()
        memory, mapping = self._board.memory, None
        rom, offset = self._board.shadow_rom(start)
        if attribute == 0:
            mapping = memory.map(start, rom, offset=offset, size=size, priority=1)
        elif attribute == 1:
            mapping = memory.map(start, self._readable, offset=start, size=size, priority=1)
        elif attribute == 2:
            ram = self._board.ram
            assert ram is not None
            split = Registers(
                "pam-rom",
                size,
                lambda at, width: rom.load(offset + at, width),
                lambda at, width, value: ram.store(start + at, width, value),
                valid=(1, 8),
                impl=(1, 8),
            )
            mapping = memory.map(start, split, priority=1)
        self._mappings[start] = (attribute, mapping)

"""The memory that stays, read word by word through EERD (section 10.2.3.4); its lines (EECD) lead to no chip."""

from __future__ import annotations

from qobra.machine.vmstate import VmState, u32

_START, _DONE = 0x1, 0x2
_PRESENT, _AUTOMATIC = 0x100, 0x200
_LINES_KEPT = 0xFFFF87FF
_WORDS, _CHECKSUM = 64, 0xBABA


class Nvm:
    """64 words: the address, the identity, and a checksum, so that all of them add up to 0xBABA."""

    vmstate = VmState(u32("_lines"))

    def __init__(self, address: bytes, device_id: int, subsystem: tuple[int, int]) -> None:
        words = [0] * _WORDS
        words[0x00:0x03] = [int.from_bytes(address[n : n + 2], "little") for n in (0, 2, 4)]
        words[0x05] = 0x2010
        words[0x08] = words[0x09] = 0xFFFF  # no number of a board
        words[0x0A], words[0x0F] = 0x0000, 0x8058
        words[0x0B], words[0x0C] = subsystem[1], subsystem[0]
        words[0x0D], words[0x0E] = device_id, 0x8086
        words[_WORDS - 1] = (_CHECKSUM - sum(words)) & 0xFFFF
        self._words = words
        self.reset()

    def reset(self) -> None:
        """Nobody talks to it."""
        self._lines = 0

    def read_word(self, request: int) -> int:
        """EERD after ``request`` was written to it: the word at once, if one that there is was asked for."""
        number = request >> 2 & 0x3FFF
        if not request & _START or number >= _WORDS:
            return request & 0xFFFC
        return request & 0xFFFC | _DONE | self._words[number] << 16

    @property
    def lines(self) -> int:
        """EECD."""
        return self._lines & _LINES_KEPT | _PRESENT | _AUTOMATIC

    @lines.setter
    def lines(self, value: int) -> None:
        self._lines = value

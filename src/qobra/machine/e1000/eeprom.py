"""The serial EEPROM of the card, read word by word through EERD, or bit by bit through EECD (section 5.3)."""

from __future__ import annotations

from qobra.machine.microwire import WORDS, Microwire
from qobra.machine.vmstate import VmState, part, u16

_CLOCK, _SELECT, _IN, _OUT, _FLASH, _REQUEST, _GRANT, _PRESENT = 0x01, 0x02, 0x04, 0x08, 0x30, 0x40, 0x80, 0x100
_START, _DONE = 0x01, 0x10
_CHECKSUM = 0xBABA


class Eeprom:
    """64 words: the address, the identity, and a checksum, so that all of them add up to 0xBABA."""

    vmstate = VmState(u16("_lines"), part("_wires"))

    def __init__(self, address: bytes, device_id: int, subsystem: tuple[int, int]) -> None:
        words = [0] * WORDS
        words[0:3] = [int.from_bytes(address[n : n + 2], "little") for n in (0, 2, 4)]
        words[0x08], words[0x09], words[0x0A] = 0x3000, 0x1000, 0x6403
        words[0x0B], words[0x0C] = subsystem[1], subsystem[0]
        words[0x0D], words[0x0E], words[0x0F] = device_id, 0x8086, 0x3040
        words[WORDS - 1] = (_CHECKSUM - sum(words)) & 0xFFFF
        self._wires = Microwire(words, leading_zero=False)
        self.reset()

    def reset(self) -> None:
        """Nobody talks to it."""
        self._lines = 0
        self._wires.deselect()

    def word(self, number: int) -> int:
        """A word; ones beyond the last."""
        return self._wires.words[number] if number < WORDS else 0xFFFF

    def read_word(self, request: int) -> int:
        """EERD after ``request`` was written to it."""
        if not request & _START:
            return request
        return request & ~_START | _DONE | self.word(request >> 8 & 0xFF) << 16

    @property
    def lines(self) -> int:
        """EECD."""
        out = _OUT if not self._wires.reading or self._wires.out else 0
        return self._lines | out | _GRANT | _PRESENT

    @lines.setter
    def lines(self, value: int) -> None:
        before, self._lines = self._lines, value & (_CLOCK | _SELECT | _IN | _FLASH | _REQUEST)
        if not value & _SELECT:
            self._wires.deselect()
        elif value & _CLOCK and not before & _CLOCK:
            self._wires.clock(1 if value & _IN else 0)

"""The serial EEPROM of the card, read word by word through EERD, or bit by bit through EECD (section 5.3)."""

from __future__ import annotations

from qobra.machine.vmstate import VmState, flag, u8, u16

_CLOCK, _SELECT, _IN, _OUT, _FLASH, _REQUEST, _GRANT, _PRESENT = 0x01, 0x02, 0x04, 0x08, 0x30, 0x40, 0x80, 0x100
_START, _DONE = 0x01, 0x10
_WORDS, _CHECKSUM = 64, 0xBABA
_READ = 0b110


class Eeprom:
    """64 words: the address, the identity, and a checksum, so that all of them add up to 0xBABA."""

    vmstate = VmState(u16("_lines"), u16("_shifted", "_output"), u8("_bits", maximum=9), flag("_reading"))

    def __init__(self, address: bytes, device_id: int, subsystem: tuple[int, int]) -> None:
        words = [0] * _WORDS
        words[0:3] = [int.from_bytes(address[n : n + 2], "little") for n in (0, 2, 4)]
        words[0x08], words[0x09], words[0x0A] = 0x3000, 0x1000, 0x6403
        words[0x0B], words[0x0C] = subsystem[1], subsystem[0]
        words[0x0D], words[0x0E], words[0x0F] = device_id, 0x8086, 0x3040
        words[_WORDS - 1] = (_CHECKSUM - sum(words)) & 0xFFFF
        self._words = words
        self.reset()

    def reset(self) -> None:
        """Nobody talks to it."""
        self._lines = 0
        self._deselect()

    def _deselect(self) -> None:
        self._shifted = self._bits = self._output = 0
        self._reading = False

    def word(self, number: int) -> int:
        """A word; ones beyond the last."""
        return self._words[number] if number < _WORDS else 0xFFFF

    def read_word(self, request: int) -> int:
        """EERD after ``request`` was written to it."""
        if not request & _START:
            return request
        return request & ~_START | _DONE | self.word(request >> 8 & 0xFF) << 16

    @property
    def lines(self) -> int:
        """EECD."""
        out = _OUT if not self._reading or self._output & 0x8000 else 0
        return self._lines | out | _GRANT | _PRESENT

    @lines.setter
    def lines(self, value: int) -> None:
        before, self._lines = self._lines, value & (_CLOCK | _SELECT | _IN | _FLASH | _REQUEST)
        if not value & _SELECT:
            self._deselect()
            return
        if not value & _CLOCK or before & _CLOCK:
            return
        if self._reading:
            self._output = self._output << 1 & 0xFFFF
            return
        bit = 1 if value & _IN else 0
        if not bit and not self._bits:
            return  # a one begins
        self._shifted = self._shifted << 1 | bit
        self._bits += 1
        if self._bits == 9:
            # A start bit, two bits of command, six of address.
            if self._shifted >> 6 == _READ:
                self._reading, self._output = True, self.word(self._shifted & 63)
            else:
                self._deselect()

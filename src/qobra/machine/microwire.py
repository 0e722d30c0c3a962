"""A serial EEPROM of the kind 93C46, as network cards have it: 64 words of 16 bits behind three wires."""

from __future__ import annotations

from collections.abc import Sequence

from qobra.machine.vmstate import VmState, flag, u8, u16

WORDS = 64
_COMMAND_BITS = 9
"""A start bit, two bits of command, six of address."""
_COMMAND_MASK = (1 << _COMMAND_BITS) - 1
_READ = 0b110


class Microwire:
    """What its wires do. It is read only. With ``leading_zero`` a zero comes out before the bits of a word."""

    vmstate = VmState(u16("_shifted", "_output"), u8("_bits", maximum=_COMMAND_BITS), flag("_reading"))

    def __init__(self, words: Sequence[int], *, leading_zero: bool) -> None:
        self.words = words
        self._leading_zero = leading_zero
        self.deselect()

    @property
    def reading(self) -> bool:
        """Whether a word comes out."""
        return self._reading

    @property
    def out(self) -> bool:
        """The wire on which it answers."""
        return bool(self._output & 0x8000)

    def deselect(self) -> None:
        """Nobody talks to it any more."""
        self._shifted = self._bits = self._output = 0
        self._reading = False

    def clock(self, bit: int) -> None:
        """The clock rises, with ``bit`` on the wire that leads in."""
        if self._reading:
            self._output = self._shifted if self._bits else self._output << 1 & 0xFFFF
            self._bits = 0
            return
        if not bit and not self._bits:
            return  # a one begins
        self._shifted = (self._shifted << 1 | bit) & _COMMAND_MASK
        self._bits += 1
        if self._bits >= _COMMAND_BITS:
            command, word = self._shifted >> 6, self.words[self._shifted % WORDS]
            self.deselect()
            if command == _READ:
                self._reading = True
                if self._leading_zero:
                    self._shifted, self._bits = word, _COMMAND_BITS
                else:
                    self._output = word

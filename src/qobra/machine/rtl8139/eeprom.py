"""The serial EEPROM behind register 9346CR: a 93C46 of 64 words (section 5.8)."""

from __future__ import annotations

from qobra.machine.vmstate import VmState, flag, u8, u16

_OUT, _IN, _CLOCK, _SELECT = 0x01, 0x02, 0x04, 0x08
_KEPT = 0xCE
_AUTOMATIC = 0x40
_WORDS, _ADDRESS_AT = 64, 7
_READ = 0b110
_COMMAND_BITS = 9


class Eeprom:
    """Its identity, and the card's address from word 7 on. It is read only."""

    vmstate = VmState(u8("_lines"), u16("_shifted", "_output"), u8("_bits", maximum=_COMMAND_BITS), flag("_reading"))

    def __init__(self, address: bytes, vendor_id: int, device_id: int) -> None:
        self._words = [0] * _WORDS
        self._words[:3] = [0x8129, vendor_id, device_id]
        for n in range(3):
            self._words[_ADDRESS_AT + n] = int.from_bytes(address[2 * n : 2 * n + 2], "little")
        self.reset()

    def reset(self) -> None:
        """Nobody talks to it."""
        self._lines = 0
        self._deselect()

    def _deselect(self) -> None:
        self._shifted = self._bits = self._output = 0
        self._reading = False

    @property
    def lines(self) -> int:
        """The register."""
        return self._lines | (_OUT if self._output & 0x8000 else 0)

    @lines.setter
    def lines(self, value: int) -> None:
        if value & 0xC0 == _AUTOMATIC:  # all is loaded anew, which is over at once
            self.reset()
            return
        before, self._lines = self._lines, value & _KEPT
        if not value & _SELECT:
            self._deselect()
        elif value & _CLOCK and not before & _CLOCK:
            self._clocked(1 if value & _IN else 0)

    def _clocked(self, bit: int) -> None:
        if self._reading:
            # A zero precedes the sixteen bits.
            self._output = self._shifted if self._bits == _COMMAND_BITS else self._output << 1 & 0xFFFF
            self._bits = 0
            return
        if not bit and not self._bits:
            return  # a one begins
        self._shifted = (self._shifted << 1 | bit) & 0x1FF
        self._bits += 1
        if self._bits == _COMMAND_BITS:
            if self._shifted >> 6 == _READ:
                self._reading, self._shifted = True, self._words[self._shifted & 63]
            else:
                self._deselect()

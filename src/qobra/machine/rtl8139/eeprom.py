"""The serial EEPROM behind register 9346CR: a 93C46 of 64 words (section 5.8)."""

from __future__ import annotations

from qobra.machine.microwire import WORDS, Microwire
from qobra.machine.vmstate import VmState, part, u8

_OUT, _IN, _CLOCK, _SELECT = 0x01, 0x02, 0x04, 0x08
_KEPT = 0xCE
_AUTOMATIC = 0x40
_ADDRESS_AT = 7


class Eeprom:
    """Its identity, and the card's address from word 7 on. It is read only."""

    vmstate = VmState(u8("_lines"), part("_wires"))

    def __init__(self, address: bytes, vendor_id: int, device_id: int) -> None:
        words = [0] * WORDS
        words[:3] = [0x8129, vendor_id, device_id]
        for n in range(3):
            words[_ADDRESS_AT + n] = int.from_bytes(address[2 * n : 2 * n + 2], "little")
        self._wires = Microwire(words, leading_zero=True)
        self.reset()

    def reset(self) -> None:
        """Nobody talks to it."""
        self._lines = 0
        self._wires.deselect()

    @property
    def lines(self) -> int:
        """The register."""
        return self._lines | (_OUT if self._wires.out else 0)

    @lines.setter
    def lines(self, value: int) -> None:
        if value & 0xC0 == _AUTOMATIC:  # all is loaded anew, which is over at once
            self.reset()
            return
        before, self._lines = self._lines, value & _KEPT
        if not value & _SELECT:
            self._wires.deselect()
        elif value & _CLOCK and not before & _CLOCK:
            self._wires.clock(1 if value & _IN else 0)

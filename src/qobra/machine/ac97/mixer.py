"""The registers of a codec (Audio Codec '97 2.3, section 5.7): how loud it is, and at what rates it works."""

from __future__ import annotations

from qobra.machine.vmstate import Number, VmState, listed

RESET, MASTER, PCM_OUT, RECORD_SELECT, RECORD_GAIN, GENERAL, POWER, EXTENDED_ID, EXTENDED = (
    0x00, 0x02, 0x18, 0x1A, 0x1C, 0x20, 0x26, 0x28, 0x2A,
)  # fmt: skip
FRONT_RATE, INPUT_RATE, MIC_RATE = 0x2C, 0x32, 0x34
_VENDOR = {0x7C: 0x8384, 0x7E: 0x7600}
"""The identification of a SigmaTel STAC9700."""
_SIZE = 0x80
_RATE = 48000
_MASKS = {
    MASTER: 0xBF3F, PCM_OUT: 0x9F1F, RECORD_SELECT: 0x0707, RECORD_GAIN: 0x8F0F, 0x24: 0xFFFF, EXTENDED: 0xFFFF,
    0x2E: 0xFFFF, 0x30: 0xFFFF,
}  # fmt: skip
_DEFAULTS = {
    MASTER: 0x8000, PCM_OUT: 0x8808, RECORD_GAIN: 0x8808, POWER: 0x000F, EXTENDED_ID: 0x0809, EXTENDED: 0x0009,
    **dict.fromkeys((FRONT_RATE, 0x2E, 0x30, INPUT_RATE, MIC_RATE), _RATE), **_VENDOR,
}  # fmt: skip
_READY, _POWER_MASK = 0x000F, 0x7FF0
_VARIABLE, _VARIABLE_MIC = 0x0001, 0x0008
_MUTED = 0x8000
_STEP_DECIBELS, _UNCHANGED = 1.5, 8


class Mixer:
    """The codec. Registers are numbers of 16 bits at even offsets."""

    vmstate = VmState(listed("_registers", kind=Number(2)))

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As it begins."""
        self._registers = [_DEFAULTS.get(2 * number, 0) for number in range(_SIZE // 2)]

    def read(self, offset: int) -> int:
        """A register; those that are not there are 0."""
        return self._registers[offset // 2] if offset < _SIZE else 0

    def write(self, offset: int, value: int) -> None:
        """Write one."""
        if offset == RESET:
            self.reset()
        elif offset == POWER:
            self._put(POWER, value & _POWER_MASK | _READY)
        elif offset in (FRONT_RATE, INPUT_RATE, MIC_RATE):
            if self.read(EXTENDED) & (_VARIABLE_MIC if offset == MIC_RATE else _VARIABLE):
                self._put(offset, value)
        elif offset in _MASKS:
            self._put(offset, value & _MASKS[offset])
        if offset == EXTENDED:
            if not value & _VARIABLE:
                self._put(FRONT_RATE, _RATE)
                self._put(INPUT_RATE, _RATE)
            if not value & _VARIABLE_MIC:
                self._put(MIC_RATE, _RATE)

    def _put(self, offset: int, value: int) -> None:
        self._registers[offset // 2] = value

    def volumes(self) -> tuple[float, float]:
        """Factors for the left and the right side of what is played."""
        master, wave = self.read(MASTER), self.read(PCM_OUT)
        if (master | wave) & _MUTED:
            return 0.0, 0.0
        left, right = (
            10 ** (-_STEP_DECIBELS * ((master >> shift & 0x3F) + (wave >> shift & 0x1F) - _UNCHANGED) / 20)
            for shift in (8, 0)
        )
        return left, right

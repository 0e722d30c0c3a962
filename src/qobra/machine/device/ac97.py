"""``AC97``: the sound of Intel's 82801AA (datasheet 290655, section 13) with a codec.

Its ports are in two ranges: the codec's registers, and those of the bus masters with the state of all.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qobra.audio.audiodev import Voice
from qobra.audio.sound import Form
from qobra.machine.ac97 import channel as channels
from qobra.machine.ac97.channel import Channel
from qobra.machine.ac97.mixer import FRONT_RATE, INPUT_RATE, MIC_RATE, Mixer
from qobra.machine.audio_card import audiodev_property, open_voice
from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState, flag, part, parts, u32

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_MIXER_SIZE, _MASTERS_SIZE = 0x400, 0x100
_CONTROL, _STATE, _SEMAPHORE = 0x2C, 0x30, 0x34
_CONTROL_MASK = 0x3B
"""The bit of a warm reset is 0 as soon as that is over."""
_CODEC_READY, _KEPT = 0x00000100, 0x00030000
_CAUSES = (0x20, 0x40, 0x80)
_INPUTS, _OUTPUT = (0, 2), 1
_LEAST_RATE = 1
_PCI_STATUS = 0x0280
"""It takes transfers back to back, and is of medium speed."""


@registry.register("AC97")
class Ac97(PciDevice):
    """The controller: sound in, sound out and a microphone, of which only what goes out is heard."""

    type_name = "AC97"
    category = "Sound"
    description = "Intel 82801AA AC97 Audio"
    vendor_id = regs.INTEL
    device_id = 0x2415
    revision = 0x01
    class_id = 0x0401
    interrupt_pin = 1

    audiodev = audiodev_property()

    vmstate = VmState(part("mixer"), parts("channels"), u32("_control", "_kept"), flag("_semaphore"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._voice = Voice()
        self.mixer = Mixer()
        self.channels: list[Channel] = []

    def realize(self) -> None:
        self.put(regs.STATUS, 2, _PCI_STATUS)
        self._voice = open_voice(self.machine, self.audiodev)
        memory = GuestMemory(self.board.memory, self.may_master)
        paces = ((INPUT_RATE, 2), (FRONT_RATE, 2), (MIC_RATE, 1))
        self._control = self._kept = 0
        self._semaphore = False
        for number, (rate, count) in enumerate(paces):
            self.channels.append(
                Channel(
                    self.board.clock,
                    memory,
                    output=number == _OUTPUT,
                    pace=partial(self._pace, rate, count),
                    carry=self._play,
                    changed=self._check_interrupts,
                    stopped=self._voice.pause if number == _OUTPUT else lambda: None,
                )
            )
        valid = (1, 4)
        self.add_bar(0, Registers("ac97-nam", _MIXER_SIZE, self._read_mixer, self._write_mixer, valid=valid), io=True)
        self.add_bar(1, Registers("ac97-nabm", _MASTERS_SIZE, self._read, self._write, valid=valid), io=True)

    def unrealize(self) -> None:
        for each in self.channels:
            each.close()
        self._voice.close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.mixer.reset()
        for each in self.channels:
            each.power_on()
        self._control = self._kept = 0
        self._semaphore = False
        self._check_interrupts()

    def _pace(self, rate: int, channels: int) -> int:
        """Bytes a second of a bus master whose rate is in that register."""
        return 2 * channels * max(self.mixer.read(rate), _LEAST_RATE)

    def _play(self, data: bytes) -> None:
        rate = max(self.mixer.read(FRONT_RATE), _LEAST_RATE)
        self._voice.play(data, Form(rate, 2, 16), self.mixer.volumes())

    def _causes(self) -> int:
        return sum(cause for cause, each in zip(_CAUSES, self.channels, strict=False) if each.interrupts)

    def _check_interrupts(self) -> None:
        self.set_pin(bool(self._causes()))

    # -- registers

    def _read_mixer(self, offset: int, width: int) -> int:
        self._semaphore = False
        return self.mixer.read(offset) if width == 2 and not offset & 1 else (1 << 8 * width) - 1

    def _write_mixer(self, offset: int, width: int, value: int) -> None:
        self._semaphore = False
        if width == 2 and not offset & 1:
            before = [(each, each.pace()) for each in self.channels]
            for each in self.channels:
                each.catch_up()
            self.mixer.write(offset, value)
            for each, pace in before:
                if each.pace() != pace:
                    each.change_pace()

    def _read(self, offset: int, width: int) -> int:
        if offset < _CONTROL and offset // channels.SIZE < len(self.channels):
            number, at = divmod(offset, channels.SIZE)
            return int.from_bytes(self.channels[number].registers()[at : at + width], "little")
        if offset == _SEMAPHORE:
            taken, self._semaphore = self._semaphore, True
            return int(taken)
        state = _CODEC_READY | self._kept | self._causes()
        found = self._control.to_bytes(4, "little") + state.to_bytes(4, "little")
        return int.from_bytes(found[offset - _CONTROL : offset - _CONTROL + width], "little")

    def _write(self, offset: int, width: int, value: int) -> None:
        for at in range(offset, offset + width):
            self._write_byte(at, value >> 8 * (at - offset) & 0xFF)

    def _write_byte(self, offset: int, value: int) -> None:
        if offset < _CONTROL:
            number, at = divmod(offset, channels.SIZE)
            self.channels[number].write(at, value)
        elif offset == _CONTROL:
            self._control = value & _CONTROL_MASK
        elif offset == _STATE + 2:
            self._kept = value << 16 & _KEPT

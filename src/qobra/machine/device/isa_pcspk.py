"""Port 0x61 of PCs: the gate and the output of the timer's third counter, and the speaker that it drives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import VmState, u8
from qobra.object.property import Int

if TYPE_CHECKING:
    from qobra.machine.device.isa_pit import Pit

_GATE, _SPEAKER, _REFRESH, _OUTPUT = 0x01, 0x02, 0x10, 0x20


@registry.register("isa-pcspk")
class PcSpeaker(IsaDevice):
    """The speaker, which nobody hears; programs measure time with what the port shows."""

    type_name = "isa-pcspk"
    pluggable = False
    pit: Pit

    iobase = Int(0x61, type="uint32")

    vmstate = VmState(u8("_on", "_refresh"))

    def realize(self) -> None:
        self.map_ports(self.iobase, 1, self._read, self._write, name="pcspk")
        self._on = self._refresh = 0

    def _read(self, _offset: int, _width: int) -> int:
        # Memory is refreshed between any two looks.
        self._refresh ^= _REFRESH
        output = _OUTPUT if self.pit.speaker_output() else 0
        return int(self.pit.counters[2].gate) | self._on | self._refresh | output

    def _write(self, _offset: int, _width: int, value: int) -> None:
        self.pit.set_speaker_gate(bool(value & _GATE))
        self._on = value & _SPEAKER

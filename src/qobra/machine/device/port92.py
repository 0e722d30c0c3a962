"""Port 0x92 of the PS/2: gate of address line 20, and a quick reset."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import VmState, u8


@registry.register("port92")
class Port92(IsaDevice):
    """Bit 1 opens the gate, a rising bit 0 resets the machine."""

    type_name = "port92"
    pluggable = False

    vmstate = VmState(u8("_value"))

    def realize(self) -> None:
        self.map_ports(0x92, 1, lambda _offset, _width: self._value, self._write)
        (self.a20,) = self.add_outputs(1, "a20")
        self._value = 0

    def reset(self) -> None:
        self._value &= ~1

    def _write(self, _offset: int, _width: int, value: int) -> None:
        rising = value & ~self._value & 1
        self._value = value & 0xFF
        self.a20.set(value >> 1 & 1)
        if rising:
            self.machine.run_state.request_reset("guest-reset")

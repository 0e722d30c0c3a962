"""The EEPROMs of memory modules, which tell of them (SPD): 256 bytes that a host writes and reads from an offset on."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.smbus import SmbusDevice
from qobra.machine.vmstate import VmState, raw, u8

_SIZE = 256


@registry.register("smbus-eeprom")
class SmbusEeprom(SmbusDevice):
    """The first byte that is written is the offset, what follows goes there."""

    type_name = "smbus-eeprom"
    pluggable = False

    vmstate = VmState(raw("_data"), u8("_offset"))

    def realize(self) -> None:
        self._data = bytearray(_SIZE)
        self._offset = 0

    def reset(self) -> None:
        self._offset = 0

    def receive(self, data: bytes) -> None:
        self._offset = data[0]
        for value in data[1:]:
            self._data[self._offset] = value
            self._offset = (self._offset + 1) % _SIZE

    def send(self) -> int:
        value = self._data[self._offset]
        self._offset = (self._offset + 1) % _SIZE
        return value

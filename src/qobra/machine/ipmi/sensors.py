"""The sensors of a controller: which there are, their records say (IPMI 2.0, sections 35 and 43)."""

from __future__ import annotations

from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.ipmi.storage import Fault, word
from qobra.machine.vmstate import VmState, u8, u16

WATCHDOG_NUMBER, WATCHDOG_TYPE = 0, 0x23
_COMPACT, _FULL = 0x02, 0x01
_SENSOR_SPECIFIC = 0x6F
_EVENTS, _SCANNING = 0x80, 0x40
_ENABLE_SELECTED, _DISABLE_SELECTED = 1, 2

WATCHDOG_RECORD = bytes.fromhex("000051022320000023016300236f0f01" + "00" * 15 + "c8") + b"Watchdog"
"""A compact record: the controller's own watchdog, with the states that may assert."""


class Sensor:
    """One sensor: ``enabled`` says whether it is looked at and tells of events, ``states`` is what is so now."""

    vmstate = VmState(u8("enabled", "kind", "code"), u16("assertions", "deassertions", "states", "seen"))

    def __init__(self, kind: int, code: int, assertions: int, deassertions: int) -> None:
        self.enabled = _EVENTS | _SCANNING
        self.kind, self.code = kind, code
        self.assertions, self.deassertions = assertions, deassertions
        self.states = self.seen = 0

    def assert_state(self, offset: int) -> bool:
        """State ``offset`` is so now; whether somebody is to be told."""
        if not self.enabled & _SCANNING:
            return False
        self.states |= 1 << offset
        if not self.enabled & _EVENTS or not self.assertions >> offset & 1:
            return False
        self.seen |= 1 << offset
        return True


class Sensors:
    """The sensors by their numbers, and the commands about them."""

    def __init__(self, records: list[bytes]) -> None:
        self.by_number: dict[int, Sensor] = {}
        for record in records:
            if len(record) >= 20 and record[3] in (_FULL, _COMPACT):
                sensor = Sensor(record[12], record[13], word(record, 14), word(record, 16))
                self.by_number[record[7]] = sensor

    def _find(self, data: bytes) -> Sensor:
        sensor = self.by_number.get(data[0])
        if sensor is None:
            raise Fault(ipmi.NOT_PRESENT)
        return sensor

    def reading(self, data: bytes) -> bytes:
        """Get Sensor Reading."""
        sensor = self._find(data)
        return bytes((0, sensor.enabled)) + sensor.states.to_bytes(2, "little")

    def event_status(self, data: bytes) -> bytes:
        """Get Sensor Event Status."""
        sensor = self._find(data)
        return bytes((0, sensor.enabled)) + sensor.seen.to_bytes(2, "little") + bytes(2)

    def event_enable(self, data: bytes) -> bytes:
        """Get Sensor Event Enable."""
        sensor = self._find(data)
        masks = sensor.assertions.to_bytes(2, "little") + sensor.deassertions.to_bytes(2, "little")
        return bytes((sensor.enabled,)) + masks

    def set_event_enable(self, data: bytes) -> bytes:
        """Set Sensor Event Enable."""
        sensor = self._find(data)
        operation = data[1] >> 4 & 3
        if operation > _DISABLE_SELECTED:
            raise Fault(ipmi.INVALID_DATA)
        sensor.enabled = data[1] & (_EVENTS | _SCANNING)
        masks = data[2:6].ljust(4, b"\0")
        if operation == _ENABLE_SELECTED:
            sensor.assertions |= word(masks, 0)
            sensor.deassertions |= word(masks, 2)
        elif operation == _DISABLE_SELECTED:
            sensor.assertions &= ~word(masks, 0)
            sensor.deassertions &= ~word(masks, 2)
        return b""

    def rearm(self, data: bytes) -> bytes:
        """Re-arm Sensor Events."""
        self._find(data).states = 0
        return b""

    def type(self, data: bytes) -> bytes:
        """Get Sensor Type."""
        sensor = self._find(data)
        return bytes((sensor.kind, sensor.code))

    def set_type(self, data: bytes) -> bytes:
        """Set Sensor Type."""
        sensor = self._find(data)
        sensor.kind, sensor.code = data[1], data[2] & 0x7F
        return b""

"""The commands of the simulated controller: what it knows, by network function and command (IPMI 2.0, appendix G)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.ipmi.sensors import WATCHDOG_NUMBER, Sensors
from qobra.machine.ipmi.storage import EventLog, Fault, Inventory, Records
from qobra.machine.ipmi.watchdog import Watchdog
from qobra.machine.vmstate import Field, Maybe, Raw, VmState, part, parts, raw, u8

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

CHASSIS, SENSOR, APP, STORAGE = 0x00, 0x04, 0x06, 0x0A
_MESSAGE_INTERRUPT, _BUFFER_INTERRUPT, _BUFFER_ENABLE, _LOG_ENABLE = 0x01, 0x02, 0x04, 0x08
_MESSAGE_QUEUED, _BUFFER_FULL, _WATCHDOG_WARNS = 0x01, 0x02, 0x08
_EMPTY, _NOT_ACKNOWLEDGED = 0x80, 0x83
_POWERED, _POLICY_UNKNOWN = 0x01, 0x60
_EVENT, _EVENT_REVISION, _SPECIFIC = 0x02, 0x04, 0xC0
_CAUSE_UNKNOWN, _CAUSE_COMMAND, _CAUSE_WATCHDOG = 0, 1, 4

Handler = Callable[[bytes], bytes]


class Simulated:
    """The controller's mind. ``identity`` answers Get Device ID; ``address`` is its own on the bus of controllers."""

    vmstate = VmState(
        part("log", "records", "inventory", "watchdog"),
        parts("_sensors"),
        u8("_enables", "_flags", "_cause"),
        raw("_power_state"),
        Field("_event", Maybe(Raw(16))),
    )

    def __init__(
        self,
        machine: Machine,
        clock: Any,
        owner: ipmi.Bmc,
        *,
        identity: bytes,
        guid: bytes | None,
        records: list[bytes],
        inventory: Inventory,
    ) -> None:
        def now() -> int:
            return machine.clock.time_ns() // 10**9

        self._machine = machine
        self._owner = owner
        self._identity = identity
        self._guid = guid
        self.log = EventLog(now)
        self.records = Records(now, records)
        self.inventory = inventory
        self.watchdog = Watchdog(machine, clock, self._watchdog_event, self._watchdog_warns)
        self._all_sensors = Sensors(records)
        self._sensors = self._all_sensors.by_number
        self._enables = _LOG_ENABLE
        self._flags = 0
        self._cause = _CAUSE_UNKNOWN
        self._power_state = bytes(2)
        self._event: bytes | None = None
        self._table = self._commands()

    def _commands(self) -> dict[tuple[int, int], tuple[int, Handler]]:
        """How many bytes of data each command needs at least, and what carries it out."""
        log, records, sensors, watchdog = self.log, self.records, self._all_sensors, self.watchdog
        table: dict[tuple[int, int], tuple[int, Handler]] = {
            (CHASSIS, 0x00): (0, lambda _data: bytes((0, *[self._owner.slave_addr] * 4))),
            (CHASSIS, 0x01): (0, lambda _data: bytes((_POLICY_UNKNOWN | _POWERED, 0, 0, 0))),
            (CHASSIS, 0x02): (1, self._control),
            (CHASSIS, 0x09): (0, lambda _data: bytes((self._cause, 0))),
            (APP, 0x01): (0, lambda _data: self._identity),
            (APP, 0x02): (0, self._cold_reset),
            (APP, 0x03): (0, lambda _data: b""),  # a warm reset leaves everything as it is
            (APP, 0x06): (2, self._set_power_state),
            (APP, 0x07): (0, lambda _data: self._power_state),
            (APP, 0x22): (0, watchdog.start),
            (APP, 0x24): (6, watchdog.set),
            (APP, 0x25): (0, watchdog.get),
            (APP, 0x2E): (1, self._set_enables),
            (APP, 0x2F): (0, lambda _data: bytes((self._enables,))),
            (APP, 0x30): (1, self._clear_flags),
            (APP, 0x31): (0, lambda _data: bytes((self._flags,))),
            (APP, 0x33): (0, self._no_message),
            (APP, 0x34): (1, self._send_message),
            (APP, 0x35): (0, self._take_event),
            (SENSOR, 0x28): (2, sensors.set_event_enable),
            (SENSOR, 0x29): (1, sensors.event_enable),
            (SENSOR, 0x2A): (2, sensors.rearm),
            (SENSOR, 0x2B): (1, sensors.event_status),
            (SENSOR, 0x2D): (1, sensors.reading),
            (SENSOR, 0x2E): (3, sensors.set_type),
            (SENSOR, 0x2F): (1, sensors.type),
            (STORAGE, 0x10): (1, self.inventory.info),
            (STORAGE, 0x11): (4, self.inventory.read),
            (STORAGE, 0x12): (3, self.inventory.write),
            (STORAGE, 0x20): (0, records.info),
            (STORAGE, 0x22): (0, records.reserve),
            (STORAGE, 0x23): (6, records.get),
            (STORAGE, 0x24): (0, records.add),
            (STORAGE, 0x27): (6, records.clear),
            (STORAGE, 0x40): (0, log.info),
            (STORAGE, 0x42): (0, log.reserve),
            (STORAGE, 0x43): (6, log.get),
            (STORAGE, 0x44): (16, log.add),
            (STORAGE, 0x47): (6, log.clear),
            (STORAGE, 0x48): (0, log.time),
            (STORAGE, 0x49): (4, log.set_time),
        }
        guid = self._guid
        if guid is not None:
            table[APP, 0x08] = (0, lambda _data: guid)
        return table

    def close(self) -> None:
        """Stop for good."""
        self.watchdog.close()

    def answer(self, request: bytes) -> bytes:
        """The response to a request."""
        if len(request) < 2:
            return ipmi.failure(request, ipmi.WRONG_LENGTH)
        if request[0] & 3:
            return ipmi.failure(request, ipmi.INVALID_LUN)
        least, handler = self._table.get((request[0] >> 2, request[1]), (0, None))
        if handler is None:
            return ipmi.failure(request, ipmi.INVALID_COMMAND)
        data = request[2:]
        if len(data) < least:
            return ipmi.failure(request, ipmi.WRONG_LENGTH)
        try:
            return ipmi.failure(request, ipmi.OK) + handler(data)
        except Fault as fault:
            return ipmi.failure(request, fault.code)

    # -- chassis

    def _control(self, data: bytes) -> bytes:
        operation = data[0] & 0x0F
        if operation > 5 or data[0] > 0x0F:
            raise Fault(ipmi.INVALID_DATA)
        if operation == 0:
            ipmi.power_off(self._machine)
        elif operation == 3:
            self._cause = _CAUSE_COMMAND
            ipmi.reset_host(self._machine)
        elif operation == 5:
            ipmi.shut_down_gracefully(self._machine)
        else:
            raise Fault(ipmi.NOT_NOW)  # it is on, it cannot be cycled, there is no diagnostic interrupt
        return b""

    # -- the controller itself

    def _cold_reset(self, _data: bytes) -> bytes:
        self.watchdog.stop()
        self._set_enables(bytes((_LOG_ENABLE,)))
        self._clear_flags(b"\xff")
        self._event = None
        return b""

    def _set_power_state(self, data: bytes) -> bytes:
        self._power_state = bytes(data[:2])
        return b""

    def _set_enables(self, data: bytes) -> bytes:
        self._enables = data[0]
        self._owner.enable_interrupts(bool(data[0] & (_MESSAGE_INTERRUPT | _BUFFER_INTERRUPT)))
        return b""

    # -- messages and events

    def _attention(self) -> None:
        wanted = bool(self._flags & (_MESSAGE_QUEUED | _BUFFER_FULL | _WATCHDOG_WARNS))
        self._owner.set_attention(wanted, bool(self._enables & (_MESSAGE_INTERRUPT | _BUFFER_INTERRUPT)))

    def _clear_flags(self, data: bytes) -> bytes:
        if data[0] & _BUFFER_FULL:
            self._event = None
        self._flags &= ~data[0]
        self._attention()
        return b""

    def _no_message(self, _data: bytes) -> bytes:
        raise Fault(_EMPTY)  # nobody else is there to send one

    def _send_message(self, data: bytes) -> bytes:
        if data[0]:
            raise Fault(ipmi.INVALID_DATA)  # there is no other channel
        if len(data) < 8:
            raise Fault(ipmi.WRONG_LENGTH)
        raise Fault(_NOT_ACKNOWLEDGED)  # nor is anybody else on this one

    def _take_event(self, _data: bytes) -> bytes:
        event = self._event
        if event is None:
            raise Fault(_EMPTY)
        self._event = None
        self._flags &= ~_BUFFER_FULL
        self._attention()
        return event

    def _watchdog_warns(self) -> None:
        self._flags |= _WATCHDOG_WARNS
        self._attention()

    def _watchdog_event(self, offset: int, detail: int) -> None:
        sensor = self._sensors.get(WATCHDOG_NUMBER)
        if sensor is None or not sensor.assert_state(offset):
            return
        origin = bytes((self._owner.slave_addr, 0, _EVENT_REVISION))
        what = bytes((sensor.kind, WATCHDOG_NUMBER, sensor.code, _SPECIFIC | offset, detail, 0xFF))
        event = bytes((0, 0, _EVENT, 0, 0, 0, 0)) + origin + what
        if self._enables & _BUFFER_ENABLE and self._event is None:
            self._event = event
            self._flags |= _BUFFER_FULL
            self._attention()
        if self._enables & _LOG_ENABLE:
            try:
                self.log.add(event)
            except Fault:
                pass  # which the log itself tells of

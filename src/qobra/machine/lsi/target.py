"""The other end of the bus: a target that goes from phase to phase as SPI-3 has it, without ever disconnecting."""

from __future__ import annotations

from collections.abc import Callable

from qobra.machine.scsi import transfer
from qobra.machine.scsi.bus import Result, ScsiBus, ScsiDevice
from qobra.machine.scsi.requests import MAX_DATA, ScsiRequests
from qobra.machine.scsi.sense import GOOD
from qobra.machine.vmstate import Field, Maybe, Number, VmState, flag, raw, u8

DATA_OUT, DATA_IN, COMMAND, STATUS, MESSAGE_OUT, MESSAGE_IN = 0, 1, 2, 3, 6, 7
_IDENTIFY, _EXTENDED, _COMPLETE, _NO_OPERATION = 0x80, 0x01, 0x00, 0x08
_TAGS = (0x20, 0x21, 0x22)
_ENDS = (0x06, 0x0C, 0x0D)
_BUS_DEVICE_RESET = 0x0C
_NO_LUN = 0x07
_CDB_LENGTHS = (6, 10, 10, 0, 16, 12, 0, 0)


class Target:
    """The target that the adapter is connected with, if any: ``id``. ``phase`` is None while it is busy.

    ``ready()`` is called when it is busy no longer.
    """

    vmstate = VmState(
        Field("id", Maybe(Number(1))),
        Field("phase", Maybe(Number(1, maximum=7))),
        u8("_lun", "_status", maximum=255),
        raw("_cdb", maximum=16),
        raw("_out", "_in", maximum=MAX_DATA),
        Field("_wanted", Number(8)),
        flag("_leaving"),
    )

    def __init__(self, bus: ScsiBus, ready: Callable[[], None]) -> None:
        self._bus = bus
        self._ready = ready
        self.requests = ScsiRequests(bus)
        self.id: int | None = None
        self.leave()

    def leave(self) -> None:
        """The bus is free."""
        self.requests.cancel()
        self.id = None
        self.phase: int | None = DATA_OUT
        self._lun = self._status = self._wanted = 0
        self._cdb = b""
        self._out, self._in = bytearray(), bytearray()  # which grow and shrink by as little as the script likes
        self._leaving = False

    def select(self, id: int, *, attention: bool) -> bool:
        """Whether there is such a target, which then is connected."""
        self.leave()
        if not self._bus.has_target(id):
            return False
        self.id, self.phase = id, MESSAGE_OUT if attention else COMMAND
        return True

    @property
    def gone(self) -> bool:
        """Whether it has nothing more to say, and lets the bus go."""
        return self.id is None or self._leaving

    def take(self, data: bytes) -> None:
        """What the adapter sends in the phase that there is."""
        if self.phase == MESSAGE_OUT:
            self._hear(data)
        elif self.phase == COMMAND:
            self._cdb = (self._cdb + data)[:16]
            if len(self._cdb) >= (_CDB_LENGTHS[self._cdb[0] >> 5] or len(self._cdb) if self._cdb else 1):
                self._begin()
        elif self.phase == DATA_OUT:
            self._out += data[: self._wanted - len(self._out)]
            if len(self._out) >= self._wanted:
                self._carry_out(bytes(self._out), 0)

    def room(self, count: int) -> int:
        """How many of ``count`` bytes the target would take in this phase."""
        return min(count, self._wanted - len(self._out)) if self.phase == DATA_OUT else count

    def give(self, count: int) -> bytes:
        """At most ``count`` bytes of what the target sends in the phase that there is."""
        data = bytes(self._in[:count])
        del self._in[:count]
        if self._in:
            return data
        if self.phase == DATA_IN:
            self.phase, self._in = STATUS, bytearray((self._status,))
        elif self.phase == STATUS:
            self.phase, self._in = MESSAGE_IN, bytearray((_COMPLETE,))
        else:
            self._leaving = True
        return data

    # -- messages

    def _hear(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            message = data[at]
            at += 1
            if message & _IDENTIFY:
                self._lun = message & _NO_LUN
            elif message == _EXTENDED and at < len(data):
                at += 1 + data[at]  # speed and width are as they are: no answer says so
            elif message in _TAGS:
                at += 1
            elif message in _ENDS:
                if message == _BUS_DEVICE_RESET:
                    self._reset_units()
                self.requests.cancel()
                self._leaving = True
                return
        self.phase = COMMAND

    def _reset_units(self) -> None:
        if self.id is not None:
            for unit in self._bus.units_of(self.id):
                unit.reset()

    # -- the command

    def _begin(self) -> None:
        cdb = self._cdb.ljust(16, b"\0")
        assert self.id is not None
        unit = self._bus.find(0, self.id, self._lun)
        way, length = transfer.expected(cdb, ScsiDevice.logical_size if unit is None else unit.logical_size)
        length = min(length, MAX_DATA)
        if way == transfer.TO_DEVICE and unit is not None:
            self._wanted, self.phase = length, DATA_OUT
        else:
            self._carry_out(b"", length if way == transfer.TO_HOST else 0)

    def _carry_out(self, data: bytes, room: int) -> None:
        assert self.id is not None
        self.phase = None
        answered = False

        def done(result: Result | None) -> None:
            nonlocal answered
            self._end(result or Result())
            if answered:
                self._ready()

        self.requests.begin(self.id, self._lun, self._cdb.ljust(16, b"\0"), data, room, done)
        answered = True

    def _end(self, result: Result) -> None:
        self._status = result.status
        if result.data and result.status == GOOD:
            self.phase, self._in = DATA_IN, bytearray(result.data)
        else:
            self.phase, self._in = STATUS, bytearray((self._status,))

"""``usb-uas``: a SCSI host adapter with a plug (USB Attached SCSI, revision 4, of T10)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.devices import registry
from qobra.machine.scsi import transfer
from qobra.machine.scsi.bus import Result, ScsiDevice
from qobra.machine.scsi.sense import CHECK_CONDITION, INVALID_FIELD, TASK_SET_FULL, Sense
from qobra.machine.usb.device import HIGH, SUPER, Nak, Stall
from qobra.machine.usb.scsi_host import UsbScsiHost
from qobra.machine.vmstate import VmState

if TYPE_CHECKING:
    from qobra.machine.qdev import Device
    from qobra.object.tree import ObjectTree

_COMMAND_PIPE, _STATUS_PIPE, _IN_PIPE, _OUT_PIPE = 1, 2, 3, 4
_STREAMS = 4
"""Each of the pipes but the first has 2 ** this streams at super speed: one for each tag."""
_COMMAND, _SENSE, _RESPONSE, _MANAGEMENT, _READ_READY, _WRITE_READY = 0x01, 0x03, 0x04, 0x05, 0x06, 0x07
_COMMAND_SIZE, _MANAGEMENT_SIZE = 32, 16
_DONE, _INVALID_UNIT, _NOT_SUPPORTED, _WRONG_LUN, _OVERLAPPED = 0x00, 0x02, 0x04, 0x09, 0x0A
_ABORT_TASK, _RESET_UNIT, _RESET_NEXUS = 0x01, 0x08, 0x10
_MAX_TASKS = 32
_MAX_DATA, _MAX_DATA_WAITING = 16 << 20, 64 << 20
"""Bytes of one command, and of all that have not ended."""


def _configuration(name: int, packet: int, *, streams: bool) -> bytes:
    endpoints = b""
    for number, is_in in ((_COMMAND_PIPE, 0), (_STATUS_PIPE, 0x80), (_IN_PIPE, 0x80), (_OUT_PIPE, 0)):
        endpoints += bytes((7, 5, number | is_in, 2, packet & 0xFF, packet >> 8, 0))
        if streams:
            endpoints += bytes((6, 0x30, 15, _STREAMS if number != _COMMAND_PIPE else 0, 0, 0))
        endpoints += bytes((4, 0x24, number, 0))
    interface = bytes((9, 4, 0, 0, 4, 0x08, 0x06, 0x62, 0))
    return bytes((9, 2, 18 + len(endpoints), 0, 1, 1, name, 0xC0, 0)) + interface + endpoints


def _device(version: int, packet: int) -> bytes:
    return bytes((18, 1, 0, version, 0, 0, 0, packet, 0xF4, 0x46, 0x03, 0x00, 0, 0, 1, 2, 3, 1))


class _Task:
    """A command. Its data waits to be sent to the host, or has still to come from it."""

    __slots__ = ("cdb", "data", "is_sending", "length", "lun", "moved", "result", "tag", "way")

    def __init__(self, tag: int, lun: int, cdb: bytes, way: str, length: int) -> None:
        self.tag = tag
        self.lun = lun
        self.cdb = cdb
        self.way = way
        self.length = length
        self.data = bytearray()
        self.moved = 0
        self.is_sending = False
        self.result: Result | None = None


@registry.register("usb-uas")
class UsbUas(UsbScsiHost):
    """The adapter. At super speed every task has its streams; at high speed they take turns with their data."""

    type_name = "usb-uas"
    product = "USB Attached SCSI HBA"
    by_speed = {
        HIGH: (_device(2, 64), _configuration(4, 512, streams=False)),
        SUPER: (_device(3, 9), _configuration(5, 1024, streams=True)),
    }
    speeds = frozenset(by_speed)
    strings = {
        1: "QEMU", 2: "USB Attached SCSI HBA", 4: "High speed config (usb 2.0)", 5: "Super speed config (usb 3.0)"
    }  # fmt: skip
    max_lun = 255

    vmstate = VmState()

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._tasks: dict[int, _Task] = {}
        self._told: deque[tuple[int, bytes]] = deque()
        self._turns: deque[_Task] = deque()
        self._current: _Task | None = None

    def state_blocked(self) -> str | None:
        return "a command is under way" if self._tasks or self._told else None

    def string(self, index: int) -> str | None:
        if index == 3:
            return self.serial_number or self.place("27842")
        return super().string(index)

    def device_reset(self) -> None:
        self.cancel_all()
        self._tasks.clear()
        self._told.clear()
        self._turns.clear()
        self._current = None

    @property
    def _has_streams(self) -> bool:
        return self.speed == SUPER

    def unit_unplugged(self, device: Device) -> None:
        super().unit_unplugged(device)
        if isinstance(device, ScsiDevice):
            self._drop(lambda task: task.lun == device.lun)

    # -- pipes

    def endpoint_out(self, endpoint: int, data: bytes) -> None:
        if endpoint == _COMMAND_PIPE:
            self._take_unit(data)
        elif endpoint == _OUT_PIPE:
            task = self._transferring(transfer.TO_DEVICE)
            task.data += data[: task.length - len(task.data)]
            if len(task.data) >= task.length:
                self._turn_over(task)
                self._execute(task)
        else:
            raise Stall

    def endpoint_in(self, endpoint: int, room: int) -> bytes:
        if endpoint == _STATUS_PIPE:
            for position, (tag, unit) in enumerate(self._told):
                if not self._has_streams or tag == self.stream:
                    del self._told[position]
                    return unit[:room]
            raise Nak
        if endpoint != _IN_PIPE:
            raise Stall
        task = self._transferring(transfer.TO_HOST)
        assert task.result is not None
        part = task.result.data[task.moved : task.moved + room]
        task.moved += len(part)
        if task.moved >= len(task.result.data):
            self._turn_over(task)
            self._end(task)
        return part

    def _transferring(self, way: str) -> _Task:
        # The task whose data is next on a pipe. Raises Nak.
        task = self._tasks.get(self.stream) if self._has_streams else self._current
        if task is None or task.way != way or not task.is_sending:
            raise Nak
        return task

    def _take_unit(self, data: bytes) -> None:
        kind, tag = data[0] if data else 0, int.from_bytes(data[2:4], "big")
        lun = _lun(data[8:16])
        if kind == _COMMAND and len(data) >= _COMMAND_SIZE:
            self._take_command(tag, lun, data[16:32])
        elif kind == _MANAGEMENT and len(data) >= _MANAGEMENT_SIZE:
            self._manage(tag, data[4], int.from_bytes(data[6:8], "big"), lun)
        else:
            self._respond(tag, _INVALID_UNIT)

    def _take_command(self, tag: int, lun: int | None, cdb: bytes) -> None:
        if self._has_streams and not 1 <= tag <= 1 << _STREAMS:
            self._respond(tag, _INVALID_UNIT)
        elif tag in self._tasks:
            self._respond(tag, _OVERLAPPED)
        elif lun is None or self.unit(lun) is None:
            self._respond(tag, _WRONG_LUN)
        else:
            way, length = self.expected(self.unit(lun), cdb)
            task = _Task(tag, lun, cdb, way, length)
            if length > _MAX_DATA:
                task.result = Result(CHECK_CONDITION, sense=Sense(*INVALID_FIELD).data())
            elif self._is_full(length):
                task.result = Result(TASK_SET_FULL)
            if task.result is not None:
                self._end(task)
                return
            self._tasks[tag] = task
            if way == transfer.TO_DEVICE:
                self._offer(task)
            else:
                self._execute(task)

    # -- tasks

    def _is_full(self, length: int) -> bool:
        # Commands that were aborted may still be carried out.
        waiting = sum(task.length for task in self._tasks.values())
        return max(len(self._tasks), self.pending) >= _MAX_TASKS or waiting + length > _MAX_DATA_WAITING

    def _offer(self, task: _Task) -> None:
        # Its data is to be transferred, once it is its turn.
        if self._has_streams:
            task.is_sending = True
            self._ready(task)
        else:
            self._turns.append(task)
            self._next_turn()

    def _next_turn(self) -> None:
        if self._current is None and self._turns:
            task = self._current = self._turns.popleft()
            task.is_sending = True
            kind = _READ_READY if task.way == transfer.TO_HOST else _WRITE_READY
            self._tell(task.tag, bytes((kind, 0)) + task.tag.to_bytes(2, "big"))
            self._ready(task)

    def _ready(self, task: _Task) -> None:
        self.endpoint_ready(0x80 | _IN_PIPE if task.way == transfer.TO_HOST else _OUT_PIPE, wakes=False)

    def _turn_over(self, task: _Task) -> None:
        task.is_sending = False
        if self._current is task:
            self._current = None
            self._next_turn()

    def _execute(self, task: _Task) -> None:
        is_read = task.way == transfer.TO_HOST

        def done(result: Result) -> None:
            if self._tasks.get(task.tag) is not task:
                return  # it was aborted
            task.result = result
            if is_read and result.data:
                self._offer(task)
            else:
                self._end(task)

        room = task.length if is_read else 0
        self.execute(task.lun, task.cdb, bytes(task.data), room, done, is_read=is_read)

    def _end(self, task: _Task) -> None:
        if self._tasks.get(task.tag) is task:
            del self._tasks[task.tag]
        result = task.result or Result()
        head = bytes((_SENSE, 0)) + task.tag.to_bytes(2, "big") + bytes((0, 0, result.status)) + bytes(7)
        self._tell(task.tag, head + len(result.sense).to_bytes(2, "big") + result.sense)

    def _respond(self, tag: int, code: int) -> None:
        self._tell(tag, bytes((_RESPONSE, 0)) + tag.to_bytes(2, "big") + bytes((0, 0, 0, code)))

    def _tell(self, tag: int, unit: bytes) -> None:
        if len(self._told) >= 2 * _MAX_TASKS:
            self._told.popleft()  # nobody reads them
        self._told.append((tag, unit))
        self.endpoint_ready(0x80 | _STATUS_PIPE, wakes=False)

    # -- task management

    def _manage(self, tag: int, function: int, task_tag: int, lun: int | None) -> None:
        if function == _ABORT_TASK:
            self._drop(lambda task: task.tag == task_tag)
        elif function == _RESET_UNIT:
            unit = self.unit(lun) if lun is not None else None
            if unit is None:
                self._respond(tag, _WRONG_LUN)
                return
            self._drop(lambda task: task.lun == lun)
            unit.reset()
        elif function == _RESET_NEXUS:
            self._drop(lambda _task: True)
        else:
            self._respond(tag, _NOT_SUPPORTED)
            return
        self._respond(tag, _DONE)

    def _drop(self, chosen: Callable[[_Task], bool]) -> None:
        for task in [task for task in self._tasks.values() if chosen(task)]:
            del self._tasks[task.tag]
            if task in self._turns:
                self._turns.remove(task)
            self._turn_over(task)


def _lun(field: bytes) -> int | None:
    """The number of a unit in the first level of an address (SAM-4, 4.6); None for what has more levels."""
    if len(field) < 8 or any(field[2:]) or field[0] >= 0x80:
        return None
    return int.from_bytes(field[:2], "big") & 0x3FFF

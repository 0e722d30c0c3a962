"""The commands that a host adapter has under way: each unit carries its own out in a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qobra.errors import QobraError
from qobra.machine.block_requests import BlockRequests
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.scsi import failure, transfer
from qobra.machine.scsi.bus import Result, ScsiBus, ScsiDevice
from qobra.machine.scsi.sense import CHECK_CONDITION, IO_ERROR, Sense

MAX_DATA = 32 << 20
"""Bytes that one command moves, whatever the guest asks for."""


class ScsiRequests:
    """Commands to the units of ``bus``. All methods are called inside the strand."""

    def __init__(self, bus: ScsiBus) -> None:
        self._bus = bus
        self._of: dict[ScsiDevice, BlockRequests] = {}

    @property
    def working(self) -> bool:
        """Whether commands are under way that end by themselves."""
        return any(requests.working for requests in self._of.values())

    @property
    def pending(self) -> int:
        """How many commands have not ended, with those that wait for the machine to go on."""
        return sum(requests.pending for requests in self._of.values())

    def begin(
        self, target: int, lun: int, cdb: bytes, data: bytes, room: int, done: Callable[[Result | None], None]
    ) -> None:
        """Have a unit carry out ``cdb``; ``done`` is told how it ended, or None where there is no such target."""
        unit = self._bus.find(0, target, lun)
        if not isinstance(unit, BlockFrontEnd) or unit.backend is None:
            try:
                done(self._bus.execute(target, lun, cdb, data, room))
            except (OSError, QobraError):
                done(Result(CHECK_CONDITION, sense=Sense(*IO_ERROR).data()))
            return

        def ended(result: Any, error: Exception | None) -> None:
            if error is not None:
                result = failure.reported(error)
            done(result or failure.ignored(cdb, unit.logical_size, room))

        way, _length = transfer.expected(cdb, unit.logical_size)
        requests = self._of.get(unit)
        if requests is None:
            requests = self._of[unit] = BlockRequests(unit)
        requests.submit(lambda _backend: unit.execute(cdb, data, room), ended, is_read=way != transfer.TO_DEVICE)

    def cancel(self) -> None:
        """Forget what is under way."""
        for requests in self._of.values():
            requests.cancel()

    def forget(self, unit: ScsiDevice) -> None:
        """A unit has gone."""
        requests = self._of.pop(unit, None)
        if requests is not None:
            requests.close()

    def close(self) -> None:
        """Forget everything."""
        for unit in list(self._of):
            self.forget(unit)

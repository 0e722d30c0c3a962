"""What a stream says of a machine, taken into one that was made alike."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.migration import machine_state
from qobra.migration.configuration import check_configuration
from qobra.migration.ram import RamBlock, ram_blocks, take_blocks, take_pages
from qobra.migration.stream import BLOCKS, CONFIGURATION, DEVICE, MACHINE, MEMORY

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


_MAX_DEVICES = 256 << 20
"""Bytes of the state of all devices, which is kept until it is complete."""
_SECTION = 64
"""Bytes that the shortest section counts as, whatever it has."""


class StateReader:
    """Takes the records of one stream into ``machine``. Memory at once; devices and clock with :meth:`load_devices`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._blocks: list[RamBlock] | None = None
        self._configured = False
        self._head: bytes | None = None
        self._sections: list[bytes] = []
        self._room = _MAX_DEVICES

    @property
    def blocks(self) -> list[RamBlock]:
        """The blocks of memory in the stream's order, once they are known."""
        return self._blocks or []

    def take(self, kind: int, payload: bytes) -> None:
        """One record. Raises QobraError where it cannot be, or not here."""
        if kind == CONFIGURATION:
            check_configuration(self._machine, payload)
            self._configured = True
        elif not self._configured:
            raise QobraError("Configuration section missing", errno=errno.EINVAL)
        elif kind == BLOCKS:
            board = self._machine.board
            self._blocks = take_blocks(payload, ram_blocks(board) if board is not None else [])
        elif kind in MEMORY:
            take_pages(kind, payload, self._blocks or [])
        elif kind == MACHINE and self._head is None:
            self._head = payload
        elif kind == DEVICE:
            self._room -= max(len(payload), _SECTION)
            if self._room < 0:
                raise QobraError("The devices of the stream have too much state", errno=errno.EINVAL)
            self._sections.append(payload)
        else:
            raise QobraError(f"Unexpected savevm section type {kind}", errno=errno.EINVAL)

    def load_devices(self) -> str:
        """Everything is there: load the devices, and return the run state to go on with. In the strand."""
        if self._head is None or self._blocks is None:
            raise QobraError("The migration stream has no machine in it", errno=errno.EINVAL)
        return machine_state.load_devices(self._machine, self._head, self._sections)

"""The state of the devices alone in a file, for whoever moves memory and disks by other means (Xen's tools).

The stream is a migration's in which no memory follows the list of its blocks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

from qobra.errors import QobraError, strerror
from qobra.migration import machine_state
from qobra.migration.configuration import put_configuration
from qobra.migration.ram import put_blocks, ram_blocks
from qobra.migration.snapshots import standing_still
from qobra.migration.state_reader import StateReader
from qobra.migration.stream import BLOCKS, CONFIGURATION, END, StreamReader, StreamWriter

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


def save(machine: Machine, path: str, *, live: bool) -> None:
    """Write the devices' state. In the strand. Raises QobraError.

    The disks of a machine that stands still are let go of if this is part of a ``live`` migration, for its destination.
    """
    was_running = machine.run_state.running
    with standing_still(machine, "save-vm") as before, _opened(path, "wb") as stream:
        try:
            _write(machine, stream, before)
        except OSError as error:
            raise QobraError.from_os(f"Could not write '{path}'", error)
    if live and not was_running:
        machine.migration.let_go()


def load(machine: Machine, path: str) -> None:
    """Take the devices' state from a file, into a machine that stands still. In the strand. Raises QobraError."""
    if machine.run_state.running:
        raise QobraError("Cannot update device state while vm is running")
    state = StateReader(machine)
    with _opened(path, "rb") as stream:
        reader = StreamReader(stream)
        reader.begin()
        while (record := reader.record())[0] != END:
            state.take(*record)
    with standing_still(machine, "restore-vm"):
        state.load_devices()


def _opened(path: str, mode: str) -> Any:
    flags = os.O_RDONLY if mode == "rb" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        # A pipe that nobody has the other end of is not waited for: that would hold up all monitors.
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o660)
        os.set_blocking(fd, True)
        return open(fd, mode)
    except OSError as error:
        raise QobraError(f"Unable to open {path}: {strerror(error)}", errno=error.errno)


def _write(machine: Machine, stream: BinaryIO, run_state: str) -> None:
    assert machine.board is not None
    blocks = bytearray()
    put_blocks(blocks, ram_blocks(machine.board))
    out = StreamWriter(stream)
    out.begin()
    out.record(CONFIGURATION, put_configuration(machine, with_uuid=False))
    out.record(BLOCKS, blocks)
    machine_state.write_devices(out, machine_state.save_devices(machine, run_state))
    out.record(END)

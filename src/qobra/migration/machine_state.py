"""The state of the devices, the clock and the run state in a stream, and back into a machine that was made alike."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.run_state import TRANSITIONS
from qobra.machine.vmstate import StateSource, declared, put_object, put_text, take_object
from qobra.migration.stream import DEVICE, MACHINE, StreamWriter
from qobra.report import visible

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.machine import Machine

_BOARD = "machine"


def state_owners(board: Board) -> Iterator[tuple[str, Any]]:
    """Everything of a machine that has state, with the name that a stream has for it."""
    if any(True for _each in declared(type(board))):
        yield _BOARD, board
    for device in find_devices(board, "device"):
        yield f"{device.state_id()}/{device.type_name}", device


def blockers(board: Board) -> list[str]:
    """Why the machine stays where it is, as long as it has the devices that it has."""
    found = (device.migration_blocker() for device in find_devices(board, "device"))
    return [text for text in found if text is not None]


def check_declared(board: Board) -> None:
    """Raise QobraError if a device's state cannot be saved, ever."""
    for text in blockers(board):
        raise QobraError(text, errno=errno.EBUSY)
    for name, device in state_owners(board):
        if device is not board and not device.migrates:
            raise QobraError(f"State blocked by non-migratable device '{name}'", errno=errno.EINVAL)


def save_devices(machine: Machine, run_state: str) -> list[tuple[int, bytearray]]:
    """Records of the clock, ``run_state`` (what the other side goes on with) and each device. In the strand."""
    board = machine.board
    head = bytearray()
    put_text(head, run_state)
    head += (board.clock.now_ns() if board is not None else 0).to_bytes(8, "little")
    records = [(MACHINE, head)]
    if board is None:
        return records
    check_declared(board)
    for name, device in state_owners(board):
        blocked = device.state_blocked() if device is not board else None
        if blocked is not None:
            raise QobraError(f"State blocked by device '{name}': {blocked}", errno=errno.EBUSY)
        out = bytearray()
        put_text(out, name)
        put_object(out, device)
        records.append((DEVICE, out))
    return records


def write_devices(out: StreamWriter, records: list[tuple[int, bytearray]]) -> None:
    """Write what :func:`save_devices` returned."""
    for kind, payload in records:
        out.record(kind, payload)


def load_devices(machine: Machine, head: bytes, sections: list[bytes]) -> str:
    """Load the clock and every device; returns the run state to go on with. In the strand. Raises QobraError."""
    source = StateSource(head)
    run_state, now_ns = source.text(), source.number(8)
    if run_state not in TRANSITIONS:
        raise QobraError(f"Received invalid state {visible(run_state)}", errno=errno.EINVAL)
    board = machine.board
    if board is None:
        return run_state
    check_declared(board)
    board.clock.restore(now_ns)
    owners = dict(state_owners(board))
    loaded: list[Any] = []
    for section in sections:
        source = StateSource(section)
        name = source.text()
        owner = owners.pop(name, None)
        if owner is None:
            raise QobraError(
                f"Unknown savevm section or instance '{visible(name)}' 0. Make sure that your current VM setup matches "
                "your saved VM setup, including any hotplugged devices",
                errno=errno.EINVAL,
            )
        try:
            take_object(source, owner)
            if source.left:
                raise QobraError("there is more of it than there should be")
        except QobraError as error:
            raise _in_device(name, error)
        loaded += source.loaded
    if owners:
        raise QobraError(f"Missing section of device '{next(iter(owners))}' in the stream", errno=errno.EINVAL)
    for owner in loaded:
        follow = getattr(owner, "state_loaded", None)
        if follow is not None:
            try:
                follow()
            except QobraError as error:
                raise _in_device(type(owner).__name__, error)
    return run_state


def _in_device(name: str, error: QobraError) -> QobraError:
    return QobraError(
        f"error while loading state for instance 0x0 of device '{name}': {error}", errno=error.errno or errno.EINVAL
    )

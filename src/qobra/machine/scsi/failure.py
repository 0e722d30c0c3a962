"""How a command ends where the storage behind its unit failed."""

from __future__ import annotations

import errno

from qobra.errors import errno_of
from qobra.machine.scsi import transfer
from qobra.machine.scsi.bus import Result
from qobra.machine.scsi.sense import (
    CHECK_CONDITION,
    INVALID_FIELD,
    IO_ERROR,
    NO_MEDIUM,
    RESERVATION_CONFLICT,
    SPACE_ALLOCATION_FAILED,
    TARGET_FAILURE,
    TASK_SET_FULL,
    UNRECOVERED_READ,
    Sense,
)

_STATUS = {errno.EDOM: TASK_SET_FULL, errno.EBADE: RESERVATION_CONFLICT}
_SENSE = {
    errno.EINVAL: INVALID_FIELD,
    errno.ENODATA: UNRECOVERED_READ,
    errno.ENOMEDIUM: NO_MEDIUM,
    errno.ENOMEM: TARGET_FAILURE,
    errno.ENOSPC: SPACE_ALLOCATION_FAILED,
    errno.EREMOTEIO: TARGET_FAILURE,
}


def reported(error: BaseException) -> Result:
    """The guest is told of ``error``, as QEMU tells it: Linux has numbers of its own for some of a target's answers."""
    status = _STATUS.get(errno_of(error))
    return Result(CHECK_CONDITION, sense=sense_of(error).data()) if status is None else Result(status)


def sense_of(error: BaseException) -> Sense:
    """The same for a guest that is told of no more than that a command failed, and asks why then."""
    return Sense(*_SENSE.get(errno_of(error), IO_ERROR))


def ignored(cdb: bytes, block: int, room: int) -> Result:
    """The guest is told of nothing; what it wanted to read has the length that it expects, up to ``room`` bytes."""
    way, length = transfer.expected(cdb, block)
    return Result(data=bytes(min(length, room)) if way == transfer.TO_HOST else b"")

"""The first record of a stream: what machine it is of."""

from __future__ import annotations

import errno
import uuid
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.vmstate import StateSource, put_text
from qobra.report import visible

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


def put_configuration(machine: Machine, *, with_uuid: bool) -> bytearray:
    """The record's payload."""
    out = bytearray()
    put_text(out, machine.board.machine_name if machine.board is not None else "")
    if with_uuid:
        out += (machine.uuid or uuid.UUID(int=0)).bytes
    return out


def put_name(name: str) -> bytearray:
    """A record's payload that is a name."""
    out = bytearray()
    put_text(out, name)
    return out


def check_configuration(machine: Machine, payload: bytes) -> None:
    """Raise QobraError unless the stream is of a machine like this one."""
    source = StateSource(payload)
    received = source.text()
    local = machine.board.machine_name if machine.board is not None else ""
    if received != local:
        raise QobraError(f"Machine type received is '{visible(received)}' and local is '{local}'", errno=errno.EINVAL)
    if source.left:
        theirs, ours = uuid.UUID(bytes=source.take(16)), machine.uuid or uuid.UUID(int=0)
        if theirs != ours:
            raise QobraError(f"UUID received is {theirs} and local is {ours}", errno=errno.EINVAL)

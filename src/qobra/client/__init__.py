"""A typed client for QMP servers: Qobra, or any QEMU.

``Client`` is for asyncio programs, :class:`qobra.client.sync.Client` for the others. Commands are methods, events
are iterators, jobs can be waited for, errors are exceptions that keep what was sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.client.errors import (
    ClientError,
    CommandError,
    CommandNotFound,
    ConnectError,
    ConnectionLost,
    DeviceNotActive,
    DeviceNotFound,
    JobCancelled,
    JobError,
    JobFailed,
    JobNotFound,
    KvmMissingCap,
    ProtocolError,
)
from qobra.client.events import Event
from qobra.client.jobs import JobState, Progress

if TYPE_CHECKING:
    from qobra.client.aio import Client as Client
    from qobra.client.aio_events import EventStream as EventStream
    from qobra.client.aio_jobs import Job as Job

__all__ = [
    "Client",
    "ClientError",
    "CommandError",
    "CommandNotFound",
    "ConnectError",
    "ConnectionLost",
    "DeviceNotActive",
    "DeviceNotFound",
    "Event",
    "EventStream",
    "Job",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobNotFound",
    "JobState",
    "KvmMissingCap",
    "Progress",
    "ProtocolError",
]

# asyncio costs more to import than all the rest, and users of the blocking client do without it.
_ASYNCHRONOUS = {"Client": "aio", "EventStream": "aio_events", "Job": "aio_jobs"}


def __getattr__(name: str) -> Any:
    if name in _ASYNCHRONOUS:
        from importlib import import_module

        return getattr(import_module(f"qobra.client.{_ASYNCHRONOUS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

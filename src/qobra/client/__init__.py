"""A typed client for QMP servers: Qobra, or any QEMU.

``Client`` is for asyncio programs, :class:`qobra.client.sync.Client` for the others. Commands are methods, events
are iterators, jobs can be waited for, errors are exceptions that keep what was sent.
"""

from __future__ import annotations

from qobra.client.aio import Client
from qobra.client.aio_events import EventStream
from qobra.client.aio_jobs import Job
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

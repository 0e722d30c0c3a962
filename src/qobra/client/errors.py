"""What can go wrong between a QMP client and its server.

::

    QobraError
    └── ClientError             whatever this package raises
        ├── ConnectError        no connection, no greeting, or a capability refused
        ├── ConnectionLost      the connection ended with a command unanswered
        ├── ProtocolError       the server sent what is not QMP
        ├── CommandError        the server answered with an error
        │   ├── CommandNotFound     it does not have the command (or not in this state)
        │   ├── DeviceNotActive
        │   ├── DeviceNotFound
        │   └── KvmMissingCap
        └── JobError            a job did not do its work
            ├── JobFailed           it ended with an error
            ├── JobCancelled        it was cancelled
            └── JobNotFound         the server knows no such job

A command that is not answered in time raises the built-in TimeoutError.
"""

from __future__ import annotations

from typing import Any

from qobra.errors import COMMAND_NOT_FOUND, DEVICE_NOT_ACTIVE, DEVICE_NOT_FOUND, KVM_MISSING_CAP, QobraError


class ClientError(QobraError):
    """The base of what this package raises."""


class ConnectError(ClientError):
    """The server could not be reached, did not greet, or refused the negotiation."""


class ConnectionLost(ClientError):
    """The connection ended before the server had answered ``command`` (None: while no answer was due)."""

    def __init__(self, desc: str, command: str | None = None, arguments: Any = None) -> None:
        super().__init__(desc)
        self.command = command
        self.arguments = arguments


class ProtocolError(ClientError):
    """The server sent something that is not QMP."""


class CommandError(ClientError):
    """The server answered a command with an error.

    ``command`` and ``arguments`` are what was sent, ``response`` is the whole answer; ``error_class`` and ``desc``
    are the error's members.
    """

    def __init__(self, command: str, arguments: Any, response: dict[str, Any]) -> None:
        error = response.get("error") or {}
        super().__init__(str(error.get("desc", "unknown error")), str(error.get("class", "GenericError")))
        self.command = command
        self.arguments = arguments
        self.response = response

    def __str__(self) -> str:
        return f"{self.command}: {self.desc}"


class CommandNotFound(CommandError):
    """The server does not have the command, or does not allow it now."""


class DeviceNotActive(CommandError):
    """The device is there but not in the state that the command needs."""


class DeviceNotFound(CommandError):
    """There is no such device."""


class KvmMissingCap(CommandError):
    """The host's KVM lacks what the command needs."""


class JobError(ClientError):
    """A job did not do its work. ``job`` is its id."""

    def __init__(self, job: str, desc: str) -> None:
        super().__init__(desc)
        self.job = job

    def __str__(self) -> str:
        return f"job {self.job}: {self.desc}"


class JobFailed(JobError):
    """A job ended with an error."""


class JobCancelled(JobError):
    """A job was cancelled."""


class JobNotFound(JobError):
    """The server knows no such job."""


_BY_CLASS: dict[str, type[CommandError]] = {
    COMMAND_NOT_FOUND: CommandNotFound,
    DEVICE_NOT_ACTIVE: DeviceNotActive,
    DEVICE_NOT_FOUND: DeviceNotFound,
    KVM_MISSING_CAP: KvmMissingCap,
}


def command_error(command: str, arguments: Any, response: dict[str, Any]) -> CommandError:
    """The exception for an error answer, by its class."""
    error_class = str((response.get("error") or {}).get("class"))
    return _BY_CLASS.get(error_class, CommandError)(command, arguments, response)

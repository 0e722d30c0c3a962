"""The one family of errors that Qobra raises.

Whatever goes wrong for a reason that a user can act on is a :class:`QobraError`. The monitor turns it into
``{"error": {"class": ..., "desc": ...}}``, the tools into one line on standard error.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
DEVICE_NOT_ACTIVE = "DeviceNotActive"
DEVICE_NOT_FOUND = "DeviceNotFound"
KVM_MISSING_CAP = "KVMMissingCap"


class QobraError(Exception):
    """A failure with a reason.

    ``desc`` says what failed, on what, and why. ``error_class`` is one of the reference's QapiErrorClass. ``errno``
    is the operating system's error number where one lies underneath, and ``node`` the name of the block node that
    the error came from, if any. ``hint`` is what a person may do about it: tools print it on a line of its own, QMP
    does not carry it.
    """

    def __init__(
        self,
        desc: str,
        error_class: str = GENERIC_ERROR,
        *,
        errno: int | None = None,
        node: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class
        self.errno = errno
        self.node = node
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.desc}\n{self.hint}" if self.hint else self.desc

    def prefixed(self, prefix: str) -> QobraError:
        """The same error with ``prefix`` before its text."""
        return QobraError(prefix + self.desc, self.error_class, errno=self.errno, node=self.node, hint=self.hint)

    def again(self) -> Self:
        """The same error, to be raised by itself.

        An error that is kept and raised again and again keeps, in its traceback, all that each of those who raised it
        was at work on.
        """
        error = self.__new__(type(self))
        error.args = self.args
        error.__dict__.update(self.__dict__)
        return error

    @classmethod
    def from_os(cls, prefix: str, error: OSError, *, node: str | None = None) -> QobraError:
        """``PREFIX: strerror``, keeping the number."""
        return cls(f"{prefix}: {strerror(error)}", errno=errno_of(error), node=node)


def strerror(error: OSError) -> str:
    """The text of an OSError without Python's ``[Errno N]`` and file name around it."""
    return os.strerror(error.errno) if error.errno else str(error)


def is_nul_in_name(error: BaseException) -> bool:
    """Whether Python refused the name of a file, a program or a socket for a NUL character.

    JSON can say one; the operating system, whose names end there, cannot.
    """
    return isinstance(error, ValueError) and "embedded null" in str(error)


NUL_IN_NAME = "A name has a NUL character in it"


def errno_of(error: BaseException) -> int:
    """The error number to report for a failed request: of an OSError or a QobraError, EIO where there is none."""
    from errno import EIO  # the module makes the names of all numbers, which a start that goes well does not need

    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number > 0 else EIO

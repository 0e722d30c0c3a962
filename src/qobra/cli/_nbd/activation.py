"""A socket that a service manager has passed, rather than one to listen on (sd_listen_fds(3))."""

from __future__ import annotations

import fcntl
import os
import socket

from qobra.cli._tool.report import Program, ToolError
from qobra.errors import strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from typing import Any

FIRST_FD = 3

_CONFLICTS = (
    ("c", "NBD device can't be set when using socket activation"),
    ("k", "Unix socket can't be set when using socket activation"),
    ("b", "The interface can't be set when using socket activation"),
    ("p", "TCP port number can't be set when using socket activation"),
    ("L", "List mode is incompatible with socket activation"),
)


def passed_address(program: Program, given: Container[str]) -> dict[str, Any] | None:
    """The address of the socket that was passed, or None. Raises ToolError where ``given`` options ask for another."""
    count = _passed()
    if not count:
        return None
    for option, refusal in _CONFLICTS:
        if option in given:
            raise ToolError(refusal)
    if count > 1:
        raise ToolError(f"{program.name} does not support socket activation with LISTEN_FDS > 1")
    try:
        with socket.socket(fileno=os.dup(FIRST_FD)):
            pass
    except OSError as error:
        raise ToolError(f"Failed to use socket activation: Unable to query remote socket address: {strerror(error)}")
    return {"type": "fd", "str": str(FIRST_FD)}


def _passed() -> int:
    """How many descriptors were passed to this process. Raises ToolError where one is not open."""
    text = os.getenv("LISTEN_FDS", "")
    if os.getenv("LISTEN_PID") != str(os.getpid()) or not (text.isascii() and text.isdigit()):
        return 0
    count = int(text)
    for fd in range(FIRST_FD, FIRST_FD + min(count, os.sysconf("SC_OPEN_MAX"))):
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError as error:
            raise ToolError(f"Socket activation failed: invalid file descriptor fd = {fd}: {strerror(error)}")
    return count

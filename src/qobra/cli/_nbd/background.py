"""``--fork``: the server goes on in the background once it is running."""

from __future__ import annotations

import os
import sys


class Background:
    """In the child, what is left to say to the parent; the parent never returns from :func:`fork`."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def running(self) -> None:
        """The server is up: the parent may end well, and nothing more is printed.

        It leaves its directory, which may be unmounted: what it serves is open, and named by absolute paths.
        """
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        os.write(self._pipe, b"\0")
        os.close(self._pipe)


def fork() -> Background:
    """Go on in a child. The parent waits until it is running or has failed, and ends with 0 or its status."""
    sys.stdout.flush()
    sys.stderr.flush()
    ready, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        if os.read(ready, 1):
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) or 1)
    os.close(ready)
    return Background(told)

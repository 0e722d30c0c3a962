"""Our programs as forks of this process, in which everything is imported already: they start in a few milliseconds."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

PACKAGES = (
    "qobra.block",
    "qobra.command",
    "qobra.qmp",
    "qobra.machine",
    "qobra.object",
    "qobra.nbd",
    "qobra.cli._system",
)


class Forked:
    """A program with a monitor on a passed socket, as :class:`qobra.testing.differential.Program` is."""

    def __init__(
        self,
        directory: Path,
        main: Callable[[], object],
        arguments: Sequence[str],
        monitor: Sequence[str],
        errors: Path,
    ) -> None:
        """``main`` reads ``arguments`` from ``sys.argv``; ``errors`` is a file for its standard error."""
        import_all()
        self.directory = directory
        self._socket, theirs = socket.socketpair()
        option = "-chardev" if "-S" in arguments else "--chardev"
        with theirs:
            self._pid = os.fork()
            if self._pid == 0:
                chardev = f"socket,id=differential,fd={theirs.fileno()}"
                self._become(main, [*arguments, option, chardev, *monitor], errors)

    def _become(self, main: Callable[[], object], arguments: list[str], errors: Path) -> None:
        status = 1
        try:
            self._socket.close()
            os.chdir(self.directory)
            sys.argv = ["qobra", *arguments]
            descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 2)
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def connect(self) -> socket.socket:
        """The socket of its monitor."""
        return self._socket

    def wait(self, seconds: float) -> None:
        """Wait until it has ended by itself; subprocess.TimeoutExpired if it takes longer."""
        deadline = time.monotonic() + seconds
        while self._pid:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                self._pid = 0
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("qobra", seconds)
            else:
                time.sleep(0.002)

    def close(self) -> None:
        """End it."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


@cache
def import_all() -> None:
    """Import what the programs need, so that their forks need not."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)

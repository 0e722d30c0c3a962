"""An NBD server that runs as long as somebody is connected to it, as a child process."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
from typing import TYPE_CHECKING

from qobra.errors import QobraError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FIRST_PASSED_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""
_LEAVE_SECONDS = 5.0
"""What a server has to end by itself once nobody is connected, and again when it was asked to."""


class ServerProcess:
    """How to start a server: ``argv``, and whether it speaks NBD on its standard input and output, to one client, or
    (``activation``) takes a listening socket as systemd passes it (sd_listen_fds(3)), for any number of them.

    It is started by the first connection, and stopped after the last one. Used as a context manager, it runs until the
    end of the block at least.
    """

    def __init__(
        self, argv: Sequence[str], *, activation: bool = False, environment: Mapping[str, str] | None = None
    ) -> None:
        self.argv = list(argv)
        self.activation = activation
        self.environment = environment
        """The server's environment, where it is not this process's."""
        self.pid: int | None = None
        """The process, while it runs."""
        self._users = 0
        self._directory: str | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> ServerProcess:
        self._hold()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<ServerProcess {self.argv} pid={self.pid}>"

    @property
    def path(self) -> str:
        """The socket that a running server with ``activation`` listens on."""
        if self._directory is None:
            raise QobraError("The NBD server does not run")
        return os.path.join(self._directory, "sock")

    def connect(self) -> socket.socket:
        """A connection, for which :meth:`release` is to be called in the end. Raises QobraError."""
        if not self.activation:
            ours, theirs = socket.socketpair()
            with theirs, self._lock:
                try:
                    if self.pid is not None:
                        raise QobraError("A server on its standard input has one client", errno=errno.EBUSY)
                    self._spawn(self.argv, [(os.POSIX_SPAWN_DUP2, theirs.fileno(), number) for number in (0, 1)], {})
                except BaseException:
                    ours.close()
                    raise
                self._users += 1
            return ours
        self._hold()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            self.release()
            raise QobraError.from_os(f"Failed to connect to '{self.argv[0]}'", error)
        return sock

    def release(self) -> None:
        """A connection is closed: if it was the last, see to it that the server ends."""
        with self._lock:
            self._users -= 1
            if not (self._users and self.activation):
                self._stop()

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the server, if it runs."""
        if self.pid is not None:
            os.kill(self.pid, number)

    def _hold(self) -> None:
        with self._lock:
            if self.activation and not self._users:
                self._listen()
            self._users += 1

    def _listen(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="qobra-nbd-")
        # Only the shell knows its process's number in time, and passes both on.
        argv = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *self.argv]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(self.path)
                listener.listen(128)
                passed = [(os.POSIX_SPAWN_DUP2, listener.fileno(), _FIRST_PASSED_FD)]
                self._spawn(argv, passed, {"LISTEN_FDS": "1"})
            except BaseException:
                self._remove()
                raise

    def _spawn(self, argv: list[str], actions: list[tuple[int, int, int]], variables: dict[str, str]) -> None:
        environment = dict(os.environ if self.environment is None else self.environment)
        try:
            program = shutil.which(self.argv[0], path=environment.get("PATH", os.defpath))
            if program is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self.pid = os.posix_spawn(
                program if argv is self.argv else argv[0],
                argv,
                environment | variables,
                file_actions=actions,
                setsigdef=[signal.SIGPIPE],
                setsigmask=(),
            )
        except OSError as error:
            raise QobraError.from_os(f"Failed to start '{self.argv[0]}'", error)

    def _stop(self) -> None:
        pid, self.pid = self.pid, None
        if pid is not None:
            if self.activation or not _ended(pid):
                os.kill(pid, signal.SIGTERM)
                if not _ended(pid):
                    os.kill(pid, signal.SIGKILL)
                    _ended(pid)
        self._remove()

    def _remove(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _ended(pid: int) -> bool:
    """Wait a while for a child; whether it has ended."""
    try:
        with open(os.pidfd_open(pid), "rb", buffering=0) as process:
            poller = select.poll()
            poller.register(process, select.POLLIN)
            if not poller.poll(_LEAVE_SECONDS * 1000):
                return False
        os.waitpid(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        pass  # somebody else has waited for it
    return True

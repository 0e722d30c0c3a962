"""Character devices on plain file descriptors: files, pipes, terminals."""

from __future__ import annotations

import os
import select

from qobra.chardev.chardev import Chardev
from qobra.errors import QobraError
from qobra.lean import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

READ_SIZE = 65536
FDSET_PREFIX = "/dev/fdset/"


class FdChardev(Chardev):
    """Reads one descriptor in a thread of its own and writes another; either may be missing (-1).

    A subclass opens them in :meth:`open_fds` and may override :meth:`at_end`.
    """

    # Whether a write may block although the descriptor is ready, unless it is short.
    pipe_like: ClassVar[bool] = True

    _in = _out = _wake_reader = _wake_writer = -1

    def open_fds(self) -> tuple[int, int]:
        """The descriptors to read and to write, which the device owns."""
        raise NotImplementedError

    def start(self) -> None:
        self._in, self._out = self.open_fds()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC)
        self.set_open(True)
        if self._in >= 0:
            start_thread(self._read, name=f"chardev {self.id}")

    def stop(self) -> None:
        if self._wake_writer >= 0:
            os.close(self._wake_writer)  # the reading thread sees the end of the pipe
            self._wake_writer = -1
        if self._in < 0:
            self._release()

    def _release(self) -> None:
        for fd in {self._in, self._out, self._wake_reader} - {-1}:
            os.close(fd)
        self._in = self._out = self._wake_reader = -1

    def _read(self) -> None:
        poller = select.poll()
        poller.register(self._in, select.POLLIN)
        poller.register(self._wake_reader, select.POLLIN)
        while not self.closed and self.room():
            if any(fd == self._wake_reader for fd, _ in poller.poll()):
                break
            try:
                data = os.read(self._in, READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                self.deliver(data)
            elif not self.at_end():
                break
        if self.closed:
            self._release()
        else:
            self.deliver_event("ended")
            self.set_open(False)
            self._linger()

    def _linger(self) -> None:
        """Nothing more to read; keep the output until the device is closed."""
        poller = select.poll()
        poller.register(self._wake_reader, select.POLLIN)
        poller.poll()
        self._release()

    def at_end(self) -> bool:
        """There is nothing to read any more. Returns whether to try again."""
        return False

    def transmit(self, data: bytes) -> int:
        fd = self._out
        if fd < 0:
            return len(data)
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        sent = 0
        while sent < len(data):
            # Regular files are always ready; pipes and terminals take at least PIPE_BUF bytes when they are.
            ready = poller.poll(0)
            if not ready:
                return sent
            if ready[0][1] & (select.POLLERR | select.POLLNVAL):
                return len(data)
            try:
                sent += os.write(fd, data[sent : sent + select.PIPE_BUF] if self.pipe_like else data[sent:])
            except BlockingIOError:
                return sent
            except OSError:
                return len(data)
        return sent

    def wait_writable(self, timeout: float | None = None) -> bool:
        if self._out < 0:
            return True
        poller = select.poll()
        poller.register(self._out, select.POLLOUT)
        return bool(poller.poll(None if timeout is None else timeout * 1000))


def open_path(device: Chardev, path: str, flags: int) -> int:
    """Open ``path``, which may be ``/dev/fdset/N``."""
    try:
        if path.startswith(FDSET_PREFIX):
            return device.machine.fdsets.open(path, flags)
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except OSError as error:
        raise QobraError.from_os(f"Could not open '{path}'", error)

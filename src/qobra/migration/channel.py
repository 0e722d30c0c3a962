"""The channel that a stream takes: reading and writing there until somebody cancels."""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess

_CHUNK = 1 << 20
_MS = 1000


class GivenUp(Exception):
    """Reading or writing ended because somebody cancelled it."""


class Channel:
    """A stream over a file descriptor, which the channel owns. ``child``: a command at its other end.

    Whoever is blocked in it is let go by :meth:`cancel`, and gets :class:`GivenUp`.
    """

    def __init__(self, fd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self._fd = fd
        self._child = child
        os.set_blocking(fd, False)
        self._wake_read, self._wake_write = os.pipe()

    @property
    def two_way(self) -> bool:
        """Whether the other end can answer."""
        return stat.S_ISSOCK(os.fstat(self._fd).st_mode)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``. Raises OSError, or GivenUp."""
        view = memoryview(data).cast("B")
        while view:
            self._wait(select.POLLOUT)
            try:
                view = view[os.write(self._fd, view[:_CHUNK]) :]
            except BlockingIOError:
                continue

    def read(self, length: int) -> bytes:
        """The next ``length`` bytes; fewer only at the end. Raises OSError, or GivenUp."""
        parts: list[bytes] = []
        while length > 0:
            part = self.receive(length)
            if not part:
                break
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def receive(self, limit: int = _CHUNK) -> bytes:
        """What comes next, as soon as there is something, up to ``limit`` bytes; nothing at the end."""
        while True:
            self._wait(select.POLLIN)
            try:
                return os.read(self._fd, min(limit, _CHUNK))
            except BlockingIOError:
                continue

    def readable(self, timeout: float) -> bool:
        """Whether there is something to read, or the end, within ``timeout`` seconds. Raises GivenUp."""
        return self._wait(select.POLLIN, timeout)

    def hang_up(self) -> None:
        """Let both ends find the end of the stream. From any thread; of a socket only."""
        with socket.socket(fileno=os.dup(self._fd)) as twin:
            try:
                twin.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other end has done so

    def cancel(self) -> None:
        """Let go whoever is blocked here. From any thread."""
        os.write(self._wake_write, b"x")

    def close(self) -> None:
        """Close; a command at the other end has its end of file then, and is waited for."""
        for fd in (self._fd, self._wake_read, self._wake_write):
            os.close(fd)
        if self._child is not None:
            self._child.wait()

    def abort(self) -> None:
        """Close after a failure: a command at the other end is ended."""
        if self._child is not None:
            self._child.terminate()
        self.close()

    def _wait(self, event: int, timeout: float | None = None) -> bool:
        poll = select.poll()
        poll.register(self._fd, event)
        poll.register(self._wake_read, select.POLLIN)
        found = poll.poll(None if timeout is None else timeout * _MS)
        if any(fd == self._wake_read for fd, _events in found):
            raise GivenUp
        return bool(found)

"""A session's output: lines in order, never waiting inside the strand, and bounded."""

from __future__ import annotations

from qobra.lean import Lock, deque, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev

MAX_BACKLOG = 1 << 20
"""Bytes that may wait for a client that does not read; events beyond that are dropped."""

READ_AHEAD = MAX_BACKLOG // 2
"""Bytes that may wait while a session goes on to the next request."""

PATIENCE = 1.0
"""Seconds that the end of the program waits for a client that reads nothing of what it is still to be told."""


class Output:
    """Sends lines to a character device as long as it takes them, and keeps the rest.

    Replies always find room: a session reads no further request while more than ``READ_AHEAD`` waits, so one at most
    goes beyond that (two with out-of-band commands). Events are dropped, whole, while ``MAX_BACKLOG`` is exceeded.
    ``client`` counts the clients that came.
    """

    def __init__(self, chardev: Chardev) -> None:
        self._chardev = chardev
        self._lock = Lock()
        self._backlog: deque[bytes] = deque()
        self._size = 0
        self.client = 0
        self._draining = False
        self.dropped_events = 0

    def open(self) -> None:
        """A new client: nothing waits."""
        with self._lock:
            self.client += 1
            self._backlog.clear()
            self._size = 0
            self._draining = False

    def close(self) -> None:
        """The client is gone, and what it did not read with it."""
        self.open()

    def reply(self, line: bytes, client: int | None = None) -> None:
        """Send ``line``, or keep what does not go out for :meth:`drain`; not if ``client`` is gone."""
        with self._lock:
            if client in (None, self.client):
                self._put(line)

    def event(self, line: bytes) -> None:
        """Send ``line``, or let a thread send it when the client reads again."""
        with self._lock:
            if self._size > MAX_BACKLOG:
                self.dropped_events += 1
                return
            self._put(line)
            self._send_later()

    def settle(self) -> None:
        """Wait until no more than ``READ_AHEAD`` waits, or the client is gone; a thread sends what is left."""
        if not self._backlog:
            return
        if self._size > READ_AHEAD:
            self._drain(self.client, READ_AHEAD)
        with self._lock:
            self._send_later()

    def drain(self) -> None:
        """Wait until everything is out, or the client gone."""
        if self._backlog:
            self._drain(self.client, 0)

    def finish(self) -> None:
        """Wait until everything is out, the client gone, or none of it was read for a while: the device ends next."""
        if self._backlog:
            self._drain(self.client, 0, PATIENCE)

    def _send_later(self) -> None:
        if self._backlog and not self._draining:
            self._draining = True
            start_thread(self._send, self.client, name="qmp output")

    def _send(self, client: int) -> None:
        self._drain(client, 0)
        with self._lock:
            if client == self.client:
                self._draining = False
                self._send_later()  # what came in between

    def _put(self, line: bytes) -> None:
        if not self._backlog:
            sent = self._chardev.write(line)
            if sent == len(line):
                return
            line = line[sent:]
        self._backlog.append(line)
        self._size += len(line)

    def _drain(self, client: int, limit: int, timeout: float | None = None) -> None:
        """Send until no more than ``limit`` bytes wait, the client is gone, or none go out for ``timeout`` seconds."""
        while True:
            with self._lock:
                if client != self.client:
                    return
                while self._size > limit:
                    line = self._backlog[0]
                    sent = self._chardev.write(line)
                    self._size -= sent
                    if sent < len(line):
                        self._backlog[0] = line[sent:]
                        break
                    self._backlog.popleft()
                else:
                    return
            if not self._chardev.wait_writable(timeout):
                return
